"""Machines broken in their place in the log, and in going back to the start (LOG, RESET)."""

from __future__ import annotations

import asyncio
import shutil

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks
from buffered_store import BufferedStore, SoundBufferedMachine

from dengine_sm.bookkeeping import TermHistory, check_advance
from dengine_sm.codec import encode, pack_snapshot_metadata
from dengine_sm.errors import LogGapError, LogOrderError
from dengine_sm.kv import KeyValueStateMachine, WriteBatch
from dengine_sm.kv.execution import AFTER_DEADLINE_OF, AFTER_DUE_AT, DEADLINE_OF, DUE_AT
from dengine_sm.kv.machine import APPLIED, SNAPSHOT, TERMS
from dengine_sm.model import Durability, LogId

TRANSIENT = Durability.TRANSIENT


# LOG-1


@breaks("LOG-1", durability=TRANSIENT)
class IgnoresEarlierIds(SoundMemoryMachine):
    """Passes over an earlier id without a word."""

    def update_last_applied(self, last_applied):
        if self.last_applied() < last_applied:
            super().update_last_applied(last_applied)
        self._require_running()


@breaks("LOG-1", durability=TRANSIENT)
class RefusesItsOwnId(SoundMemoryMachine):
    """Refuses to advance to the id that is applied already."""

    def update_last_applied(self, last_applied):
        if last_applied == self.last_applied():
            raise LogOrderError("expected a higher index")
        super().update_last_applied(last_applied)


@breaks("LOG-1", durability=TRANSIENT)
class GoesBackWhereTermsAllow(SoundMemoryMachine):
    """Takes an id of an earlier term if its index is higher."""

    def update_last_applied(self, last_applied):
        current = self.last_applied()
        if last_applied.index > current.index and last_applied.term < current.term:
            row = encode([last_applied.term, last_applied.index, self._clock_ms, self._timed_keys])
            self._write(WriteBatch(internal={APPLIED: row}))
            return
        super().update_last_applied(last_applied)


@breaks("LOG-1")
class PersistsWhateverItIsTold(SoundFileMachine):
    """Guards update_last_applied, and not persist_last_applied."""

    def persist_last_applied(self, last_applied):
        self._require_running()
        current = self.last_applied()
        if check_advance(min(current, last_applied), last_applied):
            super().persist_last_applied(last_applied)
            return
        if last_applied < current:
            row = encode([last_applied.term, last_applied.index, self._clock_ms, self._timed_keys])
            self._write(WriteBatch(internal={APPLIED: row}))
        self.flush()


@breaks("LOG-1", durability=TRANSIENT)
class AppliesWhereItLeftOff(SoundMemoryMachine):
    """Expects entry after entry, those that an advance has passed too."""

    following = 0

    async def apply_chunk(self, chunk):
        passed = self.last_applied().index - self.following
        if self.following and passed and chunk and chunk[-1].index > self.last_applied().index:
            raise LogGapError("an entry is missing")
        results = await super().apply_chunk(chunk)
        self.following = self.last_applied().index
        return results

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        await super().apply_snapshot_from_file(metadata, snapshot_path)
        self.following = 0

    async def reset(self):
        await super().reset()
        self.following = 0

    def stop(self):
        super().stop()
        self.following = 0


@breaks("LOG-1", durability=TRANSIENT)
class AdvancesOneIndexOnly(SoundMemoryMachine):
    """Advances by one, however far it is told to."""

    def update_last_applied(self, last_applied):
        current = self.last_applied()
        if last_applied.index > current.index + 1:
            last_applied = LogId(last_applied.term, current.index + 1)
        super().update_last_applied(last_applied)


# LOG-2


@breaks("LOG-2", durability=TRANSIENT)
class TermsAreOneEntryLate(SoundMemoryMachine):
    """Gives the term of the entry before."""

    def entry_term(self, entry_id):
        term = super().entry_term(entry_id)
        return super().entry_term(entry_id - 1) or term if term else None


@breaks("LOG-2", durability=TRANSIENT)
class TheNewestTermIsEverybodys(SoundMemoryMachine):
    """Gives the newest term for every entry."""

    def entry_term(self, entry_id):
        applied = self.last_applied()
        return applied.term if 1 <= entry_id <= applied.index else None


@breaks("LOG-2", durability=TRANSIENT)
class KnowsTheTermOfTheNext(SoundMemoryMachine):
    """Gives the newest term beyond the applied index as well."""

    def entry_term(self, entry_id):
        applied = self.last_applied()
        return applied.term if applied.index < entry_id else super().entry_term(entry_id)


@breaks("LOG-2", durability=TRANSIENT)
class RemembersTenTerms(SoundMemoryMachine):
    """Knows the terms of the last ten entries."""

    def entry_term(self, entry_id):
        is_long_ago = entry_id <= self.last_applied().index - 10
        return None if is_long_ago else super().entry_term(entry_id)


