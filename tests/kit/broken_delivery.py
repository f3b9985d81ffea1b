"""Machines broken by what is delivered, and how: APPLY-5 to APPLY-10."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise

import attrs
from broken_apply import TRANSIENT
from broken_base import SoundMemoryMachine, breaks

from dengine_sm.bookkeeping import check_chunk
from dengine_sm.codec import decode_prefix, encode
from dengine_sm.errors import LogGapError, LogOrderError, StorageError
from dengine_sm.kv import (
    Delete,
    Put,
    decode_command,
    encode_command,
)
from dengine_sm.kv.results import ChunkResults
from dengine_sm.model import ApplyResult, Outcome

# Duplicates


@breaks("APPLY-5", durability=TRANSIENT)
class AppliesDuplicatesAgain(SoundMemoryMachine):
    """Says DUPLICATE and carries the command out nevertheless."""

    async def apply_chunk(self, chunk):
        applied = self.last_applied().index
        old = [entry for entry in chunk if entry.index <= applied]
        if old:
            execution = self._new_execution()
            execution.run(old)
            with self._store.lock:
                self._store._data.write(execution.batch.data)
        return await super().apply_chunk(chunk)


@breaks("APPLY-5", durability=TRANSIENT)
class ComparesTheContentOfDuplicates(SoundMemoryMachine):
    """Raises when a duplicate is not what it was the first time."""

    def __init__(self, directory):
        super().__init__(directory)
        self._seen = {}

    async def apply_chunk(self, chunk):
        for entry in chunk:
            if self._seen.setdefault(entry.index, entry) != entry:
                raise LogOrderError(f"entry {entry.log_id} is not what it was")
        return await super().apply_chunk(chunk)


@breaks("APPLY-5", durability=TRANSIENT)
class CallsDuplicatesApplied(SoundMemoryMachine):
    """Answers a duplicate as if it had just been applied."""

    async def apply_chunk(self, chunk):
        return [
            ApplyResult(r.index, Outcome.APPLIED) if r.outcome is Outcome.DUPLICATE else r
            for r in await super().apply_chunk(chunk)
        ]


@breaks("APPLY-5", durability=TRANSIENT)
class DuplicatesMoveTheClock(SoundMemoryMachine):
    """Takes the time from every entry delivered, duplicates too."""

    async def apply_chunk(self, chunk):
        if self._running:
            self._clock_ms = max([self._clock_ms, *(entry.timestamp_ms for entry in chunk)])
        return await super().apply_chunk(chunk)


@breaks("APPLY-5", durability=TRANSIENT)
class RefusesChunksThatMix(SoundMemoryMachine):
    """Takes duplicates alone, or with one new entry, or new entries alone."""

    async def apply_chunk(self, chunk):
        applied = self.last_applied().index
        if chunk and chunk[0].index <= applied < chunk[-1].index - 1:
            raise LogGapError(f"chunk begins at {chunk[0].index}, applied is {applied}")
        return await super().apply_chunk(chunk)


# Gaps and order


@breaks("APPLY-6", durability=TRANSIENT)
class AcceptsGapsInsideAChunk(SoundMemoryMachine):
    """Looks at the first index of a chunk only."""

    async def apply_chunk(self, chunk):
        closed = [attrs.evolve(e, index=chunk[0].index + i) for i, e in enumerate(chunk)]
        return await super().apply_chunk(closed)


@breaks("APPLY-6", durability=TRANSIENT)
class AcceptsFallingTermsInsideAChunk(SoundMemoryMachine):
    """Compares the first term of a chunk with the last applied one, and no other."""

    async def apply_chunk(self, chunk):
        term, risen = 0, []
        for entry in chunk:
            term = max(term, entry.term)
            risen.append(attrs.evolve(entry, term=term))
        return await super().apply_chunk(risen)


@breaks("APPLY-6", durability=TRANSIENT)
class AcceptsAnIndexTwice(SoundMemoryMachine):
    """Drops the second of two entries with one index."""

    async def apply_chunk(self, chunk):
        twice = {later.index for before, later in pairwise(chunk) if before.index == later.index}
        seen, single = set(), []
        for entry in chunk:
            if entry.index not in twice or entry.index not in seen:
                single.append(entry)
            seen.add(entry.index)
        return await super().apply_chunk(single)


@breaks("APPLY-6", durability=TRANSIENT)
class StaysOffendedByAGap(SoundMemoryMachine):
    """Refuses the right chunk, too, after it refused a wrong one."""

    _offence = None

    async def apply_chunk(self, chunk):
        if self._offence is not None:
            raise self._offence
        try:
            return await super().apply_chunk(chunk)
        except LogGapError as exc:
            self._offence = exc
            raise


# Odd commands


def _is_malformed(data):
    try:
        decode_command(data)
    except ValueError:
        return True
    return False


@breaks("APPLY-7", durability=TRANSIENT)
class RaisesOnGarbage(SoundMemoryMachine):
    """Lets the decoder's error out."""

    async def apply_chunk(self, chunk):
        for entry in chunk:
            decode_command(entry.data)
        return await super().apply_chunk(chunk)


@breaks("APPLY-7", durability=TRANSIENT)
class ObeysCommandsWithBytesBehindThem(SoundMemoryMachine):
    """Decodes the beginning of the data and ignores the rest."""

    async def apply_chunk(self, chunk):
        return await super().apply_chunk([self._first_item(entry) for entry in chunk])

    def _first_item(self, entry):
        try:
            return attrs.evolve(entry, data=encode(decode_prefix(entry.data)))
        except Exception:
            return entry


