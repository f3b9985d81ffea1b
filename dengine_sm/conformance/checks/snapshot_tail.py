"""Checks of SNAP-9: a snapshot and the tail of the log equal the whole log."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.snapshot_parts import (
    Snapshots,
    applied_machine,
    restart,
    snapshot_at,
    timed_log,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal
from dengine_sm.contract import StateMachine

LOGS = 5
"""Logs that hypothesis chooses from."""


def snapshot_and_tail_equal_the_whole_log(trial: Trial) -> None:
    """Snapshot, install and the tail give the results and states of the whole log."""
    count = min(60, trial.effort.entries)
    oracles = [_with_falling_times(trial.oracle(count, salt=salt)) for salt in range(LOGS)]
    snapshots = [Snapshots(trial, oracle) for oracle in oracles]

    @trial.given(
        log=st.integers(0, LOGS - 1),
        label=st.integers(1, count - 1),
        used=st.integers(0, count),
        sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
        again=st.booleans(),
    )
    async def example(log: int, label: int, used: int, sizes: list[int], again: bool) -> None:
        oracle, taken = oracles[log], await snapshots[log].at(label)
        machine = await applied_machine(trial, oracle, min(used, label))
        await machine.apply_snapshot_from_file(taken.metadata, taken.path)
        if again:
            restart(trial, machine)
        await _apply_tail(trial, machine, oracle, label, sizes)


def _with_falling_times(oracle: Oracle) -> Oracle:
    """Return a log in which every sixth stamp is from long ago: only the clock counts then."""
    log = [
        attrs.evolve(entry, timestamp_ms=entry.timestamp_ms - 10**6 * (entry.index % 6 == 0))
        for entry in oracle.log
    ]
    return Oracle(oracle.workload, log)


async def clock_and_deadlines_travel(trial: Trial) -> None:
    """The snapshot carries clock and deadlines: stamps from long ago change nothing."""
    trial.needs_key_value()
    oracle = Oracle(
        trial.subject.workload,
        timed_log(
            1,
            (b"a", 100, 1000),
            (b"b", 200, 1010),
            (b"c", None, 1020),
            # The tail: only the clock, 1020, tells what these times to live mean.
            (b"", 50, 0),
            (b"\x00", 90, 10),
            (b"c", None, 1069),
            (b"c", None, 1070),
            (b"c", None, 1099),
            (b"c", None, 1100),
            (b"c", None, 1209),
            (b"c", None, 1210),
        ),
    )
    taken = await snapshot_at(trial, oracle, 3)
    machine = trial.open()
    await machine.apply_snapshot_from_file(taken.metadata, taken.path)
    await _apply_tail(trial, machine, oracle, 3, [1])


async def _apply_tail(
    trial: Trial, machine: StateMachine, oracle: Oracle, label: int, sizes: list[int]
) -> None:
    __tracebackhide__ = True
    applied = label
    oracle.check_state("SNAP-9", machine, index=applied, what="after install")
    while applied < len(oracle.log):
        chunk = oracle.entries(applied + 1, applied + sizes[applied % len(sizes)])
        results = await machine.apply_chunk(chunk)
        oracle.check_results("SNAP-9", chunk, results, applied=applied)
        applied = chunk[-1].index
        oracle.check_state("SNAP-9", machine, index=applied, what="in the tail")
        _expect_order(trial, machine, oracle, applied)


def _expect_order(trial: Trial, machine: StateMachine, oracle: Oracle, applied: int) -> None:
    """Compare what is read at once, and the order of a scan."""
    __tracebackhide__ = True
    seen = trial.subject.workload.observe_at_once(machine)
    if seen is not None:
        expected = oracle.observation_at(applied)
        expect_equal("SNAP-9", f"state read at once at index {applied}", expected, seen[0])
    scan_prefix: Any = getattr(machine, "scan_prefix", None)
    if scan_prefix is not None and trial.subject.is_key_value:
        keys = [key for key, _ in scan_prefix(b"").entries]
        expect_equal("SNAP-9", f"keys of a scan at index {applied}", sorted(keys), keys)


CHECKS = (
    Check("SNAP-9", snapshot_and_tail_equal_the_whole_log, Profile.QUICK),
    Check("SNAP-9", clock_and_deadlines_travel, Profile.QUICK),
)
