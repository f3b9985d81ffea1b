"""Machines broken in how they apply chunks: APPLY-1 to APPLY-4."""

from __future__ import annotations

import asyncio
import time

import attrs
from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks

from dengine_sm.backends.file_store import FileStore, _encode_batch
from dengine_sm.bookkeeping import check_chunk
from dengine_sm.codec import encode
from dengine_sm.errors import LogGapError, LogOrderError
from dengine_sm.kv import (
    KeyValueStateMachine,
    RamStore,
)
from dengine_sm.kv.execution import Execution
from dengine_sm.model import Durability, LogId, Outcome

TRANSIENT = Durability.TRANSIENT


class _WithExecution(SoundMemoryMachine):
    """Executes with a class of its own."""

    execution: type[Execution] = Execution

    def _new_execution(self):
        return self.execution(
            self._store,
            self._limits,
            clock_ms=self._clock_ms,
            timed_keys=self._timed_keys,
            next_deadline=self._next_deadline,
            sessions=self._session_count,
        )


# Results


@breaks("APPLY-1", durability=TRANSIENT)
class NumbersResultsFromTheChunk(SoundMemoryMachine):
    """Gives results the position in their chunk for an index."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(chunk)
        return [attrs.evolve(r, index=position) for position, r in enumerate(results, start=1)]


@breaks("APPLY-1", durability=TRANSIENT)
class DropsTheResultsOfNoOps(SoundMemoryMachine):
    """Returns no result for an entry without a command."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(chunk)
        return [r for entry, r in zip(chunk, results, strict=True) if entry.data]


@breaks("APPLY-1", durability=TRANSIENT)
class DropsTheLastResultOfMixedChunks(SoundMemoryMachine):
    """Loses one result when a chunk has duplicates in front."""

    async def apply_chunk(self, chunk):
        results = list(await super().apply_chunk(chunk))
        is_mixed = results and results[0].outcome is Outcome.DUPLICATE
        return results[:-1] if is_mixed and len(results) > 1 else results


@breaks("APPLY-1", durability=TRANSIENT)
class ReusesItsResultList(SoundMemoryMachine):
    """Fills the same list of results at every call."""

    def __init__(self, directory):
        super().__init__(directory)
        self._results = []

    async def apply_chunk(self, chunk):
        self._results[:] = await super().apply_chunk(chunk)
        return self._results


@breaks("APPLY-1", durability=TRANSIENT)
class SaysAppliedToFailedSwaps(SoundMemoryMachine):
    """Reports APPLIED for what was rejected."""

    async def apply_chunk(self, chunk):
        return [
            attrs.evolve(r, outcome=Outcome.APPLIED) if r.outcome is Outcome.REJECTED else r
            for r in await super().apply_chunk(chunk)
        ]


# State and applied id


@breaks("APPLY-2", durability=TRANSIENT)
class AppliedIdLagsByOneChunk(SoundMemoryMachine):
    """Shows the applied id of the chunk before, except to itself."""

    _shown = None

    def last_applied(self):
        real = super().last_applied()
        return real if self._shown is None else self._shown

    async def apply_chunk(self, chunk):
        self._shown, before = None, super().last_applied()
        try:
            return await super().apply_chunk(chunk)
        finally:
            self._shown = before


@breaks("APPLY-2", durability=TRANSIENT)
class PublishesTheIdBeforeTheState(SoundMemoryMachine):
    """Sets the applied id, lets others run, then changes the state."""

    _early = LogId.ZERO

    def last_applied(self):
        return max(self._early, super().last_applied())

    def _commit(self, execution, applied, terms):
        self._early = applied
        time.sleep(0)
        super()._commit(execution, applied, terms)


@breaks("APPLY-2", durability=TRANSIENT)
class PublishesTheIdAfterTheState(SoundMemoryMachine):
    """Changes the state, then remembers its id."""

    def _load_bookkeeping(self):
        super()._load_bookkeeping()
        self._late = super().last_applied()

    def last_applied(self):
        super().last_applied()
        return self._late

    def _commit(self, execution, applied, terms):
        super()._commit(execution, applied, terms)
        self._late = applied


@breaks("APPLY-2", durability=TRANSIENT)
class KeepsTheIdWhenNothingChanged(SoundMemoryMachine):
    """Leaves the applied id alone when no entry of a chunk changed a key."""

    def _commit(self, execution, applied, terms):
        if execution.batch.data:
            super()._commit(execution, applied, terms)


class _TwoLocksStore(RamStore):
    def write(self, batch):
        data, internal = self._maps()
        with self.lock:
            data.write(batch.data)
        with self.lock:
            internal.write(batch.internal)


