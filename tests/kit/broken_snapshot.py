"""Machines broken in writing a snapshot (SNAP-1 to SNAP-3)."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
from broken_base import SoundMemoryMachine, breaks

from dengine_sm.codec import decode, encode, pack_log_id
from dengine_sm.errors import ConcurrentApplyError, SnapshotLabelError
from dengine_sm.kv.rows import APPLIED, entries_of
from dengine_sm.kv.sessions import stored_sessions
from dengine_sm.model import Durability, LogId, SnapshotMetadata
from dengine_sm.snapshot import (
    PORTABLE_FORMAT,
    SessionRow,
    read_manifest,
    write_portable,
)

TRANSIENT = {"durability": Durability.TRANSIENT}


class InParts:
    """Writes snapshots as a sound machine does, in parts to be replaced."""

    async def generate_snapshot_data(self, new_snapshot_dir: Path, last_included: LogId) -> bytes:
        self._require_running()
        self.check_label(last_included)
        checksum = await self.write_pinned(new_snapshot_dir, last_included)
        self.publish(last_included, checksum)
        return checksum

    def check_label(self, last_included: LogId) -> None:
        applied = self.last_applied()
        if last_included != applied:
            raise SnapshotLabelError(f"label {last_included}: expected {applied}")

    async def write_pinned(self, directory: Path, last_included: LogId) -> bytes:
        view = self._store.view()
        try:
            return await asyncio.to_thread(self.write, view, directory, last_included)
        finally:
            view.close()

    def write(self, view: Any, directory: Path, last_included: LogId) -> bytes:
        clock_ms, timed_keys = self.clock_of(view)
        return write_portable(
            directory,
            last_included=last_included,
            clock_ms=clock_ms,
            entries=self.entries(view, timed_keys),
            sessions=self.sessions(view),
        )

    def sessions(self, view: Any) -> list[SessionRow]:
        return list(stored_sessions(view))

    def clock_of(self, view: Any) -> tuple[int, int]:
        row = view.get_internal(APPLIED)
        return decode(row)[2:] if row else (0, 0)

    def entries(self, view: Any, timed_keys: int) -> Iterable[Any]:
        return entries_of(view, timed_keys)

    def publish(self, last_included: LogId, checksum: bytes) -> None:
        self.update_last_snapshot_metadata(
            SnapshotMetadata(last_included, checksum, PORTABLE_FORMAT)
        )


class HandWritten(InParts, SoundMemoryMachine):
    """The backend `memory`, with those parts."""


# SNAP-1


@breaks("SNAP-1", **TRANSIENT)
class LabelNotLookedAt(HandWritten):
    """Writes the present state under any label."""

    def check_label(self, last_included):
        pass


@breaks("SNAP-1", **TRANSIENT)
class LabelOffByTheRetained(HandWritten):
    """Lets the label lag behind by entries to be retained, and writes everything."""

    def check_label(self, last_included):
        if last_included.index not in (self.last_applied().index - 1, self.last_applied().index):
            super().check_label(last_included)


@breaks("SNAP-1", **TRANSIENT)
class TermOfTheLabelIgnored(HandWritten):
    """Compares the label's index only."""

    def check_label(self, last_included):
        super().check_label(LogId(self.last_applied().term, last_included.index))


@breaks("SNAP-1", **TRANSIENT)
class WritesBeforeItLooksAtTheLabel(HandWritten):
    """Refuses a wrong label, and leaves files behind."""

    async def generate_snapshot_data(self, new_snapshot_dir, last_included):
        new_snapshot_dir.mkdir(exist_ok=True)
        header = new_snapshot_dir / "header"
        header.write_bytes(encode(pack_log_id(last_included)))
        self.check_label(last_included)
        header.unlink()
        return await super().generate_snapshot_data(new_snapshot_dir, last_included)


@breaks("SNAP-1", **TRANSIENT)
class ViewPinnedAfterTheFirstSuspension(HandWritten):
    """Gives way to others between the label and the view."""

    async def write_pinned(self, directory, last_included):
        await asyncio.sleep(0)
        return await super().write_pinned(directory, last_included)


@breaks("SNAP-1", **TRANSIENT)
class ViewPinnedByTheWorker(HandWritten):
    """Lets the thread that writes pin the view, whenever it comes to run."""

    async def write_pinned(self, directory, last_included):
        def work():
            view = self._store.view()
            try:
                return self.write(view, directory, last_included)
            finally:
                view.close()

        return await asyncio.to_thread(work)


@breaks("SNAP-1", **TRANSIENT)
class ContentReadWhileItIsWritten(HandWritten):
    """Pins the keys, and reads every value when its turn has come."""

    def entries(self, view, timed_keys):
        for key, _, deadline_ms in entries_of(view, timed_keys):
            value = self._store.get(key)
            if value is not None:
                yield key, value, deadline_ms