@breaks("APPLY-7", durability=TRANSIENT)
class StopsAtHugeCommands(SoundMemoryMachine):
    """Raises for a command that is larger than its buffer."""

    async def apply_chunk(self, chunk):
        for entry in chunk:
            if len(entry.data) > 256 * 1024:
                raise StorageError(f"entry {entry.log_id} has {len(entry.data)} bytes")
        return await super().apply_chunk(chunk)


@breaks("APPLY-7", durability=TRANSIENT)
class GarbageEmptiesAKey(SoundMemoryMachine):
    """Changes the state for a command that it rejects."""

    async def apply_chunk(self, chunk):
        bad = {entry.index for entry in chunk if _is_malformed(entry.data)}
        command = encode_command(Delete(b"a"))
        chunk = [attrs.evolve(e, data=command) if e.index in bad else e for e in chunk]
        return [
            ApplyResult(r.index, Outcome.REJECTED)
            if r.index in bad and r.outcome is not Outcome.DUPLICATE
            else r
            for r in await super().apply_chunk(chunk)
        ]


@breaks("APPLY-8", durability=TRANSIENT)
class RejectsNoOps(SoundMemoryMachine):
    """Takes empty data for a malformed command."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(chunk)
        return [
            attrs.evolve(r, outcome=Outcome.REJECTED)
            if not entry.data and r.outcome is Outcome.APPLIED
            else r
            for entry, r in zip(chunk, results, strict=True)
        ]


@breaks("APPLY-8", durability=TRANSIENT)
class RaisesOnAnEmptyChunk(SoundMemoryMachine):
    """Asks an empty chunk for its first entry."""

    async def apply_chunk(self, chunk):
        chunk[0]
        return await super().apply_chunk(chunk)


@breaks("APPLY-8", durability=TRANSIENT)
class StoresNoOps(SoundMemoryMachine):
    """Puts an empty value under the empty key when there is no command."""

    async def apply_chunk(self, chunk):
        command = encode_command(Put(b"", b""))
        return await super().apply_chunk(
            [entry if entry.data else attrs.evolve(entry, data=command) for entry in chunk]
        )


@breaks("APPLY-8", durability=TRANSIENT)
class NoOpsDoNotCount(SoundMemoryMachine):
    """Leaves the applied id where it is when a chunk has no command at all."""

    async def apply_chunk(self, chunk):
        is_new = chunk and chunk[0].index == self.last_applied().index + 1
        if is_new and not any(entry.data for entry in chunk):
            return [ApplyResult(entry.index, Outcome.APPLIED) for entry in chunk]
        return await super().apply_chunk(chunk)


# What was handed over


@breaks("APPLY-9", durability=TRANSIENT)
class AppliesTheChunkLater(SoundMemoryMachine):
    """Keeps the chunk and applies it when somebody looks."""

    _kept = None

    async def apply_chunk(self, chunk):
        start = check_chunk(chunk, self.last_applied())
        execution = self._new_execution()
        execution.run(chunk[start:])
        self._kept = chunk
        rejected = {start + position for position in execution.rejected}
        return ChunkResults(chunk[0].index if chunk else 0, len(chunk), start, rejected)

    def _settle(self):
        kept, self._kept = self._kept, None
        if kept:
            with contextlib.suppress(StopIteration, LogGapError):
                super().apply_chunk(kept).send(None)

    def last_applied(self):
        self._settle()
        return super().last_applied()

    def get(self, key):
        self._settle()
        return super().get(key)

    def len(self):
        self._settle()
        return super().len()


@breaks("APPLY-9", durability=TRANSIENT)
class ConsumesTheChunk(SoundMemoryMachine):
    """Pops the entries off the list that it was given."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(list(chunk))
        if isinstance(chunk, list):
            chunk.clear()
        return results


@breaks("APPLY-9", durability=TRANSIENT)
class BlanksTheEntries(SoundMemoryMachine):
    """Frees the commands that it has carried out, inside the caller's entries."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(chunk)
        for entry in chunk:
            object.__setattr__(entry, "data", b"")
        return results


@breaks("APPLY-9", durability=TRANSIENT)
class KeepsEveryChunk(SoundMemoryMachine):
    """Remembers what it was given."""

    def __init__(self, directory):
        super().__init__(directory)
        self._kept = []

    async def apply_chunk(self, chunk):
        self._kept.append(chunk)
        return await super().apply_chunk(chunk)


# Overlapping calls


class _ApplyInTwoParts(SoundMemoryMachine):
    """Prepares, waits for the event loop, then writes."""

    async def apply_chunk(self, chunk):
        self._require_running()
        start = check_chunk(chunk, self.last_applied())
        execution = self._new_execution()
        entries = chunk[start:]
        execution.run(entries)
        await asyncio.sleep(0)
        if entries:
            terms = self._terms.copy()
            terms.extend(entries)
            self._commit(execution, entries[-1].log_id, terms)
        rejected = {start + position for position in execution.rejected}
        return ChunkResults(chunk[0].index if chunk else 0, len(chunk), start, rejected)


@breaks("APPLY-10", durability=TRANSIENT)
class InterleavesWhereItWaits(_ApplyInTwoParts):
    """Lets a second call in between preparing and writing."""


@breaks("APPLY-10", durability=TRANSIENT)
class LocksPerEventLoop(_ApplyInTwoParts):
    """Serialises the calls of one event loop, not those of two."""

    def __init__(self, directory):
        super().__init__(directory)
        self._locks = {}

    async def apply_chunk(self, chunk):
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            return await super().apply_chunk(chunk)


@breaks("APPLY-10", durability=TRANSIENT)
class RefusesWithAnErrorOfItsOwn(_ApplyInTwoParts):
    """Raises RuntimeError for a second call."""

    _busy = False

    async def apply_chunk(self, chunk):
        if self._busy:
            raise RuntimeError("busy")
        self._busy = True
        try:
            return await super().apply_chunk(chunk)
        finally:
            self._busy = False
