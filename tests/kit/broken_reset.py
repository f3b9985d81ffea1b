"""Machines broken in going back to the initial state (RESET-1, RESET-2)."""

from __future__ import annotations

import asyncio
import shutil

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks
from buffered_store import BufferedStore

from dengine_sm.bookkeeping import TermHistory
from dengine_sm.codec import encode, pack_snapshot_metadata
from dengine_sm.kv import KeyValueStateMachine, WriteBatch
from dengine_sm.kv.execution import AFTER_DEADLINE_OF, AFTER_DUE_AT, DEADLINE_OF, DUE_AT
from dengine_sm.kv.rows import APPLIED, SNAPSHOT, TERMS
from dengine_sm.model import Durability

TRANSIENT = Durability.TRANSIENT


# RESET-1


def keeping(machine, rows):
    """Reset, and keep some bookkeeping rows on disk."""
    return machine._workers.run("write", lambda: machine._replace([WriteBatch(internal=rows)]))


def rows_between(machine, *ranges):
    """Return the bookkeeping rows of some ranges."""
    return {key: row for range_ in ranges for key, row in machine._store.scan_internal(*range_)}


@breaks("RESET-1")
class ResetKeepsTheSnapshotOnDisk(SoundFileMachine):
    """Forgets the snapshot metadata in memory, and finds them again when it is started."""

    async def reset(self):
        rows = {}
        if self._snapshot is not None:
            rows[SNAPSHOT] = encode(pack_snapshot_metadata(self._snapshot))
        await keeping(self, rows)
        self._snapshot = None


@breaks("RESET-1", durability=TRANSIENT)
class ResetKeepsTheSnapshot(SoundMemoryMachine):
    """Still names the newest snapshot after a reset."""

    async def reset(self):
        snapshot = self._snapshot
        await super().reset()
        self._snapshot = snapshot


@breaks("RESET-1", durability=TRANSIENT)
class ResetKeepsDeadlines(SoundMemoryMachine):
    """Keeps the deadlines of keys that it forgets: keys of the next log die of them."""

    async def reset(self):
        self._require_running()
        rows = rows_between(self, (DEADLINE_OF, AFTER_DEADLINE_OF), (DUE_AT, AFTER_DUE_AT))
        await keeping(self, rows)


@breaks("RESET-1", durability=TRANSIENT)
class ResetKeepsTheClock(SoundMemoryMachine):
    """Goes on from the time of the log before."""

    async def reset(self):
        clock_ms = self._clock_ms
        await super().reset()
        self._clock_ms = clock_ms


@breaks("RESET-1", durability=TRANSIENT)
class ResetKeepsTerms(SoundMemoryMachine):
    """Goes on with the term history of the log before."""

    async def reset(self):
        terms = self._terms
        await super().reset()
        self._terms = terms


@breaks("RESET-1")
class ResetKeepsTermsOnDisk(SoundFileMachine):
    """Finds the term history of the log before when it is started."""

    async def reset(self):
        await keeping(self, {TERMS: encode(self._terms.pack())})
        self._terms = TermHistory()


class ResetInMemoryStore(BufferedStore):
    """Replaces everything in memory at once, and on disk with the next flush."""

    replaced = None

    def replace_all(self, batches):
        self._open_log()
        self.replaced = list(batches)
        self._ram.replace_all(self.replaced)
        self.pending.clear()

    def drain(self):
        if self.replaced is not None:
            replaced, self.replaced = self.replaced, None
            later, self.pending = self.pending, []
            now = self._ram._data, self._ram._internal
            super().replace_all(replaced)
            self._ram.swap(*now)
            self.pending = later
        super().drain()


@breaks("RESET-1")
class ResetInMemoryFirst(KeyValueStateMachine):
    """Resets the disk with the next flush only."""

    def __init__(self, directory):
        super().__init__(ResetInMemoryStore(directory), limits=LIMITS)

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        await super().apply_snapshot_from_file(metadata, snapshot_path)
        self._store.drain()


@breaks("RESET-1", durability=TRANSIENT)
class ResetStops(SoundMemoryMachine):
    """Is stopped after a reset."""

    async def reset(self):
        await super().reset()
        self.stop()


@breaks("RESET-1", durability=TRANSIENT)
class ResetKeepsEmptyKeys(SoundMemoryMachine):
    """Keeps the row whose key is empty, for which its loop over the keys does not look."""

    async def reset(self):
        self._require_running()
        kept = self.get(b"")
        rows = {} if kept is None else {b"": kept}
        await self._workers.run("write", lambda: self._replace([WriteBatch(rows)]))


# RESET-2


@breaks("RESET-2")
class ResetsRowByRow(SoundFileMachine):
    """Deletes its rows one by one, each durably."""

    async def reset(self):
        self._require_running()
        await asyncio.to_thread(self._delete_all)
        await super().reset()

    def _delete_all(self):
        for entry in self.scan_prefix(b"").entries:
            self._store.write(WriteBatch({entry[0]: None}))
            self._store.flush()


@breaks("RESET-2")
class ResetsItsPlaceFirst(SoundFileMachine):
    """Forgets its place in the log before it forgets the state."""

    async def reset(self):
        self._require_running()
        gone = {APPLIED: None, TERMS: None, SNAPSHOT: None}
        self._store.write(WriteBatch(internal=gone))
        self._store.flush()
        await super().reset()


@breaks("RESET-2")
class ResetsItsSnapshotFirst(SoundFileMachine):
    """Forgets which snapshot is the newest before anything else."""

    async def reset(self):
        self._require_running()
        self._store.write(WriteBatch(internal={SNAPSHOT: None}))
        await super().reset()


@breaks("RESET-2")
class ResetsByRemovingItsFiles(SoundFileMachine):
    """Removes its files and begins anew; killed meanwhile, it finds half of them."""

    def __init__(self, directory):
        super().__init__(directory, segment_bytes=512)

    async def reset(self):
        self._require_running()
        await asyncio.to_thread(self._begin_anew)

    def _begin_anew(self):
        store = self._store
        store.close()
        for path in sorted(store.directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "LOCK":
                path.unlink()
        store.open()
        self._load_bookkeeping()
