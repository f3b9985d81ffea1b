"""Checks of who looks on, and of what was handed over: observers, chunks (APPLY-2, APPLY-9)."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, overload

import attrs

from dengine_sm.conformance.follower import Follower, chunk_ends
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import Violation, expect_equal, violates
from dengine_sm.conformance.workload import log_of
from dengine_sm.contract import StateMachine
from dengine_sm.model import Entry, LogId

_READERS = 1
_CHUNK = 3
_PAUSES = 6
"""Pauses in one apply: what makes others look into it at every place, sooner or later."""
_TURNS = 20
"""Turns that another thread gets in a pause at most."""


@contextmanager
def eager_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def give_way() -> None:
    """Let another thread have a turn."""
    time.sleep(1e-6)


class Pauses:
    """Lets other threads run in between the calls that this thread makes.

    Every round pauses at some calls, the next round at their neighbours, and so on until
    every call has had its turn.

    Args:
        pause_once: gives way for as long as the others need.
    """

    def __init__(self, pause_once: Callable[[], None] = give_way) -> None:
        self._pause_once = pause_once
        self._calls = 0
        self._rounds = 0

    @contextmanager
    def round(self) -> Iterator[None]:
        """Pause now and then inside the block."""
        before = sys.getprofile()
        stride = self._calls // _PAUSES + 1
        place = self._rounds % stride
        self._rounds += 1
        self._calls = 0

        def pause(_frame: FrameType, _event: str, _argument: Any) -> None:
            self._calls += 1
            if self._calls % stride == place:
                self._pause_once()

        sys.setprofile(pause)
        try:
            yield
        finally:
            sys.setprofile(before)


@attrs.define
class Observer:
    """Looks at state and applied id again and again, while another applies."""

    machine: StateMachine
    oracle: Oracle
    looks: int = 0
    is_over: bool = False
    failure: BaseException | None = None

    def look(self) -> None:
        """Read the id, the state and the id again, and compare."""
        machine, workload = self.machine, self.oracle.workload
        before = machine.last_applied()
        at_once = workload.observe_at_once(machine)
        after = machine.last_applied()
        if at_once is not None:
            self._judge(before, at_once[0], at_once[1], after)
        before = machine.last_applied()
        observed = workload.observe(machine), machine.len()
        after = machine.last_applied()
        if before == after:
            # Nothing was applied meanwhile, so even several reads are of one state.
            index = before.index
            expected = self.oracle.observation_at(index), self.oracle.length_at(index)
            self._compare(before, expected, observed)
        self.looks += 1

    def _compare(self, last_applied: LogId, expected: Any, observed: Any) -> None:
        what = f"state and len(), with last_applied() {last_applied} before and after"
        expect_equal("APPLY-2", what, expected, observed, self._history())

    def _judge(self, before: LogId, state: Any, own: LogId | None, after: LogId) -> None:
        possible = range(before.index, after.index + 1)
        if own is not None:
            possible = range(own.index, own.index + 1)
            if not before.index <= own.index <= after.index:
                violates(
                    "APPLY-2",
                    expected=f"a read between {before} and {after} that says it is of that time",
                    observed=f"a read that says it is of {own}",
                    history=self._history(),
                )
        if not any(self.oracle.observation_at(index) == state for index in possible):
            fits = self.oracle.indices_with(state)
            violates(
                "APPLY-2",
                expected=f"the state of index {possible[0]}..{possible[-1]}: last_applied() was "
                f"{before} before and {after} after reading it",
                observed=f"the state of index {fits[:5]}" if fits else state,
                history=self._history(),
            )

    def have_looked(self) -> None:
        """Wait for a look that began after this call; in vain while a lock keeps it out."""
        enough = self.looks + 2
        for _ in range(_TURNS):
            give_way()
            if self.looks >= enough or self.is_over:
                return

    def _history(self) -> list[str]:
        return ["apply_chunk in one thread", "last_applied(), reads, last_applied() in another"]

    def run(self) -> None:
        """Look until told that it is over; in a thread."""
        try:
            while not self.is_over:
                self.look()
        except BaseException as exc:
            self.failure = exc

    async def run_in_loop(self) -> None:
        """Look whenever the loop is free: while an apply waits, too."""
        try:
            while not self.is_over:
                self.look()
                await asyncio.sleep(0)
        except BaseException as exc:
            self.failure = exc


async def observers_never_see_them_apart(trial: Trial) -> None:
    """Reads state and applied id from threads and from the loop while chunks are applied."""
    rounds = max(20, trial.effort.rounds // 2)
    oracle = trial.oracle(rounds * _CHUNK, salt=2)
    machine = trial.open()
    follower = Follower(oracle, machine)
    observers = [Observer(machine, oracle) for _ in range(_READERS + 1)]
    threads = [threading.Thread(target=observer.run) for observer in observers[1:]]
    pauses = Pauses(observers[1].have_looked)
    with eager_switches():
        beside = asyncio.ensure_future(observers[0].run_in_loop())
        for thread in threads:
            thread.start()
        try:
            for number, last in enumerate(chunk_ends(len(oracle.log), (_CHUNK,))):
                with pauses.round():
                    await follower.deliver("APPLY-2", follower.chunk_to(last))
                await asyncio.sleep(0)
                trial.on_progress(number + 1, rounds)
                if any(observer.failure for observer in observers):
                    break
        finally:
            for observer in observers:
                observer.is_over = True
            for thread in threads:
                thread.join()
            await beside
    for observer in observers:
        _raise(observer.failure)
    trial.evidence["applies"] = rounds
    trial.evidence["looks"] = sum(observer.looks for observer in observers)


def _raise(failure: BaseException | None) -> None:
    if failure is None:
        return
    if isinstance(failure, Violation) or not isinstance(failure, Exception):
        raise failure
    raise Violation(
        "APPLY-2",
        expected="reads that work while a chunk is applied",
        observed=f"{type(failure).__name__}: {failure}",
        history=["apply_chunk in one thread", "reads in another"],
    ) from failure


async def chunk_is_neither_kept_nor_changed(trial: Trial) -> None:
    """Passes lists, looks whether they changed, then overwrites them; the state stays right."""
    oracle = trial.oracle(salt=9)
    follower = Follower(oracle, trial.open())
    buffer: list[Entry] = []
    for number, last in enumerate(chunk_ends(len(oracle.log), (4, 1, 9))):
        # The same list every time, as from a caller that reuses its buffers.
        buffer[:] = follower.chunk_to(last, again=number % 3)
        given = list(buffer)
        fields = [(e.index, e.term, e.timestamp_ms, e.data) for e in given]
        await follower.deliver("APPLY-9", buffer)
        _expect_unchanged(follower, given, fields, buffer)
        _overwrite(buffer, number)
        follower.history.append("overwrite the list")
        follower.check("APPLY-9", "after the list that was passed was overwritten")
    if not trial.subject.is_transient:
        follower.restart()
        follower.check("APPLY-9", "after a restart")


def _expect_unchanged(
    follower: Follower,
    given: list[Entry],
    fields: list[tuple[int, int, int, bytes]],
    buffer: list[Entry],
) -> None:
    __tracebackhide__ = True
    is_same = len(given) == len(buffer) and all(
        before is after for before, after in zip(given, buffer, strict=True)
    )
    observed = [(e.index, e.term, e.timestamp_ms, e.data) for e in given]
    what = "entries of the chunk after the call"
    expect_equal("APPLY-9", what, fields, observed, follower.history)
    if not is_same:
        violates(
            "APPLY-9",
            expected=f"the list with its {len(given)} entries, as it was passed",
            observed=f"a list of {len(buffer)}: {[e.index for e in buffer[:9]]}",
            history=follower.history,
        )


def _overwrite(buffer: list[Entry], number: int) -> None:
    if number % 2:
        buffer.clear()
        return
    for position, entry in enumerate(buffer):
        data = buffer[-1 - position].data[::-1]
        buffer[position] = Entry(entry.index + 50, entry.term + 1, 1 << 45, data)


class LentChunk(Sequence[Entry]):
    """A chunk that cannot be changed, and that notices who looks after the call."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)
        self.is_lent = True
        self.late_reads = 0

    def __len__(self) -> int:
        self._notice()
        return len(self._entries)

    @overload
    def __getitem__(self, position: int) -> Entry: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Entry]: ...

    def __getitem__(self, position: int | slice) -> Entry | Sequence[Entry]:
        self._notice()
        return self._entries[position]

    def _notice(self) -> None:
        if not self.is_lent:
            self.late_reads += 1


