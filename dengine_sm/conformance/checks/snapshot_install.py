"""Checks of installing: what is replaced, what is refused, what becomes of the source."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from hypothesis import strategies as st

from dengine_sm.conformance.checks.snapshot_parts import (
    Snapshots,
    Taken,
    applied_machine,
    contents,
    expect_unchanged,
    install,
    must_work,
    raised,
    restart,
    sight_of,
    snapshot_at,
    snapshot_of,
    timed_log,
    with_higher_terms,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import StaleSnapshotError


def _foreign(trial: Trial, count: int) -> tuple[Oracle, Oracle]:
    """Return a log for the installing machine, and one with higher ids for the snapshot."""
    higher = with_higher_terms(trial.oracle(count).log)
    return trial.oracle(count, salt=7), Oracle(trial.subject.workload, higher)


# SNAP-5


def nothing_earlier_is_left(trial: Trial) -> None:
    """After an install in a machine with another log, nothing of that log is left."""
    foreign, oracle = _foreign(trial, 60)
    snapshots = Snapshots(trial, oracle)

    @trial.given(used=st.integers(0, 60), label=st.integers(1, 60), again=st.booleans())
    async def example(used: int, label: int, again: bool) -> None:
        taken = await snapshots.at(label)
        machine = await applied_machine(trial, foreign, min(used, label))
        await machine.apply_snapshot_from_file(taken.metadata, taken.path)
        _expect_replaced(trial, machine, oracle, taken)
        if again and restart(trial, machine):
            _expect_replaced(trial, machine, oracle, taken, "after a restart")


def _expect_replaced(
    trial: Trial, machine: StateMachine, oracle: Oracle, taken: Taken, what: str = "after install"
) -> None:
    __tracebackhide__ = True
    last = taken.metadata.last_included
    oracle.check_state("SNAP-5", machine, index=last.index, what=what)
    metadata = machine.snapshot_metadata()
    expect_equal("SNAP-5", f"snapshot_metadata() {what}", taken.metadata, metadata)
    indices = sorted({1, *range(max(1, last.index - 3), last.index + 2)})
    expected = [last.term if index == last.index else None for index in indices]
    terms = [machine.entry_term(index) for index in indices]
    expect_equal("SNAP-5", f"entry_term of {indices} {what}", expected, terms)


async def a_second_install_replaces_the_first(trial: Trial) -> None:
    """Of two snapshots installed one after the other, only the second is left."""
    foreign, oracle = _foreign(trial, 60)
    machine = trial.open()
    for source, label in ((foreign, 20), (oracle, 30), (oracle, 55)):
        taken = await snapshot_at(trial, source, label)
        await machine.apply_snapshot_from_file(taken.metadata, taken.path)
        _expect_replaced(trial, machine, source, taken)
        chunk = source.entries(label + 1, label + 4)
        source.check_results("SNAP-5", chunk, await machine.apply_chunk(chunk), applied=label)
        source.check_state("SNAP-5", machine, index=label + 4, what="after the next entries")


async def clock_and_deadlines_are_replaced(trial: Trial) -> None:
    """The clock and the deadlines of the installing machine are gone; the snapshot's count."""
    trial.needs_key_value()
    workload = trial.subject.workload
    old = Oracle(workload, timed_log(1, (b"a", 50, 1000), (b"b", 10**9, 1000), (b"c", None, 10**8)))
    new = Oracle(
        workload,
        timed_log(
            2,
            (b"a", None, 1000),
            (b"b", 100, 1010),
            (b"c", 200, 1020),
            (b"", 50, 1030),
            # The tail, past the deadlines of both logs, with times to live of its own.
            (b"\x00", 30, 1079),
            (b"\xff\xff", None, 1080),
            (b"a\x00", 5, 1109),
            (b"\xff\xff", None, 1110),
            (b"\xff\xff", 10**10, 1220),
            (b"\x00", 1, 2 * 10**9),
        ),
    )
    taken = await snapshot_at(trial, new, 4)
    machine = await applied_machine(trial, old, 3)
    await machine.apply_snapshot_from_file(taken.metadata, taken.path)
    for index in range(4, len(new.log) + 1):
        await machine.apply_chunk(new.entries(index, index))
        history = ["install at index 4", f"apply_chunk(entries 5..{index})"]
        new.check_state("SNAP-5", machine, index=index, history=history)


# SNAP-6


async def older_snapshots_are_refused(trial: Trial) -> None:
    """A snapshot before the applied id raises; nothing changes, also after a restart."""
    oracle = trial.oracle(50)
    machine = await applied_machine(trial, oracle, 40)
    for label in (1, 20, 38, 39):
        taken = await snapshot_at(trial, oracle, label)
        await _expect_stale(trial, machine, taken)
    before = sight_of(trial, machine)
    if restart(trial, machine):
        expect_unchanged("SNAP-6", trial, machine, before, "refusing and a restart")
        await _expect_stale(trial, machine, taken)
    await apply_all(machine, oracle.entries(41, 50))
    oracle.check_state("SNAP-6", machine, index=50, what="after refusals and the next entries")


async def a_lower_term_is_older_whatever_the_index(trial: Trial) -> None:
    """A snapshot with a lower term and a higher index is older: ids are ordered by term."""
    lower, oracle = _foreign(trial, 40)
    machine = await applied_machine(trial, oracle, 10)
    await _expect_stale(trial, machine, await snapshot_at(trial, lower, 30))
    oracle.check_state("SNAP-6", machine, index=10)


