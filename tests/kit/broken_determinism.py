"""Machines whose replicas part: DET-1 to DET-3."""

from __future__ import annotations

import asyncio
import datetime
import heapq
import os
import random
import socket
import threading
import uuid
from itertools import islice
from time import localtime, strftime, time

import attrs
from broken_apply import TRANSIENT, _WithExecution
from broken_base import SoundFileMachine, SoundMemoryMachine, SoundSyncedMachine, breaks

from dengine_sm.kv import Put, WriteBatch, decode_command, encode_command
from dengine_sm.kv.execution import (
    AFTER_DEADLINE_OF,
    DEADLINE_OF,
    DUE_AT,
    NEVER,
    Execution,
    unpack_deadline,
)
from dengine_sm.kv.sessions import Sessions, pack_session_id
from dengine_sm.model import Durability


def _command(data):
    try:
        return decode_command(data)
    except ValueError:
        return None


# What differs between replicas


@breaks("DET-1", durability=TRANSIENT)
class AnswersInHashOrder(SoundMemoryMachine):
    """Answers with the keys it holds, in the order of a set."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(chunk)
        keys = b" ".join({bytes(key) for key, _ in self.scan_prefix(b"").entries})
        return [attrs.evolve(result, value=keys) for result in results]


class _EvictingExecution(Execution):
    def run(self, entries):
        super().run(entries)
        keys = {key for key, _ in self._store.scan(b"", None)}
        if len(keys) > 4:
            self._set(next(iter(keys)), None, None)


@breaks("DET-1", durability=TRANSIENT)
class EvictsInHashOrder(_WithExecution):
    """Makes room by removing the first key of a set."""

    execution = _EvictingExecution


class _ForgettingExecution(Execution):
    def __init__(self, *args, **counts):
        super().__init__(*args, **counts)
        self.sessions.find = self._find

    def _find(self, session_id):
        session = Sessions.find(self.sessions, session_id)
        return session and attrs.evolve(session, sequence=0)


@breaks("DET-1", durability=TRANSIENT)
class ExecutesRepetitions(_WithExecution):
    """Has sessions, and never asks what their last sequence was."""

    execution = _ForgettingExecution


class _OldestSessions(Sessions):
    def record(self, session, index, sequence, succeeded):
        super().record(session, index, sequence, succeeded)
        last, session_id = pack_session_id(index), pack_session_id(session.session_id)
        self._internal[b"u/" + last] = None
        self._internal[b"u/" + session_id] = session_id


class _OldestExecution(Execution):
    def __init__(self, store, limits, *, sessions, **counts):
        super().__init__(store, limits, sessions=sessions, **counts)
        self._sessions = _OldestSessions(store, self.batch, sessions, limits.max_sessions)


@breaks("DET-1", durability=TRANSIENT)
class EvictsTheOldestSession(_WithExecution):
    """Makes room by closing the session that was opened first, however lately it was used."""

    execution = _OldestExecution


@breaks("DET-1", durability=TRANSIENT)
class WritesLocalTime(SoundMemoryMachine):
    """Stores when an entry was stamped, in the time zone of the host."""

    async def apply_chunk(self, chunk):
        return await super().apply_chunk([self._dated(entry) for entry in chunk])

    def _dated(self, entry):
        command = _command(entry.data)
        if not isinstance(command, Put):
            return entry
        value = strftime("%H:%M", localtime(entry.timestamp_ms / 1000)).encode()
        return attrs.evolve(entry, data=encode_command(attrs.evolve(command, value=value)))


@breaks("DET-1")
class CountsSinceItsStart(SoundFileMachine):
    """Answers with how many entries it has applied since it was started."""

    def start(self):
        super().start()
        self._count = 0

    async def apply_chunk(self, chunk):
        results = list(await super().apply_chunk(chunk))
        for position, result in enumerate(results):
            self._count += 1
            results[position] = attrs.evolve(result, value=b"%d" % self._count)
        return results


# What an apply must not look at


class _Looking(SoundMemoryMachine):
    """Looks at something before it applies."""

    def _look(self):
        raise NotImplementedError

    async def apply_chunk(self, chunk):
        self._look()
        return await super().apply_chunk(chunk)


@breaks("DET-2", durability=TRANSIENT)
class LooksAtTheClock(_Looking):
    """Asks for the time."""

    def _look(self):
        return time()


@breaks("DET-2", durability=TRANSIENT)
class LooksAtTheDate(_Looking):
    """Asks for the date."""

    def _look(self):
        return datetime.datetime.now(datetime.UTC)


@breaks("DET-2", durability=TRANSIENT)
class LooksAtTheLoopsClock(_Looking):
    """Asks the event loop for the time."""

    def _look(self):
        return asyncio.get_running_loop().time()


@breaks("DET-2", durability=TRANSIENT)
class RollsDice(_Looking):
    """Draws a random number."""

    def _look(self):
        return random.randint(1, 6)


@breaks("DET-2", durability=TRANSIENT)
class OwnsADie(_Looking):
    """Draws from a generator that it made, unseeded, long before."""

    def __init__(self, directory):
        super().__init__(directory)
        self._die = random.Random()

    def _look(self):
        return self._die.random()


@breaks("DET-2", durability=TRANSIENT)
class ReadsTheEnvironment(_Looking):
    """Asks for an environment variable."""

    def _look(self):
        return os.getenv("DENGINE_SM_NO_SUCH_VARIABLE", "")


@breaks("DET-2", durability=TRANSIENT)
class OpensASocket(_Looking):
    """Makes a socket."""

    def _look(self):
        socket.socket().close()


@breaks("DET-2", durability=TRANSIENT)
class NamesInstallsByChance(SoundMemoryMachine):
    """Draws a name for a temporary file while it installs."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        self._name = uuid.uuid4().hex
        await super().apply_snapshot_from_file(metadata, snapshot_path)


