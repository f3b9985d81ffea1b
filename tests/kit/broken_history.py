"""Machines that are broken only after several things have happened, in the right order."""

from __future__ import annotations

from pathlib import Path

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks

from dengine_sm.backends.file_store import FileStore, _encode_batch
from dengine_sm.bookkeeping import TermHistory
from dengine_sm.kv import KeyValueStateMachine, WriteBatch
from dengine_sm.kv.rows import SNAPSHOT, TERMS
from dengine_sm.model import ApplyResult, Durability, LogId, Outcome

KILLS, NO_KILLS = "CRASH-1", "APPLY-4"


def is_install(batches):
    return any(batch.internal.get(SNAPSHOT) for batch in batches)


@breaks("RESET-1", found_by=KILLS)
class BringsBackTheMetadataOfAnInstall(SoundFileMachine):
    """Install, reset, restart: the metadata of the installed snapshot is there again."""

    installed = None

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        self.installed = self._store.get_internal(SNAPSHOT)

    async def reset(self):
        await super().reset()
        if self.installed is not None:
            self._store.write(WriteBatch(internal={SNAPSHOT: self.installed}))


class AppliesOldEntriesAgain:
    """Takes entries of which it knows no term, from before an install, for new ones."""

    async def apply_chunk(self, chunk):
        applied = self.last_applied()
        unknown = [e for e in chunk if e.index <= applied.index and not self.entry_term(e.index)]
        if not unknown:
            return await super().apply_chunk(chunk)
        execution = self._new_execution()
        execution.run(unknown)
        self._commit(execution, applied, None)
        results = [ApplyResult(e.index, Outcome.APPLIED) for e in unknown]
        return results + list(await super().apply_chunk(chunk[len(unknown) :]))


@breaks("APPLY-5", found_by=KILLS)
class AppliesEntriesFromBeforeTheSnapshot(AppliesOldEntriesAgain, SoundFileMachine):
    """A duplicate from before the installed snapshot is applied again."""


@breaks("APPLY-5", found_by=NO_KILLS, durability=Durability.TRANSIENT)
class AppliesEntriesFromBeforeTheSnapshotInMemory(AppliesOldEntriesAgain, SoundMemoryMachine):
    """The same in a machine that cannot be killed."""


@breaks("LOG-2", found_by=KILLS)
class KeepsTheTermsWhenItInstallsItsOwnState(SoundFileMachine):
    """Installing a snapshot of exactly the applied id leaves the terms before it."""

    def _install(self, metadata, directory):
        terms = self._terms
        same = metadata.last_included == self.last_applied()
        super()._install(metadata, directory)
        if same:
            self._terms = terms


@breaks("LOG-2", found_by=KILLS)
class InstallsTermsInMemoryOnly(SoundFileMachine):
    """Install, restart: the term of the snapshot's last entry is not known any more."""

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        self._store.write(WriteBatch(internal={TERMS: None}))


@breaks("LOG-2", found_by=KILLS)
class ForgetsTheTermOfAnAdvance(SoundFileMachine):
    """Advance into a new term, restart: that entry has the term before it."""

    def update_last_applied(self, last_applied: LogId) -> None:
        row = self._store.get_internal(TERMS)
        super().update_last_applied(last_applied)
        self._store.write(WriteBatch(internal={TERMS: row}))

    def start(self):
        super().start()
        if self._terms.last_term == 0:
            self._terms = TermHistory([1], [1])


class SmallFileStore(FileStore):
    """Remembers what its process has seen."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, segment_bytes=8192, checkpoint_bytes=16384)


class GhostStore(SmallFileStore):
    """With the first write after an install, the log gets the rows that the snapshot lacks."""

    def open(self):
        self.ever, self.ghosts, self.due = {}, {}, False
        super().open()

    def write(self, batch):
        self.ever.update({k: v for k, v in batch.data.items() if v is not None})
        super().write(batch)
        if self.due:
            # Not within the install: a kill in it would be a matter of SNAP-7.
            self.due = False
            self._log.append(_encode_batch(WriteBatch(self.ghosts)))

    def replace_all(self, batches):
        batches = list(batches)
        super().replace_all(batches)
        if is_install(batches):
            here = {key for batch in batches for key in batch.data}
            self.ghosts = {k: v for k, v in self.ever.items() if k not in here}
            self.due = bool(self.ghosts)

    def close(self):
        if self._log is not None and self.ghosts:
            live = dict(self.scan(b"", None))
            self._log.append(_encode_batch(WriteBatch({k: live.get(k) for k in self.ghosts})))
        super().close()


@breaks("CRASH-1", found_by=KILLS)
class BringsBackRowsThatAnInstallReplaced(KeyValueStateMachine):
    """Reset, install, kill: keys from before the reset are there again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(GhostStore(directory), limits=LIMITS)


class HoldingStore(SmallFileStore):
    """After an install it writes nothing until the next flush."""

    def open(self):
        self.held = None
        super().open()

    def replace_all(self, batches):
        batches = list(batches)
        super().replace_all(batches)
        self.held = [] if is_install(batches) else None

    def write(self, batch):
        if self.held is None:
            super().write(batch)
            return
        self.held.append(_encode_batch(batch))
        self._ram.write(batch)

    def flush(self):
        for record in self.held or ():
            self._log.append(record)
        self.held = None
        super().flush()


@breaks("LIFE-4", found_by=KILLS)
class ForgetsAtStopWhatFollowedAnInstall(KeyValueStateMachine):
    """Install, apply, stop without a flush: back to the snapshot."""

    def __init__(self, directory: Path) -> None:
        super().__init__(HoldingStore(directory), limits=LIMITS)
