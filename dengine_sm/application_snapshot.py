"""Snapshots of an application: `records.cbor` and a manifest in a directory.

The records are a CBOR sequence: `[format, [term, index], clock_ms]`, then one byte string
for each record that the application dumped.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.application_state import Application, MachineState
from dengine_sm.bookkeeping import TermHistory
from dengine_sm.codec import decode_sequence, encode, pack_log_id, unpack_log_id
from dengine_sm.errors import (
    SnapshotCorruptionError,
    SnapshotFormatError,
    StaleSnapshotError,
    StorageError,
)
from dengine_sm.files import FileSystem, default_file_system
from dengine_sm.files.filesystem import storage_errors, write_all
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import seal_snapshot, verify_snapshot

RECORDS_NAME = "records.cbor"

_BUFFER_BYTES = 1 << 20


@attrs.frozen
class PinnedState:
    """A state as it was when a checkpoint or snapshot began."""

    last_included: LogId
    clock_ms: int
    records: Iterable[bytes]


def pin(state: MachineState) -> PinnedState:
    """Pin a state; called while nothing changes it."""
    return PinnedState(state.last_applied, state.clock_ms, state.application.dump())


def write_snapshot(
    directory: Path,
    format_name: str,
    state: PinnedState,
    fs: FileSystem | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> bytes:
    """Write a state into a new or empty directory, durably; return the checksum.

    Raises:
        StorageError: the disk refused, or the directory holds something.
    """
    fs = fs or default_file_system()
    with storage_errors(directory, "write the snapshot", "it is not usable"):
        if not directory.exists():
            fs.mkdir(directory)
        if any(directory.iterdir()):
            raise StorageError(
                f"snapshot directory '{directory}' is not empty; nothing was written",
                path=directory,
            )
        try:
            _write_records(directory / RECORDS_NAME, format_name, state, fs, is_cancelled)
            return seal_snapshot(
                directory, format=format_name, last_included=state.last_included, fs=fs
            )
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(directory)
            raise


def _write_records(
    path: Path,
    format_name: str,
    state: PinnedState,
    fs: FileSystem,
    is_cancelled: Callable[[], bool],
) -> None:
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        buffer = bytearray(encode([format_name, pack_log_id(state.last_included), state.clock_ms]))
        for record in state.records:
            buffer += encode(bytes(record))
            if len(buffer) >= _BUFFER_BYTES:
                if is_cancelled():
                    raise StorageError(f"snapshot '{path.parent}' was cancelled", path=path)
                write_all(fs, fd, buffer)
                buffer.clear()
        write_all(fs, fd, buffer)
    finally:
        fs.close(fd)


def load_snapshot(directory: Path, format_name: str, application: Application) -> tuple[LogId, int]:
    """Load a verified snapshot into a new application; return last included id and clock.

    Raises:
        ValueError: the records are none of this application.
    """
    with (directory / RECORDS_NAME).open("rb") as stream:
        items = decode_sequence(stream)
        match next(items, None):
            case [str(name), log_id, int(clock_ms)] if name == format_name:
                try:
                    application.load(_records(items))
                except MemoryError:
                    raise
                except Exception as exc:
                    raise ValueError(f"load raised {type(exc).__name__}: {exc}") from exc
                return unpack_log_id(log_id), clock_ms
    raise ValueError(f"'{directory / RECORDS_NAME}' does not begin with format {format_name!r}")


def _records(items: Iterator[Any]) -> Iterator[bytes]:
    for item in items:
        if type(item) is not bytes:
            raise ValueError(f"record: expected bytes, observed {item!r}")
        yield item


async def write_in_thread(directory: Path, format_name: str, state: PinnedState) -> bytes:
    """Write a snapshot in a worker thread; cancelled, nothing of it stays (SNAP-12)."""
    cancelled = threading.Event()
    work = asyncio.ensure_future(
        asyncio.to_thread(write_snapshot, directory, format_name, state, None, cancelled.is_set)
    )
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread cannot be interrupted: wait until it has removed what it wrote.
        cancelled.set()
        await asyncio.wait([work])
        if work.exception() is None:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def check_installable(
    metadata: SnapshotMetadata, path: Path, format_name: str, last_applied: LogId
) -> None:
    """Refuse a snapshot of another format, or older than what is applied (SNAP-6)."""
    observed = metadata.last_included
    if metadata.format != format_name:
        raise SnapshotFormatError(
            f"snapshot '{path}' has format {metadata.format!r}, expected {format_name!r}; "
            "nothing changed",
            path=path,
            expected=format_name,
            observed=metadata.format,
        )
    if observed < last_applied or observed.index < last_applied.index:
        raise StaleSnapshotError(
            f"snapshot '{path}' ends with {observed}, older than last_applied "
            f"{last_applied}; nothing changed",
            path=path,
            expected=last_applied,
            observed=observed,
        )


def read_snapshot(
    metadata: SnapshotMetadata, path: Path, factory: Callable[[], Application]
) -> MachineState:
    """Verify a snapshot and return the state that it holds.

    Raises:
        SnapshotCorruptionError: it is not what the metadata says.
        SnapshotFormatError: unknown layout.
    """
    verify_snapshot(path, metadata, formats=(metadata.format,))
    state = MachineState(factory())
    try:
        last_included, clock_ms = load_snapshot(path, metadata.format, state.application)
    except (ValueError, OSError) as exc:
        raise SnapshotCorruptionError(
            f"snapshot '{path}' cannot be loaded: {exc}; nothing changed", path=path
        ) from exc
    if last_included != metadata.last_included:
        raise SnapshotCorruptionError(
            f"snapshot '{path}' ends with {last_included}, its metadata says "
            f"{metadata.last_included}; nothing changed",
            path=path,
            expected=metadata.last_included,
            observed=last_included,
        )
    state.terms = TermHistory.starting_at(last_included)
    state.last_applied, state.clock_ms = last_included, clock_ms
    state.snapshot_metadata = metadata
    return state