async def _expect_stale(trial: Trial, machine: StateMachine, taken: Taken) -> None:
    __tracebackhide__ = True
    before = sight_of(trial, machine)
    label = taken.metadata.last_included
    history = [f"applied up to {before.last_applied}", f"apply_snapshot_from_file of {label}"]
    expected = f"StaleSnapshotError for a snapshot of {label} at last_applied {before.last_applied}"
    try:
        await machine.apply_snapshot_from_file(taken.metadata, taken.path)
    except StaleSnapshotError:
        what = f"refusing the snapshot of {label}"
        expect_unchanged("SNAP-6", trial, machine, before, what, history)
    except Exception as exc:
        violates("SNAP-6", expected=expected, observed=raised(exc), history=history)
    else:
        violates("SNAP-6", expected=expected, observed="no exception", history=history)


async def the_applied_id_itself_is_installed(trial: Trial) -> None:
    """A snapshot at exactly the applied id installs, also the machine's own and twice."""
    oracle = trial.oracle(40)
    taken = await snapshot_at(trial, oracle, 30)
    machine = await applied_machine(trial, oracle, 30)
    for number, snapshot in enumerate((taken, await snapshot_of(trial, machine), taken)):
        await install("SNAP-6", snapshot, machine, ["applied up to exactly its id"])
        what = f"after install {number + 1} at the applied id"
        oracle.check_state("SNAP-6", machine, index=30, what=what)
        metadata = machine.snapshot_metadata()
        expect_equal("SNAP-6", f"snapshot_metadata() {what}", snapshot.metadata, metadata)
    chunk = oracle.entries(31, 40)
    oracle.check_results("SNAP-6", chunk, await machine.apply_chunk(chunk), applied=30)
    oracle.check_state("SNAP-6", machine, index=40, what="after the next entries")


# SNAP-8


async def source_is_left_as_it_was(trial: Trial) -> None:
    """An install changes no file of the source, and needs no right to write there."""
    oracle = trial.oracle(40)
    for read_only in (False, True):
        taken = await snapshot_at(trial, oracle, 30)
        machine = await applied_machine(trial, oracle, 10)
        if read_only:
            _set_writable(taken.path, False)
        try:
            before = _look(taken.path)
            await machine.apply_snapshot_from_file(taken.metadata, taken.path)
            expect_equal(
                "SNAP-8", "names, sizes and times in the source", before, _look(taken.path)
            )
            await apply_all(machine, oracle.entries(31, 40))
            machine.stop()
            after = _look(taken.path)
            expect_equal("SNAP-8", "names, sizes and times in the source later", before, after)
        finally:
            _set_writable(taken.path, True)
    trial.evidence["ran_as_root"] = os.geteuid() == 0


def _look(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    looks = {}
    for name, data in contents(directory).items():
        status = (directory / name).stat()
        looks[name] = (data, status.st_mtime_ns, stat.S_IMODE(status.st_mode))
    return looks


def _set_writable(directory: Path, writable: bool) -> None:
    for path in (directory, *directory.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)


async def source_may_be_deleted_at_once(trial: Trial) -> None:
    """With the source gone: reads, applies, snapshots and a restart are right."""
    oracle = trial.oracle(60)
    taken = await snapshot_at(trial, oracle, 30)
    machine = await applied_machine(trial, oracle, 10)
    await machine.apply_snapshot_from_file(taken.metadata, taken.path)
    shutil.rmtree(taken.path.parent)
    history = ["apply_snapshot_from_file", "delete the source"]
    with must_work("SNAP-8", "everything to go on with the source deleted", history):
        await _go_on(trial, machine, oracle)


async def _go_on(trial: Trial, machine: StateMachine, oracle: Oracle) -> None:
    __tracebackhide__ = True
    what = "with the source deleted"
    oracle.check_state("SNAP-8", machine, index=30, what=what)
    chunk = oracle.entries(31, 45)
    oracle.check_results("SNAP-8", chunk, await machine.apply_chunk(chunk), applied=30)
    oracle.check_state("SNAP-8", machine, index=45, what=what)
    again = await snapshot_of(trial, machine)
    restart(trial, machine)
    oracle.check_state("SNAP-8", machine, index=45, what=f"{what}, after a restart")
    await apply_all(machine, oracle.entries(46, 60))
    oracle.check_state("SNAP-8", machine, index=60, what=what)
    target = trial.open()
    await target.apply_snapshot_from_file(again.metadata, again.path)
    oracle.check_state("SNAP-8", target, index=45, what="from a machine whose source is gone")


CHECKS = (
    Check("SNAP-5", nothing_earlier_is_left),
    Check("SNAP-5", a_second_install_replaces_the_first),
    Check("SNAP-5", clock_and_deadlines_are_replaced),
    Check("SNAP-6", older_snapshots_are_refused, Profile.QUICK),
    Check("SNAP-6", a_lower_term_is_older_whatever_the_index),
    Check("SNAP-6", the_applied_id_itself_is_installed),
    Check("SNAP-8", source_is_left_as_it_was),
    Check("SNAP-8", source_may_be_deleted_at_once, Profile.QUICK),
)
