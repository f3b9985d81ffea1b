"""Checks of SNAP-12: a snapshot that was not finished leaves no trace."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from dengine_sm.conformance.checks.snapshot_parts import (
    Taken,
    applied_machine,
    big_log,
    expect_unchanged,
    generating,
    install,
    loop_turns,
    must_work,
    raised,
    restart,
    sight_of,
    snapshot_of,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import StateMachinePoisonedError, StorageError
from dengine_sm.model import LogId, SnapshotMetadata

BIG_BYTES = 4 << 20
TAIL_ENTRIES = 16
ROOM_BYTES = 64
"""Less than any file with a state in it."""
TURNS_AFTERWARDS = 30
"""Turns of the event loop in which a forgotten task could still publish something."""
MOST_TURNS = 100_000


async def cancelled_generation_leaves_no_trace(trial: Trial) -> None:
    """Cancelled at several instants: state and metadata stay, and the next one is right."""
    oracle, machine, label = await _big_machine(trial)
    await snapshot_of(trial, machine)
    leftovers: list[Path] = []
    cancelled = 0
    instants: list[int | None] = [0, 1, 2, 3, 10, 50, None, None, None]
    for turns in instants:
        label += 1
        await machine.apply_chunk(oracle.entries(label, label))
        before = sight_of(trial, machine)
        path = trial.directory("snapshots") / "snapshot"
        leftovers.append(path)
        if await _cancel(machine, path, oracle.id_at(label), turns):
            cancelled += 1
            await loop_turns(TURNS_AFTERWARDS)
            when = "something was written" if turns is None else f"{turns} turns of the loop"
            what = f"cancelling generate_snapshot_data after {when}"
            expect_unchanged("SNAP-12", trial, machine, before, what)
            if restart(trial, machine):
                expect_unchanged("SNAP-12", trial, machine, before, f"{what}, and a restart")
    trial.evidence.update(instants=len(instants), cancelled=cancelled)
    await _expect_next_is_right(trial, machine, oracle, label)
    _expect_removable(machine, leftovers)


async def _big_machine(trial: Trial) -> tuple[Oracle, StateMachine, int]:
    """Return a machine with a big state, and a log that goes on behind it."""
    log = big_log(trial, BIG_BYTES, entries=TAIL_ENTRIES)
    oracle = Oracle(trial.subject.workload, log)
    label = len(log) - TAIL_ENTRIES
    return oracle, await applied_machine(trial, oracle, label), label


async def _cancel(machine: StateMachine, path: Path, label: LogId, turns: int | None) -> bool:
    """Begin a snapshot and cancel it; tell whether that ended it."""
    async with generating(machine, path, label) as task:
        if turns is None:
            await _until(lambda: task.done() or _has_content(path))
        else:
            await loop_turns(turns)
        if task.done():
            return False
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled() or task.exception() is not None


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(MOST_TURNS):
        if holds():
            return
        await asyncio.sleep(0)


def _has_content(path: Path) -> bool:
    try:
        return any(item.stat().st_size for item in path.iterdir())
    except OSError:
        return False


async def failed_generation_leaves_no_trace(trial: Trial) -> None:
    """With a file in the way or no parent directory: state and metadata stay."""
    oracle = trial.oracle(40)
    machine = await applied_machine(trial, oracle, 20)
    await snapshot_of(trial, machine)
    await machine.apply_chunk(oracle.entries(21, 25))
    root = trial.directory("snapshots")
    (root / "file").write_bytes(b"in the way")
    targets = {
        "a file in the way": root / "file",
        "a file as parent": root / "file" / "snapshot",
        "no parent directory": root / "missing" / "snapshot",
    }
    failed = []
    for what, path in targets.items():
        before = sight_of(trial, machine)
        try:
            await machine.generate_snapshot_data(path, oracle.id_at(25))
        except Exception:
            failed.append(what)
            await loop_turns(TURNS_AFTERWARDS)
            expect_unchanged("SNAP-12", trial, machine, before, f"failing with {what}")
    trial.evidence["failed"] = failed
    await _expect_next_is_right(trial, machine, oracle, 25)
    _expect_removable(machine, list(targets.values()))


async def _expect_next_is_right(
    trial: Trial, machine: StateMachine, oracle: Oracle, applied: int
) -> None:
    """Apply one more entry, and write and install a snapshot."""
    __tracebackhide__ = True
    chunk = oracle.entries(applied + 1, applied + 1)
    with must_work("SNAP-12", "an apply and a snapshot to work after one that was not finished"):
        results = await machine.apply_chunk(chunk)
        taken = await snapshot_of(trial, machine)
    oracle.check_results("SNAP-12", chunk, results, applied=applied)
    expect_equal(
        "SNAP-12", "snapshot_metadata() of the next", taken.metadata, machine.snapshot_metadata()
    )
    await _expect_installs(trial, oracle, taken)


async def _expect_installs(trial: Trial, oracle: Oracle, taken: Taken) -> None:
    __tracebackhide__ = True
    target = trial.open()
    await install("SNAP-12", taken, target)
    index = taken.metadata.last_included.index
    oracle.check_state("SNAP-12", target, index=index, what="installed from the next snapshot")


def _expect_removable(machine: StateMachine, leftovers: list[Path]) -> None:
    """Remove what unfinished snapshots left, once nothing of the machine runs any more."""
    __tracebackhide__ = True
    machine.stop()
    for path in leftovers:
        if path.is_dir():
            try:
                shutil.rmtree(path)
            except OSError as exc:
                expected = "the directory of an unfinished snapshot to be absent or removable"
                violates("SNAP-12", expected=expected, observed=raised(exc))


async def full_disk_leaves_no_trace(trial: Trial) -> None:
    """With no room for the snapshot, in a process of its own: state and metadata stay."""
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle, here, label = await _big_machine(trial)
    here.stop()
    with Nursery(trial.subject.maker) as nursery:
        machine = nursery.spawn(trial.directory())
        machine.start()
        machine.apply_chunk(oracle.entries(1, label))
        machine.flush()
        before = sight_of(trial, machine)
        path = trial.directory("snapshots") / "snapshot"
        trial.evidence["failed"] = _fail_for_room(machine, path, oracle.id_at(label))
        if trial.evidence["failed"]:
            what = "a snapshot for which there was no room"
            expect_unchanged("SNAP-12", trial, machine, before, what)
        taken = _next_snapshot(trial, machine, oracle, label)
        machine.stop()
    await _expect_installs(trial, oracle, taken)
    if path.is_dir():
        shutil.rmtree(path)


def _fail_for_room(machine: RemoteMachine, path: Path, label: LogId) -> bool:
    """Write a snapshot where no file may grow; tell whether that failed."""
    machine.prepare("limit_file_size", ROOM_BYTES)
    try:
        machine.generate_snapshot_data(path, label)
    except Exception:
        return True
    else:
        return False
    finally:
        machine.prepare("lift_file_size_limit")


def _next_snapshot(trial: Trial, machine: RemoteMachine, oracle: Oracle, label: int) -> Taken:
    """Apply one more entry and write a snapshot, after a restart if the machine asks for it."""
    __tracebackhide__ = True
    path = trial.directory("snapshots") / "snapshot"
    chunk = oracle.entries(label + 1, label + 1)
    with must_work("SNAP-12", "an apply and a snapshot to work once there is room"):
        try:
            machine.apply_chunk(chunk)
        except (StateMachinePoisonedError, StorageError):
            # The limit may have met the machine's own files too, in the background.
            if trial.subject.is_transient:
                raise
            machine.stop()
            machine.start()
            machine.apply_chunk(chunk)
        checksum = machine.generate_snapshot_data(path, chunk[-1].log_id)
    metadata = machine.snapshot_metadata()
    format_name = metadata.format if metadata else ""
    return Taken(SnapshotMetadata(chunk[-1].log_id, checksum, format_name), path)


CHECKS = (
    Check("SNAP-12", cancelled_generation_leaves_no_trace, Profile.QUICK),
    Check("SNAP-12", failed_generation_leaves_no_trace),
    Check("SNAP-12", full_disk_leaves_no_trace),
)
