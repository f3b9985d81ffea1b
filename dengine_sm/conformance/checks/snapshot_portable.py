"""Checks of SNAP-11: in the portable format equal states are equal bytes, for every backend."""

from __future__ import annotations

from hypothesis import strategies as st

from dengine_sm.conformance.checks.snapshot_parts import (
    Snapshots,
    Taken,
    applied_machine,
    contents,
    restart,
    snapshot_at,
    snapshot_of,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import NotBoundError, expect_equal
from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS
from dengine_sm.contract import StateMachine
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.kv.commands import Delete, Put, encode_command
from dengine_sm.model import Entry
from dengine_sm.snapshot import PORTABLE_FORMAT

_ROWS = tuple((b"key-%d" % number, b"value-%d" % number) for number in range(8))


async def _needs_portable(trial: Trial) -> None:
    trial.needs_key_value("the portable format")
    machine = await applied_machine(trial, trial.oracle(3), 3)
    taken = await snapshot_of(trial, machine)
    machine.stop()
    if taken.metadata.format != PORTABLE_FORMAT:
        raise NotBoundError(
            f"the machine's snapshots have format {taken.metadata.format!r}, "
            f"not {PORTABLE_FORMAT!r}"
        )


def _reference(trial: Trial) -> StateMachine:
    """Return a running key-value machine in memory, to be compared with."""
    machine = KeyValueStateMachine(RamStore(), limits=trial.subject.limits)
    machine.start()
    return machine


async def _reference_snapshot(trial: Trial, log: list[Entry]) -> Taken:
    reference = _reference(trial)
    await apply_all(reference, log)
    taken = await snapshot_of(trial, reference)
    reference.stop()
    return taken


def histories_of_one_log_give_equal_bytes(trial: Trial) -> None:
    """Chunks, restarts, snapshots and installs leave no trace in a portable snapshot."""
    trial.run(_needs_portable(trial))
    oracle = trial.oracle()
    label = len(oracle.log)
    expected = trial.run(_reference_snapshot(trial, oracle.log))
    # At once, and not as an example to be shrunk: most of what differs differs here.
    _expect_equal_snapshots(expected, trial.run(snapshot_at(trial, oracle, label)))
    snapshots = Snapshots(trial, oracle)

    @trial.given(
        sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
        restarted_at=st.none() | st.integers(1, label),
        snapshot_at_=st.none() | st.integers(1, label),
        installed_at=st.none() | st.integers(1, label),
    )
    async def example(
        sizes: list[int],
        restarted_at: int | None,
        snapshot_at_: int | None,
        installed_at: int | None,
    ) -> None:
        machine = trial.open()
        if installed_at:
            taken = await snapshots.at(installed_at)
            await machine.apply_snapshot_from_file(taken.metadata, taken.path)
        while (applied := machine.last_applied().index) < label:
            size = sizes[applied % len(sizes)]
            await machine.apply_chunk(oracle.entries(applied + 1, applied + size))
            if restarted_at and applied < restarted_at <= applied + size:
                restart(trial, machine)
            if snapshot_at_ and applied < snapshot_at_ <= applied + size:
                await snapshot_of(trial, machine)
        _expect_equal_snapshots(expected, await snapshot_of(trial, machine))


def ways_to_one_state_give_equal_bytes(trial: Trial) -> None:
    """Logs that insert in another order, overwrite, delete and reinsert leave no trace."""
    trial.run(_needs_portable(trial))
    straight = [Put(key, value, None) for key, value in _ROWS]
    expected = trial.run(_reference_snapshot(trial, _log(straight)))
    straight_oracle = Oracle(trial.subject.workload, _log(straight))
    ours = trial.run(snapshot_at(trial, straight_oracle, straight_oracle.last.index))
    _expect_equal_snapshots(expected, ours)

    @trial.given(
        order=st.permutations(range(len(_ROWS))),
        detours=st.lists(st.sampled_from(range(len(_ROWS))), max_size=len(_ROWS)),
    )
    async def example(order: list[int], detours: list[int]) -> None:
        commands: list[Put | Delete] = [Put(b"gone", b"x", 5), Put(_ROWS[0][0], b"", None)]
        for number in detours:
            commands += [Put(_ROWS[number][0], b"detour", 10**6), Delete(_ROWS[number][0])]
        commands += [Delete(b"gone"), *(Put(*_ROWS[number], None) for number in order)]
        machine = trial.open()
        await apply_all(machine, _log(commands))
        _expect_equal_snapshots(expected, await snapshot_of(trial, machine))


_LABEL = 2 * len(_ROWS) + len(_ROWS) + 3


def _log(commands: list[Put | Delete] | list[Put]) -> list[Entry]:
    """Return the commands at the end of a log of fixed length, last id and last timestamp."""
    data = [b""] * (_LABEL - len(commands)) + [encode_command(command) for command in commands]
    return [
        Entry(index, 3, FIRST_TIMESTAMP_MS + index, item)
        for index, item in enumerate(data, start=1)
    ]


def _expect_equal_snapshots(expected: Taken, observed: Taken) -> None:
    __tracebackhide__ = True
    what = "the portable snapshot of the reference"
    ours, theirs = contents(expected.path), contents(observed.path)
    expect_equal("SNAP-11", f"file names, as in {what}", sorted(ours), sorted(theirs))
    differing = [name for name in ours if ours[name] != theirs[name]]
    expect_equal("SNAP-11", f"files that differ from {what}", [], differing)
    expect_equal("SNAP-11", f"metadata, as of {what}", expected.metadata, observed.metadata)


async def snapshots_travel_between_backends(trial: Trial) -> None:
    """The machine installs the reference's snapshot, and the reference the machine's."""
    await _needs_portable(trial)
    oracle = trial.oracle(60)
    for label in (1, 30, 45):
        theirs = await _reference_snapshot(trial, oracle.entries(1, label))
        ours = await snapshot_at(trial, oracle, label)
        reference = _reference(trial)
        for machine, taken in ((trial.open(), theirs), (reference, ours)):
            await machine.apply_snapshot_from_file(taken.metadata, taken.path)
            oracle.check_state("SNAP-11", machine, index=label, what="from another backend")
            await _apply_tail(machine, oracle, label)
        reference.stop()


async def _apply_tail(machine: StateMachine, oracle: Oracle, label: int) -> None:
    chunk = oracle.entries(label + 1, len(oracle.log))
    results = await machine.apply_chunk(chunk)
    oracle.check_results("SNAP-11", chunk, results, applied=label)
    oracle.check_state("SNAP-11", machine, what="after the tail, from another backend")


CHECKS = (
    Check("SNAP-11", histories_of_one_log_give_equal_bytes),
    Check("SNAP-11", ways_to_one_state_give_equal_bytes, Profile.QUICK),
    Check("SNAP-11", snapshots_travel_between_backends),
)