@breaks("LOG-2")
class BeginsItsTermsAtEachStart(SoundFileMachine):
    """Knows no term from before it was started but the newest."""

    def start(self):
        is_new = not self.is_running()
        super().start()
        if is_new:
            self._terms = TermHistory.starting_at(self.last_applied())


@breaks("LOG-2", durability=TRANSIENT)
class ASnapshotEndsItsTerms(SoundMemoryMachine):
    """Forgets the terms below a snapshot that it has written, not installed."""

    async def generate_snapshot_data(self, new_snapshot_dir, last_included):
        checksum = await super().generate_snapshot_data(new_snapshot_dir, last_included)
        self._terms = TermHistory.starting_at(last_included)
        return checksum


@breaks("LOG-2", durability=TRANSIENT)
class KeepsTermsBelowAnInstall(SoundMemoryMachine):
    """Knows the terms of entries that an installed snapshot has replaced."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        before, applied = self._terms, self.last_applied()
        await super().apply_snapshot_from_file(metadata, snapshot_path)
        if applied != LogId.ZERO:
            before.skip_to(applied, metadata.last_included)
            self._terms = before


@breaks("LOG-2", durability=TRANSIENT)
class KnowsNothingBelowAnInstallNorAtIt(SoundMemoryMachine):
    """Does not know the term of the entry that the installed snapshot ends with."""

    installed = 0

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        await super().apply_snapshot_from_file(metadata, snapshot_path)
        self.installed = metadata.last_included.index

    def entry_term(self, entry_id):
        return None if entry_id == self.installed else super().entry_term(entry_id)


@breaks("LOG-2", durability=TRANSIENT)
class KeepsTermsInTwoBytes(SoundMemoryMachine):
    """Cuts terms to 16 bits."""

    def entry_term(self, entry_id):
        term = super().entry_term(entry_id)
        return term if term is None else term & 0xFFFF


# LOG-3


@breaks("LOG-3")
class PersistsInMemory(SoundBufferedMachine):
    """Advances the id in memory when it is to be durable."""

    def persist_last_applied(self, last_applied):
        self.update_last_applied(last_applied)


@breaks("LOG-3")
class HasNothingToPersist(SoundBufferedMachine):
    """Takes persist_last_applied of the applied id for a no-op, whatever is not durable yet."""

    def persist_last_applied(self, last_applied):
        if last_applied != self.last_applied():
            super().persist_last_applied(last_applied)


class IdAloneStore(BufferedStore):
    """Can log the applied id without what came before."""

    def flush_id_alone(self):
        with self.draining:
            row = self._ram.get_internal(APPLIED)
            kept, self.pending = self.pending, []
        super().write(WriteBatch(internal={APPLIED: row}))
        super().flush()
        with self.draining:
            self.pending = kept


@breaks("LOG-3")
class PersistsTheIdAlone(KeyValueStateMachine):
    """Makes the id durable, and not the entries below it."""

    def __init__(self, directory):
        super().__init__(IdAloneStore(directory), limits=LIMITS)

    def persist_last_applied(self, last_applied):
        self.update_last_applied(last_applied)
        self._store.flush_id_alone()


# LOG-4


@breaks("LOG-4")
class HardStateHasNoSnapshot(SoundFileMachine):
    """Leaves the snapshot metadata out when it saves the hard state."""

    def save_hard_state(self):
        self.flush()

    def persist_last_snapshot_metadata(self, snapshot_metadata):
        super().update_last_snapshot_metadata(snapshot_metadata)
        super().save_hard_state()


@breaks("LOG-4")
class HardStateIsInMemory(SoundBufferedMachine):
    """Does nothing to save the hard state, unless metadata are to be persisted."""

    def save_hard_state(self):
        self._require_running()

    def persist_last_snapshot_metadata(self, snapshot_metadata):
        super().update_last_snapshot_metadata(snapshot_metadata)
        super().save_hard_state()


@breaks("LOG-4")
class HardStateHasNoTerms(SoundFileMachine):
    """Writes the term history when it is flushed or stopped, and not with the hard state."""

    is_saving = False

    def _write(self, batch):
        batch.internal.pop(TERMS, None)
        super()._write(batch)

    def _write_terms(self):
        if self.is_running() and not self.is_saving:
            super()._write(WriteBatch(internal={TERMS: encode(self._terms.pack())}))

    def save_hard_state(self):
        self.is_saving = True
        try:
            super().save_hard_state()
        finally:
            self.is_saving = False

    def flush(self):
        self._require_running()
        self._write_terms()
        super().flush()

    def stop(self):
        self._write_terms()
        super().stop()


@breaks("LOG-4")
class HardStateOnlyWithNews(SoundBufferedMachine):
    """Saves the hard state only if the snapshot metadata have changed."""

    def save_hard_state(self):
        self._require_running()
        if not self._snapshot_saved:
            super().save_hard_state()


# RESET-1


def keeping(machine, rows):
    """Reset, and keep some bookkeeping rows on disk."""
    return machine._in_worker("write", lambda: machine._replace([WriteBatch(internal=rows)]))


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
        await self._in_worker("write", lambda: self._replace([WriteBatch(rows)]))


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