@breaks("DET-2", durability=Durability.PER_APPLY)
class LooksAtTheClockInItsWorker(SoundSyncedMachine):
    """Asks for the time in the thread that writes."""

    def _commit(self, execution, applied, terms):
        self._committed_at = time()
        super()._commit(execution, applied, terms)


class _UnclampedExecution(Execution):
    def run(self, entries):
        rejected = set()
        for position, entry in enumerate(entries):
            self.clock_ms, self.rejected = entry.timestamp_ms - 1, set()
            super().run([entry])
            rejected |= {position} if self.rejected else set()
        self.rejected = rejected


@breaks("DET-2", durability=TRANSIENT)
class LetsTimeGoBack(_WithExecution):
    """Takes every timestamp as it comes."""

    execution = _UnclampedExecution


# Expiry


@breaks("DET-3", durability=TRANSIENT)
class ExpiresByTheWallClock(SoundMemoryMachine):
    """Counts a time to live from the moment of the apply."""

    async def apply_chunk(self, chunk):
        now_ms = int(time() * 1000)
        return await super().apply_chunk([attrs.evolve(e, timestamp_ms=now_ms) for e in chunk])


@breaks("DET-3", durability=TRANSIENT)
class ExpiresByATimer(SoundMemoryMachine):
    """Removes a key when its time to live has passed by the clock of the host."""

    async def apply_chunk(self, chunk):
        results = await super().apply_chunk(chunk)
        for entry in chunk:
            command = _command(entry.data)
            if isinstance(command, Put) and command.ttl_ms and 0 < command.ttl_ms < 20:
                timer = threading.Timer(command.ttl_ms / 1000, self._remove, [command.key])
                timer.daemon = True
                timer.start()
        return results

    def _remove(self, key):
        if self._running:
            self._store.write(WriteBatch({key: None}))


class _KeepingExecution(Execution):
    def _set(self, key, value, deadline):
        if deadline is None and value is not None:
            deadline = self._deadline_of(key)
        super()._set(key, value, deadline)


@breaks("DET-3", durability=TRANSIENT)
class PlainPutKeepsTheDeadline(_WithExecution):
    """Lets a key die by a deadline that a later put without one should have cleared."""

    execution = _KeepingExecution


class _UnrenewedExecution(Execution):
    def _set(self, key, value, deadline):
        earlier = self._deadline_of(key)
        if deadline is not None and earlier is not None:
            deadline = earlier
        super()._set(key, value, deadline)


@breaks("DET-3", durability=TRANSIENT)
class RenewalKeepsTheFirstDeadline(_WithExecution):
    """Ignores the time to live of a put on a key that has one."""

    execution = _UnrenewedExecution


class _LateExecution(Execution):
    def _set(self, key, value, deadline):
        super()._set(key, value, None if deadline is None else deadline + 1)


@breaks("DET-3", durability=TRANSIENT)
class ExpiresAMillisecondLate(_WithExecution):
    """Keeps a key at its deadline and lets it go after it."""

    execution = _LateExecution


class _RationedExecution(Execution):
    _ration = 10

    def _pop_due(self):
        if self._ration == 0:
            return None
        self._ration -= 1
        return super()._pop_due()


@breaks("DET-3", durability=TRANSIENT)
class ExpiresTenKeysAtATime(_WithExecution):
    """Leaves what else is due for later applies."""

    execution = _RationedExecution


class _NearsightedExecution(Execution):
    def _pop_due(self):
        if self._new_deadlines and self._new_deadlines[0][0] <= self.clock_ms:
            return heapq.heappop(self._new_deadlines)
        for row, packed in islice(self._store.scan_internal(DEADLINE_OF, AFTER_DEADLINE_OF), 10):
            key, deadline = row[len(DEADLINE_OF) :], unpack_deadline(packed)
            if deadline <= self.clock_ms and self._deadline_of(key) == deadline:
                return deadline, key
        return None


@breaks("DET-3", durability=TRANSIENT)
class LooksAtTenDeadlinesOnly(_WithExecution):
    """Samples the first ten keys with a time to live: others starve behind them."""

    execution = _NearsightedExecution


class _CountingExecution(Execution):
    ghosts = 0

    def _expire(self):
        before = self.timed_keys
        super()._expire()
        self.ghosts += before - self.timed_keys


@breaks("DET-3", durability=TRANSIENT)
class CountsExpiredKeys(_WithExecution):
    """Has keys in its `len` that no read finds any more."""

    execution = _CountingExecution
    _ghosts = 0

    def _commit(self, execution, applied, terms):
        super()._commit(execution, applied, terms)
        self._ghosts += execution.ghosts

    def len(self):
        return super().len() + self._ghosts


@breaks("DET-3")
class ForgetsDeadlinesOnRestart(SoundFileMachine):
    """Keeps for ever what had a time to live when it was stopped."""

    def start(self):
        was_running = self._running
        super().start()
        if not was_running:
            self._next_deadline = NEVER


@breaks("DET-3")
class ForgetsTheTimeOnRestart(SoundFileMachine):
    """Begins with a clock of zero after every start."""

    def start(self):
        was_running = self._running
        super().start()
        if not was_running:
            self._clock_ms = 0


@breaks("DET-3", durability=TRANSIENT)
class InstallsWithoutDeadlines(SoundMemoryMachine):
    """Takes keys and values from a snapshot, and leaves the deadlines."""

    def _replace(self, batches):
        super()._replace(
            WriteBatch(
                batch.data,
                {
                    row: value
                    for row, value in batch.internal.items()
                    if not row.startswith((DEADLINE_OF, DUE_AT))
                },
            )
            for batch in batches
        )
