"""Look at a database's log files before RocksDB does (CRASH-5).

RocksDB opens with whatever its log files hold up to the first thing that looks like their
end. Left alone it would start without what a cut, a damaged length, a run of zeros or a
missing file has taken, and might put later chunks on top of the hole. So the frames of MANIFEST
and of the WALs that are still needed are read here first, without their checksums, which
RocksDB verifies. What is wrong with them is

1. damage, if `SYNCED` says that it was durable, or that the file existed;
2. a torn tail, if the file just ends there: RocksDB forgets the unfinished record;
3. otherwise what a power failure leaves, if sectors of zeros follow, or if the tail is that of an
   older WAL: the whole tail from there on, never synced, is cut off;
4. otherwise damage.

Nothing is changed by a refusal.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import attrs

from dengine_sm.errors import CorruptionError
from dengine_sm.files import FileSystem, default_file_system
from dengine_sm_rocksdb.chunk_row import (
    CHUNK_HEAD_BYTES,
    STORE_FAMILY,
    chunk_number,
    is_chunk,
    sequence_range,
)
from dengine_sm_rocksdb.frames import FrameError, Record, has_zero_sector, read_records
from dengine_sm_rocksdb.manifest import Manifest, read_manifest
from dengine_sm_rocksdb.synced import (
    Synced,
    manifest_path,
    numbered_files,
    read_synced,
    wal_path,
)

CURRENT = "CURRENT"

logger = logging.getLogger("dengine_sm_rocksdb")


@attrs.frozen
class Tail:
    """The newest WAL's end."""

    path: Path
    offset: int
    """Where the newest record of a store's write batch begins."""
    chunk: int
    """Number of that batch."""


def check_log_files(
    directory: Path, *, verify: bool = False, fs: FileSystem | None = None
) -> Tail | None:
    """Check MANIFEST and WALs; cut off what a power failure has left behind.

    Args:
        directory: of the database, which is not open.
        verify: compute the checksums as well, because RocksDB found a wrong one.
        fs: the file system for a repair.

    Returns:
        The newest write batch in the WALs; None if there is none.

    Raises:
        CorruptionError: damage that no crash explains; nothing was changed.
        OSError: the disk refused.
    """
    synced = read_synced(directory)
    manifest = _checked_manifest(directory, synced, verify)
    existing, _ = numbered_files(directory)
    for number in synced.wals:
        if number not in existing and not manifest.may_be_removed(number, STORE_FAMILY.encode()):
            raise damaged(wal_path(directory, number), 0, "is missing")
    needed = [number for number in existing if number >= manifest.first_needed_wal]
    check = _WalCheck(directory, synced, manifest, fs or default_file_system())
    try:
        return check.run(needed, verify)
    except _InDoubtError:
        # A wrong length or kind shows only later: the checksums tell where the damage is.
        return check.run(needed, verify=True)


def _checked_manifest(directory: Path, synced: Synced, verify: bool) -> Manifest:
    current = directory / CURRENT
    try:
        name = current.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        raise damaged(current, 0, "is missing") from None
    prefix, _, digits = name.removesuffix("\n").partition("-")
    if prefix != "MANIFEST" or not digits.isdigit() or not name.endswith("\n"):
        raise damaged(current, 0, f"holds {name!r}, no name of a MANIFEST")
    number = int(digits)
    path = manifest_path(directory, number)
    if number < synced.manifest:
        raise damaged(current, 0, f"names MANIFEST {number}, but {synced.manifest} was in force")
    try:
        size = path.stat().st_size
        if number == synced.manifest and size < synced.manifest_bytes:
            raise damaged(path, size, f"ends, of {synced.manifest_bytes} synced bytes")
        manifest, error = read_manifest(path, verify=verify)
    except FileNotFoundError:
        raise damaged(path, 0, "is missing") from None
    if error is not None:
        is_synced = number == synced.manifest and error.offset < synced.manifest_bytes
        if is_synced or not error.is_torn:
            raise damaged(path, error.frame_offset, f"has {error.problem}")
    return manifest


class _InDoubtError(Exception):
    """Frames alone do not tell what is wrong."""