@breaks("SNAP-1", **TRANSIENT)
class LabelForgetsEntriesWithoutACommand(HandWritten):
    """Knows the ids of commands only, not those that update_last_applied advanced to."""

    advanced: LogId | None = None
    commanded = LogId.ZERO

    def update_last_applied(self, last_applied):
        self.commanded = self.last_applied()
        super().update_last_applied(last_applied)
        self.advanced = last_applied

    def check_label(self, last_included):
        if self.last_applied() == self.advanced:
            if last_included != self.commanded:
                raise SnapshotLabelError(f"label {last_included}: expected {self.commanded}")
        else:
            super().check_label(last_included)


# SNAP-2


@breaks("SNAP-2", **TRANSIENT)
class ZeroChecksum(HandWritten):
    """Returns 32 zero bytes."""

    async def generate_snapshot_data(self, new_snapshot_dir, last_included):
        await super().generate_snapshot_data(new_snapshot_dir, last_included)
        return bytes(32)


class OwnChecksum(HandWritten):
    """Has a checksum of its own, which it does not look at when it installs."""

    async def generate_snapshot_data(self, new_snapshot_dir, last_included):
        await super().generate_snapshot_data(new_snapshot_dir, last_included)
        checksum = self.checksum_of(last_included)
        self.publish(last_included, checksum)
        return checksum

    def checksum_of(self, last_included: LogId) -> bytes:
        raise NotImplementedError

    def _install(self, metadata, directory):
        _, checksum = read_manifest(directory)
        super()._install(attrs.evolve(metadata, checksum=checksum), directory)
        self.update_last_snapshot_metadata(metadata)


@breaks("SNAP-2", **TRANSIENT)
class ConstantChecksum(OwnChecksum):
    """Returns the same checksum for every snapshot."""

    def checksum_of(self, last_included):
        return hashlib.sha256(b"snapshot").digest()


@breaks("SNAP-2", **TRANSIENT)
class ChecksumOfTheLabel(OwnChecksum):
    """Computes the checksum of the label instead of the content."""

    def checksum_of(self, last_included):
        return hashlib.sha256(repr(last_included).encode()).digest()


@breaks("SNAP-2", **TRANSIENT)
class MetadataNotUpdated(HandWritten):
    """Leaves snapshot_metadata() to the caller."""

    def publish(self, last_included, checksum):
        pass


@breaks("SNAP-2", **TRANSIENT)
class FirstMetadataStays(HandWritten):
    """Sets snapshot_metadata() for the first snapshot only."""

    def publish(self, last_included, checksum):
        if self.snapshot_metadata() is None:
            super().publish(last_included, checksum)


@breaks("SNAP-2", **TRANSIENT)
class MetadataOfTheLaterState(HandWritten):
    """Labels the metadata with what is applied when the writing ends."""

    def publish(self, last_included, checksum):
        super().publish(self.last_applied(), checksum)


# SNAP-3


@breaks("SNAP-3", **TRANSIENT)
class BlocksTheLoopWhileItWrites(HandWritten):
    """Writes in the event loop, after one suspension for good measure."""

    async def write_pinned(self, directory, last_included):
        view = self._store.view()
        await asyncio.sleep(0)
        try:
            return self.write(view, directory, last_included)
        finally:
            view.close()


@breaks("SNAP-3", **TRANSIENT)
class AppliesWaitForTheSnapshot(HandWritten):
    """Holds the lock of apply_chunk while it writes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.busy = asyncio.Lock()

    async def apply_chunk(self, chunk):
        async with self.busy:
            return await super().apply_chunk(chunk)

    async def write_pinned(self, directory, last_included):
        async with self.busy:
            return await super().write_pinned(directory, last_included)


@breaks("SNAP-3", **TRANSIENT)
class ReadsWaitForTheSnapshot(HandWritten):
    """Holds the lock of get, of a thread, while it writes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.busy = threading.Lock()

    def get(self, key):
        with self.busy:
            return self._store.get(key)

    def write(self, view, directory, last_included):
        with self.busy:
            return super().write(view, directory, last_included)


@breaks("SNAP-3", **TRANSIENT)
class RefusesAppliesWhileItWrites(HandWritten):
    """Takes a snapshot for a change that excludes all others."""

    writing = False

    async def apply_chunk(self, chunk):
        if self.writing:
            raise ConcurrentApplyError("a snapshot is being written; nothing was applied")
        return await super().apply_chunk(chunk)

    async def write_pinned(self, directory, last_included):
        self.writing = True
        try:
            return await super().write_pinned(directory, last_included)
        finally:
            self.writing = False