async def any_sequence_is_a_chunk(trial: Trial) -> None:
    """Passes sequences that are no lists; afterwards nobody looks at them or keeps them."""
    oracle = trial.oracle(salt=10)
    follower = Follower(oracle, trial.open())
    lent: list[weakref.ref[LentChunk]] = []
    for last in chunk_ends(len(oracle.log), (3, 1, 8)):
        chunk = LentChunk(follower.chunk_to(last))
        what = f"apply_chunk(a sequence of entries {chunk[0].index}..{chunk[-1].index})"
        await follower.deliver("APPLY-9", chunk, what)
        chunk.is_lent = False
        follower.check("APPLY-9")
        if chunk.late_reads:
            violates(
                "APPLY-9",
                expected="nobody to read the chunk after the call",
                observed=f"{chunk.late_reads} reads after the call",
                history=follower.history,
            )
        lent.append(weakref.ref(chunk))
        del chunk
    # A worker may hold on to its last task for a moment, and a frame to its last chunk.
    for _ in range(4):
        await follower.machine.apply_chunk(oracle.entries(len(oracle.log), len(oracle.log)))
        await asyncio.sleep(0)
    gc.collect()
    kept = sum(ref() is not None for ref in lent[:-2])
    if kept:
        violates(
            "APPLY-9",
            expected="no chunk kept after later ones were applied",
            observed=f"{kept} of {len(lent)} chunks are still referred to",
            history=follower.history[-3:],
        )
    trial.evidence["chunks"] = len(lent)


async def reused_chunk_in_a_refusal_is_left_alone(trial: Trial) -> None:
    """Passes a chunk that must be refused: it is neither changed nor applied later."""
    log = log_of([entry.data for entry in trial.oracle(12, salt=11).log], 3)
    follower = Follower(Oracle(trial.subject.workload, log), trial.open())
    await follower.follow("APPLY-9", 6)
    buffer = [log[6], log[7], log[10]]
    given = list(buffer)
    fields = [(e.index, e.term, e.timestamp_ms, e.data) for e in given]
    follower.history.append("apply_chunk([entries 7, 8, 11]): must be refused")
    try:
        await follower.machine.apply_chunk(buffer)
    except Exception:
        follower.history.append("raised")
    _expect_unchanged(follower, given, fields, buffer)
    _overwrite(buffer, 0)
    await follower.follow_all("APPLY-9", (3,))
    follower.check("APPLY-9")


CHECKS = (
    Check("APPLY-2", observers_never_see_them_apart, Profile.QUICK),
    Check("APPLY-9", chunk_is_neither_kept_nor_changed, Profile.QUICK),
    Check("APPLY-9", any_sequence_is_a_chunk, Profile.QUICK),
    Check("APPLY-9", reused_chunk_in_a_refusal_is_left_alone, Profile.QUICK),
)