class _WalCheck:
    def __init__(self, directory: Path, synced: Synced, manifest: Manifest, fs: FileSystem) -> None:
        self._directory = directory
        self._synced = synced
        self._newest_flush = manifest.newest_log_number
        self._fs = fs
        self._tail: Tail | None = None
        self._next_sequence: int | None = None

    def run(self, numbers: list[int], verify: bool) -> Tail | None:
        self._tail = self._next_sequence = None
        for place, number in enumerate(numbers):
            path = wal_path(self._directory, number)
            if number == self._synced.newest_wal:
                size = path.stat().st_size
                if size < self._synced.wal_bytes:
                    text = f"ends, of {self._synced.wal_bytes} synced bytes"
                    raise damaged(path, size, text)
            later = numbers[place + 1 :]
            try:
                self._read(path, verify)
            except FrameError as exc:
                is_synced = self._is_synced(number, exc.offset)
                if exc.is_torn and not (later or is_synced):
                    return self._tail
                if not verify:
                    raise _InDoubtError from exc
                if is_synced or not self._is_crash(path, exc):
                    raise damaged(path, exc.frame_offset, f"has {exc.problem}") from exc
                self._cut(path, exc, later)
                return self._tail
        return self._tail

    def _read(self, path: Path, verify: bool) -> None:
        """Read a WAL; the sequence numbers of its records follow each other without a gap."""
        newest: Record | None = None
        expected = self._next_sequence
        try:
            for record in read_records(path, keep=CHUNK_HEAD_BYTES, verify=verify):
                found = sequence_range(record.payload)
                if found is None or found[0] != (expected or found[0]):
                    problem = "a record that does not follow the one before it"
                    raise FrameError(record.offset, record.offset, problem, is_torn=False)
                expected = found[1]
                if is_chunk(record.payload):
                    newest = record
        finally:
            self._next_sequence = expected
            if newest is not None:
                self._tail = Tail(path, newest.offset, chunk_number(newest.payload))

    def _is_synced(self, number: int, offset: int) -> bool:
        newest = self._synced.newest_wal
        if number < self._newest_flush:
            # RocksDB syncs the WALs before it writes a part of what they hold to a table file.
            return True
        return number < newest or (number == newest and offset < self._synced.wal_bytes)

    def _is_crash(self, path: Path, exc: FrameError) -> bool:
        """Tell whether a crash explains what is wrong in a part that was not synced."""
        if exc.is_torn:
            return True
        # A gap at the beginning of a WAL: the one before it has lost its unsynced end.
        is_after_a_loss = exc.offset == 0 and self._tail is not None
        return is_after_a_loss or has_zero_sector(path, exc.frame_offset)

    def _cut(self, path: Path, exc: FrameError, later: list[int]) -> None:
        logger.warning(
            "cut %s at %d: %s; a power failure has taken what was not synced",
            path,
            exc.offset,
            exc.problem,
        )
        for number in reversed(later):
            self._fs.unlink(wal_path(self._directory, number))
        self._fs.sync_directory(self._directory)
        cut_file(path, exc.offset, self._fs)


def cut_file(path: Path, size: int, fs: FileSystem) -> None:
    """Cut a file, durably.

    Raises:
        OSError: the disk refused.
    """
    fd = fs.open(path, os.O_WRONLY)
    try:
        fs.truncate(fd, size)
        fs.fsync(fd)
    finally:
        fs.close(fd)


def take_back(directory: Path, chunk: int, fs: FileSystem | None = None) -> None:
    """Cut a chunk off the newest WAL that was refused, so that no restart brings it back.

    Args:
        directory: of a database that writes no more.
        chunk: number of the newest chunk that was not refused.
        fs: the file system for it.

    Failing is no harm beyond that: the disk has refused before.
    """
    fs = fs or default_file_system()
    with suppress(OSError):
        wals, _ = numbered_files(directory)
        for number in reversed(wals):
            path = wal_path(directory, number)
            with suppress(FrameError):
                for record in read_records(path, keep=CHUNK_HEAD_BYTES):
                    if is_chunk(record.payload) and chunk_number(record.payload) > chunk:
                        cut_file(path, record.offset, fs)
                        return


def damaged(path: Path, offset: int, problem: str) -> CorruptionError:
    """Return the error for damage found here."""
    return CorruptionError(
        f"'{path}' {problem}: damaged at offset {offset}; nothing was changed",
        path=path,
        offset=offset,
    )
