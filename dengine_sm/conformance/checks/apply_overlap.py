"""Checks of applies that overlap: serialised or refused, never interleaved (APPLY-10)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import cycle, islice

import attrs

from dengine_sm.conformance.checks.apply_observers import Pauses, eager_switches
from dengine_sm.conformance.follower import call_of
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.conformance.workload import log_of
from dengine_sm.contract import StateMachine
from dengine_sm.errors import ConcurrentApplyError, LogGapError, LogOrderError
from dengine_sm.model import ApplyResult, Entry, Outcome

_REFUSALS = (ConcurrentApplyError, LogGapError, LogOrderError)
"""A call that is carried out before the one it follows finds a gap."""


@attrs.define
class _Call:
    """One of several calls under way at a time."""

    chunk: list[Entry]
    results: list[ApplyResult] | None = None
    error: BaseException | None = None

    async def make(self, machine: StateMachine) -> None:
        try:
            self.results = list(await machine.apply_chunk(self.chunk))
        except BaseException as exc:  # a native library's panic is no Exception
            self.error = exc

    @property
    def is_refused(self) -> bool:
        """Whether it raised what an overlapping call may raise."""
        # What asyncio says of a machine that belongs to another thread's event loop.
        of_another_loop = isinstance(self.error, RuntimeError) and "loop" in str(self.error)
        return isinstance(self.error, _REFUSALS) or of_another_loop

    def __str__(self) -> str:
        ended = "returned" if self.error is None else f"raised {type(self.error).__name__}"
        return f"{call_of(self.chunk)}: {ended}"


def _overlapping(oracle: Oracle, applied: int, round_: int) -> list[_Call]:
    """Return chunks after index `applied` that meet: the same, those that follow, both."""
    ends = [(1, 8), (1, 8)], [(1, 5), (6, 10)], [(1, 6), (4, 10)], [(1, 4), (5, 8), (1, 8), (7, 10)]
    return [
        _Call(oracle.entries(applied + first, applied + last))
        for first, last in ends[round_ % len(ends)]
    ]


def _long_oracle(trial: Trial, length: int, salt: int) -> Oracle:
    """Return a log whose commands come again and again: drawing so many takes too long."""
    some = [entry.data for entry in trial.oracle(200, salt=salt).log]
    commands = [*islice(cycle(some), length)]
    return Oracle(trial.subject.workload, log_of(commands, trial.seed))


def _judge(oracle: Oracle, machine: StateMachine, applied: int, calls: Sequence[_Call]) -> int:
    """Compare the outcomes of overlapping calls with every order they may have had."""
    history = [f"applied up to index {applied}, then at the same time:", *map(str, calls)]
    for call in calls:
        if call.error is not None and not call.is_refused:
            violates(
                "APPLY-10",
                expected="results, or ConcurrentApplyError",
                observed=f"{type(call.error).__name__}: {call.error}",
                history=history,
            )
    reached = oracle.check_state("APPLY-10", machine, what="after the calls", history=history)
    returned = [call for call in calls if call.results is not None]
    expected_reached = max([applied, *(call.chunk[-1].index for call in returned)])
    expect_equal("APPLY-10", "index reached", expected_reached, reached, history)
    times = dict.fromkeys(range(applied + 1, reached + 1), 0)
    for call in returned:
        _count_applied(oracle, call, times, history)
    wrong = {index: count for index, count in times.items() if count != 1}
    if wrong:
        violates(
            "APPLY-10",
            expected="every new entry carried out by one of the calls, a DUPLICATE in the others",
            observed=f"how often an entry was carried out, by index: {wrong}",
            history=history,
        )
    return reached


def _count_applied(oracle: Oracle, call: _Call, times: dict[int, int], history: list[str]) -> None:
    assert call.results is not None
    indices = [entry.index for entry in call.chunk]
    observed = [result.index for result in call.results]
    expect_equal("APPLY-10", "indices of the results", indices, observed, history)
    for result in call.results:
        if result.outcome is not Outcome.DUPLICATE:
            expected = oracle.result_of(result.index)
            what = f"result of entry {result.index}"
            expect_equal("APPLY-10", what, expected, result, history)
            times[result.index] = times.get(result.index, 0) + 1


async def calls_on_one_loop_never_interleave(trial: Trial) -> None:
    """Begins several applies at once on one event loop."""
    rounds = trial.effort.rounds
    oracle = _long_oracle(trial, rounds * 10 + 10, 12)
    machine = trial.open()
    applied = refused = 0
    for round_ in range(rounds):
        calls = _overlapping(oracle, applied, round_)
        await asyncio.gather(*(call.make(machine) for call in calls))
        applied = _judge(oracle, machine, applied, calls)
        refused += sum(call.error is not None for call in calls)
    alone = _Call(oracle.entries(applied + 1, applied + 3))
    await alone.make(machine)
    _expect_one_returned([alone], applied)
    oracle.check_state("APPLY-10", machine, index=applied + 3)
    trial.evidence |= {"rounds": rounds, "refused": refused}


def _expect_one_returned(alone: Sequence[_Call], applied: int) -> None:
    """Expect calls that overlap nothing to work again."""
    if all(call.error is not None for call in alone):
        violates(
            "APPLY-10",
            expected="results, for a call that overlaps no other",
            observed=f"{type(alone[0].error).__name__}: {alone[0].error}",
            history=[f"applied up to index {applied}", *map(str, alone)],
        )


def calls_in_two_threads_never_interleave(trial: Trial) -> None:
    """Begins applies at once in two threads, each with an event loop of its own."""
    rounds = trial.effort.rounds
    oracle = _long_oracle(trial, rounds * 10 + 10, 13)
    machine = trial.open()
    threads = _Pair(machine)
    applied = refused = 0
    with eager_switches():
        try:
            for round_ in range(rounds):
                calls = _overlapping(oracle, applied, round_)[:2]
                threads.make(calls)
                applied = _judge(oracle, machine, applied, calls)
                refused += sum(call.error is not None for call in calls)
                trial.on_progress(round_ + 1, rounds)
            alone = [_Call(oracle.entries(applied + 1, applied + 3)) for _ in range(2)]
            threads.make([alone[0], None])
            threads.make([None, alone[1]])
            _expect_one_returned(alone, applied)
        finally:
            threads.close()
    oracle.check_state("APPLY-10", machine, index=applied + 3)
    trial.evidence |= {"rounds": rounds, "refused": refused}


class _Pair:
    """Two threads, each with an event loop, that begin their calls together.

    Both loops run all the time and wake up by themselves, so that a machine may hand work
    from one to the other, or keep one of them for its own tasks.
    """

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine
        self._is_over = False
        self._loops = [asyncio.new_event_loop() for _ in range(2)]
        self._pauses = {loop: Pauses() for loop in self._loops}
        self._threads = [threading.Thread(target=self._serve, args=(at,)) for at in self._loops]
        for thread in self._threads:
            thread.start()

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._tick())

    async def _tick(self) -> None:
        # Wakes the loop for what another thread put on it: an Event would not.
        while not self._is_over:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def make(self, calls: Sequence[_Call | None]) -> None:
        """Make the calls, one a thread, and wait for their ends."""
        meant = [
            (loop, call) for loop, call in zip(self._loops, calls, strict=True) if call is not None
        ]
        together = threading.Barrier(len(meant))

        async def begin(call: _Call) -> None:
            together.wait()
            with self._pauses[asyncio.get_running_loop()].round():
                await call.make(self._machine)

        futures = [asyncio.run_coroutine_threadsafe(begin(call), loop) for loop, call in meant]
        for future in futures:
            future.result()

    def close(self) -> None:
        """End both threads."""
        self._is_over = True
        for thread in self._threads:
            thread.join()


CHECKS = (
    Check("APPLY-10", calls_on_one_loop_never_interleave, Profile.QUICK),
    Check("APPLY-10", calls_in_two_threads_never_interleave, Profile.QUICK),
)
