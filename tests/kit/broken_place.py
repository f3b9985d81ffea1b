"""Machines broken in their place in the log (LOG-1 to LOG-4)."""

from __future__ import annotations

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks
from buffered_store import BufferedStore, SoundBufferedMachine

from dengine_sm.bookkeeping import TermHistory, check_advance
from dengine_sm.codec import encode
from dengine_sm.errors import LogGapError, LogOrderError
from dengine_sm.kv import KeyValueStateMachine, WriteBatch
from dengine_sm.kv.rows import APPLIED, TERMS
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