@breaks("APPLY-2", durability=TRANSIENT)
def writes_data_and_id_one_after_the_other(_directory):
    """Takes the lock twice: for the data, then for the applied id."""
    return KeyValueStateMachine(_TwoLocksStore(), limits=LIMITS)


@breaks("APPLY-2", durability=TRANSIENT)
class ShowsTheStateBetweenItsAwaits(SoundMemoryMachine):
    """Writes the data, waits for the event loop, then writes the applied id."""

    async def apply_chunk(self, chunk):
        start = check_chunk(chunk, self.last_applied())
        if start < len(chunk):
            execution = self._new_execution()
            execution.run(chunk[start:])
            with self._store.lock:
                self._store._data.write(execution.batch.data)
            await asyncio.sleep(0)
        return await super().apply_chunk(chunk)


# All or nothing


@breaks("APPLY-3", durability=TRANSIENT)
class AppliesEntryByEntry(SoundMemoryMachine):
    """Finds out in the middle of a chunk that it should not have begun."""

    async def apply_chunk(self, chunk):
        results = []
        for entry in chunk:
            results += await super().apply_chunk([entry])
        return results


@breaks("APPLY-3", durability=TRANSIENT)
class AdvancesTheIdInAnyCase(SoundMemoryMachine):
    """Moves the applied id on in `finally`, whatever happened."""

    async def apply_chunk(self, chunk):
        reached = None
        try:
            results = await super().apply_chunk(chunk)
            reached = self.last_applied()
            return results
        finally:
            applied = self.last_applied()
            if reached is None:
                self.update_last_applied(LogId(applied.term, applied.index + 1))


@breaks("APPLY-3")
class GoesOnAfterAFailedWrite(SoundFileMachine):
    """Tries the disk again after it refused a write."""

    def _require_sound(self):
        pass


@breaks("APPLY-3")
class ForgetsItsPoisonAtOnce(SoundFileMachine):
    """Refuses the first apply after an I/O failure only."""

    def _require_sound(self):
        try:
            super()._require_sound()
        finally:
            self._poisoned = None


@breaks("APPLY-3")
class IsPoisonedForGood(SoundFileMachine):
    """Refuses applies after an I/O failure even when stopped and started."""

    def start(self):
        poison = self._poisoned
        super().start()
        self._poisoned = poison


class _MemoryFirstStore(FileStore):
    def write(self, batch):
        self._ram.write(batch)
        super().write(batch)


@breaks("APPLY-3")
class ChangesMemoryBeforeTheLog(SoundFileMachine):
    """Shows a chunk that the disk then refuses."""

    def __init__(self, directory):
        store = _MemoryFirstStore(directory, segment_bytes=8192, checkpoint_bytes=16384)
        KeyValueStateMachine.__init__(self, store, limits=LIMITS)


@breaks("APPLY-3")
class LogsAChunkBeforeCheckingIt(SoundFileMachine):
    """Leaves the good beginning of a refused chunk in its log."""

    async def apply_chunk(self, chunk):
        try:
            return await super().apply_chunk(chunk)
        except (LogGapError, LogOrderError):
            good = chunk[:1]
            if good and good[0].index == self.last_applied().index + 1:
                execution = self._new_execution()
                execution.run(good)
                row = [good[0].term, good[0].index, execution.clock_ms, execution.timed_keys]
                execution.batch.internal[b"m/applied"] = encode(row)
                self._store._log.append(_encode_batch(execution.batch))
                self._store._log.sync()
            raise


# Chunks


class _BlindExecution(Execution):
    def _live(self, key):
        return self._store.get(key)


@breaks("APPLY-4", durability=TRANSIENT)
class SwapsSeeTheStateBeforeTheChunk(_WithExecution):
    """Compares with what the store holds, not with what the chunk has done so far."""

    execution = _BlindExecution


@breaks("APPLY-4", durability=TRANSIENT)
class SortsTheCommandsOfLongChunks(SoundMemoryMachine):
    """Carries out sixteen commands and more in the order that is cheapest for it."""

    async def apply_chunk(self, chunk):
        if len(chunk) >= 16:
            data = sorted(entry.data for entry in chunk)
            chunk = [attrs.evolve(e, data=d) for e, d in zip(chunk, data, strict=True)]
        return await super().apply_chunk(chunk)


@breaks("APPLY-4", durability=TRANSIENT)
class LooksAtTheTimeOnceAChunk(SoundMemoryMachine):
    """Gives all entries of a chunk the time of the last one."""

    async def apply_chunk(self, chunk):
        now_ms = max((entry.timestamp_ms for entry in chunk), default=0)
        stamped = [attrs.evolve(entry, timestamp_ms=now_ms) for entry in chunk]
        return await super().apply_chunk(stamped)
