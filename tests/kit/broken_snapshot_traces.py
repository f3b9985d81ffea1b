"""Machines whose snapshots tell too much, leave traces or take too much (SNAP-11 to SNAP-13)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
from broken_base import SoundFileMachine, breaks
from broken_snapshot import TRANSIENT, HandWritten, InParts
from sound_sqlite import SoundSQLiteMachine

from dengine_sm.codec import decode, decode_sequence, encode, pack_log_id
from dengine_sm.errors import ConcurrentApplyError
from dengine_sm.kv.rows import entries_of
from dengine_sm.snapshot import (
    PORTABLE_FORMAT,
    SessionRow,
    read_portable,
    seal_snapshot,
    verify_snapshot,
    write_portable,
)

# SNAP-11


class WithProperty(HandWritten):
    """Seals its snapshots with a property."""

    def write(self, view, directory, last_included):
        super().write(view, directory, last_included)
        (directory / "manifest.cbor").unlink()
        return seal_snapshot(
            directory,
            format=PORTABLE_FORMAT,
            last_included=last_included,
            properties=[("note", self.note())],
        )

    def note(self) -> int:
        raise NotImplementedError


@breaks("SNAP-11", **TRANSIENT)
class TimeInTheSnapshot(WithProperty):
    """Notes when the snapshot was written."""

    def note(self):
        return time.time_ns()


@breaks("SNAP-11", **TRANSIENT)
class HistoryInTheSnapshot(WithProperty):
    """Notes how many chunks led to the state."""

    applied_chunks = 0

    async def apply_chunk(self, chunk):
        self.applied_chunks += 1
        return await super().apply_chunk(chunk)

    def note(self):
        return self.applied_chunks


@breaks("SNAP-11", **TRANSIENT)
class BlocksOfItsOwnSize(HandWritten):
    """Closes a block after four entries."""

    def write(self, view, directory, last_included):
        super().write(view, directory, last_included)
        path = directory / "entries.cbor"
        (directory / "manifest.cbor").unlink()
        _, timed_keys = self.clock_of(view)
        rows = list(entries_of(view, timed_keys))
        header = decode_sequence(io.BytesIO(path.read_bytes()))
        items: list[Any] = [next(header)]
        for start in range(0, len(rows), 4):
            keys, values, deadlines = zip(*rows[start : start + 4], strict=True)
            timed = [[i, deadline] for i, deadline in enumerate(deadlines) if deadline is not None]
            items.append([list(keys), list(values), timed])
        path.write_bytes(b"".join(encode(item) for item in (*items, [len(rows)])))
        return seal_snapshot(directory, format=PORTABLE_FORMAT, last_included=last_included)


@breaks("SNAP-11", **TRANSIENT)
class HashOrderInTheSnapshot(HandWritten):
    """Writes the entries in the order of their hashes, and sorts them when it installs."""

    def write(self, view, directory, last_included):
        rows = sorted(super().entries(view, 1), key=lambda row: hash(row[0]))
        sessions = [attrs.astuple(session) for session in self.sessions(view)]
        clock_ms, _ = self.clock_of(view)
        content = encode([pack_log_id(last_included), clock_ms, sessions, rows])
        directory.mkdir(exist_ok=True)
        (directory / "entries.cbor").write_bytes(content)
        return seal_snapshot(directory, format=PORTABLE_FORMAT, last_included=last_included)

    def _install(self, metadata, directory):
        try:
            verify_snapshot(directory, metadata, formats=[PORTABLE_FORMAT])
            _, clock_ms, sessions, rows = decode((directory / "entries.cbor").read_bytes())
        except ValueError:  # written by another backend
            super()._install(metadata, directory)
            return
        with tempfile.TemporaryDirectory() as scratch:
            checksum = write_portable(
                Path(scratch),
                last_included=metadata.last_included,
                clock_ms=clock_ms,
                entries=[tuple(row) for row in sorted(rows)],
                sessions=[SessionRow(*session) for session in sessions],
            )
            super()._install(attrs.evolve(metadata, checksum=checksum), Path(scratch))
        self.update_last_snapshot_metadata(metadata)


# SNAP-12


@breaks("SNAP-12", **TRANSIENT)
class CancelledSnapshotIsListed(HandWritten):
    """Publishes what it has begun, whatever becomes of it."""

    async def write_pinned(self, directory, last_included):
        try:
            return await super().write_pinned(directory, last_included)
        except asyncio.CancelledError:
            self.publish(last_included, hashlib.sha256(b"part").digest())
            raise


@breaks("SNAP-12")
class ForgottenThreadListsTheSnapshot(InParts, SoundFileMachine):
    """Goes away when it is cancelled; its thread goes on and publishes."""

    def start(self):
        self.pool = ThreadPoolExecutor(1)
        super().start()

    def stop(self):
        self.pool.shutdown()
        super().stop()

    async def write_pinned(self, directory, last_included):
        view = self._store.view()

        def work():
            checksum = self.write(view, directory, last_included)
            self.publish(last_included, checksum)
            return checksum

        return await asyncio.wrap_future(self.pool.submit(work))


@breaks("SNAP-12", **TRANSIENT)
class FailedSnapshotIsListed(HandWritten):
    """Publishes the metadata before there is anything."""

    async def write_pinned(self, directory, last_included):
        self.publish(last_included, hashlib.sha256(b"begun").digest())
        return await super().write_pinned(directory, last_included)


@breaks("SNAP-12", **TRANSIENT)
class FailedSnapshotForgetsTheNewest(HandWritten):
    """Drops the former metadata when it begins."""

    async def write_pinned(self, directory, last_included):
        self._snapshot = None
        return await super().write_pinned(directory, last_included)


@breaks("SNAP-12", **TRANSIENT)
class FailedSnapshotBlocksTheNext(HandWritten):
    """Notes that a snapshot is under way, and forgets to unnote it on failure."""

    writing = False

    async def write_pinned(self, directory, last_included):
        if self.writing:
            raise ConcurrentApplyError("a snapshot is being written")
        self.writing = True
        checksum = await super().write_pinned(directory, last_included)
        self.writing = False
        return checksum


@breaks("SNAP-12", **TRANSIENT)
class FailedSnapshotEmptiesTheState(HandWritten):
    """Starts afresh when a snapshot fails."""

    async def write_pinned(self, directory, last_included):
        try:
            return await super().write_pinned(directory, last_included)
        except Exception:
            with contextlib.suppress(Exception):
                await self.reset()
            raise


# SNAP-13


@breaks("SNAP-13", keeps_state_in_memory=False)
class SnapshotGatheredInMemory(InParts, SoundSQLiteMachine):
    """Reads the whole state before it writes the first byte."""

    def entries(self, view, timed_keys):
        return list(super().entries(view, timed_keys))


@breaks("SNAP-13", keeps_state_in_memory=False)
class SnapshotLoadedIntoMemory(SoundSQLiteMachine):
    """Reads the whole snapshot before it changes anything."""

    def _install(self, metadata, directory):
        blocks = list(read_portable(directory).blocks)
        super()._install(metadata, directory)
        blocks.clear()
