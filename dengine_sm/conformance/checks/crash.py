"""Machines killed at their calls and at random instants (CRASH-1 to CRASH-4, CRASH-7)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dengine_sm.conformance.crash import (
    EVERYTHING,
    MAKES_DURABLE,
    Promises,
    Step,
    checked_state,
    plain,
)
from dengine_sm.conformance.crash_runs import (
    Kill,
    Storm,
    crash_storm,
    keep_image,
    raise_unexpected,
    restore_image,
    run_script,
    start,
)
from dengine_sm.conformance.processes.remote import RemoteMachine, StepReport
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.model import Durability

_STEPS = 12
_SPINS = 8000
_APPLIES: Mapping[str, int] = {"apply": 1}
_LARGE_CHUNKS: Mapping[str, int] = {"apply": 12, "flush": 1, "persist_last_applied": 1}
_MANY_PROMISES: Mapping[str, int] = {
    "apply": 8,
    "flush": 2,
    "flush_async": 2,
    "save_hard_state": 2,
    "persist_last_applied": 2,
    "restart": 1,
}


def keeps_a_flushed_state_when_killed(trial: Trial) -> None:
    """Apply, flush, apply, kill; the second time in the directory recovered."""
    with crash_storm(trial, salt=100, entries=60) as storm:
        for _ in range(trial.effort.kills):
            steps = storm.steps(4, _APPLIES)
            applied = steps[-1].after
            more = storm.scenario.script(applied, 2, Path(), _APPLIES)
            steps += [plain("flush", applied), *more]
            storm.strike(steps, Kill(after_event=2 * len(steps)))
            storm.recover()


def recovers_the_state_of_the_applied_id_it_finds(trial: Trial) -> None:
    """Kill at calls and at random instants, again and again in one directory; look."""
    with crash_storm(trial, salt=101) as storm:
        for number, share in enumerate(_shares(storm, EVERYTHING)):
            if number % 4 == 0:
                storm.begin()
            storm.strike_at(share, storm.steps(_STEPS))
            storm.recover()
            storm.strike(storm.steps(_STEPS), _at_random(storm))
            storm.recover()


def keeps_what_was_promised_durable(trial: Trial) -> None:
    """Kill at calls, and as soon as a method that promises durability has returned."""
    with crash_storm(trial, salt=102) as storm:
        for number, share in enumerate(_shares(storm, _MANY_PROMISES)):
            storm.strike_at(share, storm.steps(_STEPS, _MANY_PROMISES))
            storm.recover()
            steps = storm.steps(3, _APPLIES)
            steps += _promise(storm, steps[-1].after, number // 2)
            last_word = 2 * len(steps)
            if number % 2 and steps[-1].method != "stop":
                # Not idle when the kill comes.
                steps += storm.scenario.script(steps[-1].after, 3, Path(), _APPLIES)
            storm.strike(steps, Kill(after_event=last_word))
            storm.recover()


def recovers_to_the_end_of_a_chunk(trial: Trial) -> None:
    """Kill in the midst of chunks of several entries; look where the machine ends."""
    with crash_storm(trial, salt=103) as storm:
        for share in _shares(storm, _LARGE_CHUNKS):
            storm.strike_at(share, storm.steps(_STEPS, _LARGE_CHUNKS))
            storm.recover()
            storm.strike(storm.steps(_STEPS, _LARGE_CHUNKS), _at_random(storm))
            storm.recover()


def recovers_to_the_same_state_when_killed_while_recovering(trial: Trial) -> None:
    """Recover one copy in peace, kill another while it recovers; compare."""
    with crash_storm(trial, salt=104) as storm:
        for number, share in enumerate(_shares(storm, EVERYTHING)):
            storm.strike_at(storm.rng.random(), storm.steps(_STEPS))
            _recover_twice(storm, number, share)


def reaches_the_same_state_by_replaying_the_log(trial: Trial) -> None:
    """Kill, recover, apply the log again from below the applied id to its end."""
    with crash_storm(trial, salt=107) as storm:
        # Duplicates are for the replay to bring.
        storm.scenario.duplicates = (0,)
        for share in _shares(storm, EVERYTHING):
            storm.strike_at(share, storm.steps(_STEPS))
            storm.recover()
            _replay(storm)
            storm.strike(storm.steps(_STEPS), _at_random(storm))
            storm.recover()
            _replay(storm)


def copies_of_the_directory_of_a_stopped_process_recover(trial: Trial) -> None:
    """Stop the process by SIGSTOP, copy its directory, go on; open the copies.

    It meets what an engine writes through mapped memory, which is no system call.
    """
    with crash_storm(trial, salt=108) as storm:
        for _ in range(max(1, trial.effort.kills // 6)):
            _copy_and_open(storm)


def _shares(storm: Storm, mix: Mapping[str, int]) -> Iterator[float]:
    """Yield where in a script to kill: evenly spread over [0, 1), in any order."""
    __tracebackhide__ = True
    storm.measure(_STEPS, mix)
    count = storm.trial.effort.kills
    for done, place in enumerate(storm.rng.sample(range(count), count)):
        storm.trial.on_progress(done, count)
        yield (place + storm.rng.random()) / count


def _at_random(storm: Storm) -> Kill:
    rng = storm.rng
    return Kill(after_event=rng.randint(1, 2 * _STEPS), spins=rng.randrange(_SPINS))


def _promise(storm: Storm, applied: int, number: int) -> list[Step]:
    """Return the next of the methods that promise durability, in turn."""
    methods = list(MAKES_DURABLE)
    if storm.trial.subject.durability is Durability.PER_APPLY:
        methods.append("apply")
    return storm.scenario.script(applied, 1, Path(), {methods[number % len(methods)]: 1})


def _recover_twice(storm: Storm, number: int, share: float) -> None:
    """Compare a recovery in peace with one that is killed several times before."""
    __tracebackhide__ = True
    image = keep_image(storm.directory, storm.workspace / f"image-{number}")
    storm.machine = storm.nursery.spawn(storm.directory)
    storm.machine.prepare("kill_at_call", 0)
    start(storm.machine, storm.promises)
    calls = storm.machine.prepare("calls_so_far")
    in_peace = storm.applied = storm.promises.check(storm.machine)
    storm.leave()
    restore_image(image, storm.directory)
    for kill in _kills_while_recovering(storm, calls, share):
        run_script(storm.nursery.spawn(storm.directory), [plain("start", 0)], kill)
        storm.promises.note("start() -> killed")
    storm.machine = storm.nursery.spawn(storm.directory)
    start(storm.machine, storm.promises, "CRASH-4")
    _expect_state_in_peace(storm, storm.machine, in_peace)
    storm.promises.recovered(in_peace)


def _expect_state_in_peace(storm: Storm, machine: RemoteMachine, index: int) -> None:
    __tracebackhide__ = True
    history = storm.promises.recent
    what = "last_applied() after a recovery that was killed first"
    oracle = storm.scenario.oracle
    expect_equal("CRASH-4", what, oracle.id_at(index), machine.last_applied(), history)
    checked_state(
        oracle, "CRASH-4", machine, "after a recovery that was killed first", history, index=index
    )


def _kills_while_recovering(storm: Storm, calls: int, share: float) -> list[Kill]:
    """Return kills at calls, evenly spread over all recoveries together, and by a signal."""
    quarters = storm.rng.sample(range(4), 4)
    at_calls = [Kill(at_call=1 + int((quarter + share) / 4 * calls)) for quarter in quarters]
    return [*at_calls, Kill(after_event=1, spins=storm.rng.randrange(20 * _SPINS))]


def _replay(storm: Storm) -> None:
    """Apply the log again in other chunks, duplicates first, further than it had come."""
    __tracebackhide__ = True
    rng, oracle, applied = storm.rng, storm.scenario.oracle, storm.applied
    last = min(applied + 20, len(oracle.log))
    at = max(1, applied + 1 - rng.choice((0, 1, 3, 12, 30)))
    while at <= last:
        end = min(last, at + rng.randrange(9))
        _replay_chunk(storm, at, end)
        at = end + 1
    machine = storm.machine
    assert machine is not None
    checked_state(oracle, "CRASH-7", machine, "after the replay", storm.promises.recent, index=last)
    storm.promises.recovered(last)


def _replay_chunk(storm: Storm, first: int, last: int) -> None:
    __tracebackhide__ = True
    oracle, promises, machine = storm.scenario.oracle, storm.promises, storm.machine
    chunk = oracle.entries(first, last)
    promises.note(f"apply_chunk(entries {first}..{last})")
    try:
        results = machine.apply_chunk(chunk)  # type: ignore[union-attr]  # it is running
    except Exception as exc:
        violates(
            "CRASH-7",
            expected=f"results of the replayed entries {first}..{last}",
            observed=f"{type(exc).__name__}: {exc}",
            history=promises.recent,
        )
    oracle.check_results("CRASH-7", chunk, results, applied=storm.applied, history=promises.recent)
    storm.applied = max(storm.applied, last)
    promises.boundaries.add(storm.applied)


def _copy_and_open(storm: Storm) -> None:
    """Run one script, copy the directory at some of its words, open every copy."""
    __tracebackhide__ = True
    steps = storm.steps(2 * _STEPS)
    machine = storm.machine = storm.machine or storm.nursery.spawn(storm.directory)
    words = set(storm.rng.sample(range(1, 2 * len(steps)), 4))
    told = [StepReport(number) for number in range(len(steps))]
    images: list[tuple[Path, Promises]] = []

    def on_event(kind: str, number: int) -> None:
        if kind in ("begin", "end"):
            told[number] = StepReport(number, begun=True, ended=kind == "end")
        if sum(step.begun + step.ended for step in told) in words:
            path = storm.workspace / f"copy-{number}-{kind}"
            with _stopped(machine):
                keep_image(storm.directory, path)
            images.append((path, _promises_of_copy(storm.promises, steps, told)))

    machine.begin_script([step.told for step in steps])
    report = machine.script_report(len(steps), on_event=on_event)
    storm.leave()
    final = keep_image(storm.directory, storm.workspace / "final")
    for path, promises in images:
        restore_image(path, storm.directory)
        copy = storm.nursery.spawn(storm.directory)
        start(copy, promises)
        promises.check(copy)
        copy.kill()
    storm.trial.evidence["copies"] = storm.trial.evidence.get("copies", 0) + len(images)
    restore_image(final, storm.directory)
    storm.promises.record(steps, report)
    raise_unexpected(steps, report, storm.promises)
    storm.recover()
    storm.begin()


def _promises_of_copy(
    known: Promises, steps: Sequence[Step], told: Sequence[StepReport]
) -> Promises:
    """Return what was promised when a copy was taken; the process may have come further."""
    promises = known.copy()
    for step, report in zip(steps, told, strict=True):
        if report.begun:
            promises.record_step(step, report)
        promises.boundaries.add(step.after)
        if step.method == "apply_snapshot_from_file":
            promises.installed.add(step.after)
    promises.under_way = None
    promises.note("SIGSTOP, copy of the directory")
    return promises


@contextlib.contextmanager
def _stopped(machine: RemoteMachine) -> Iterator[None]:
    """Hold every thread of a process."""
    machine.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{machine.pid}/task")
    while not all(_is_stopped(task) for task in tasks.glob("*/stat")):
        os.sched_yield()
    try:
        yield
    finally:
        machine.send_signal(signal.SIGCONT)


def _is_stopped(stat: Path) -> bool:
    try:
        state = stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "TtZX"


CHECKS = (
    Check("CRASH-2", keeps_a_flushed_state_when_killed, Profile.QUICK, also=("CRASH-1",)),
    Check("CRASH-1", recovers_the_state_of_the_applied_id_it_finds, Profile.QUICK),
    Check("CRASH-1", copies_of_the_directory_of_a_stopped_process_recover),
    Check("CRASH-2", keeps_what_was_promised_durable),
    Check("CRASH-3", recovers_to_the_end_of_a_chunk, Profile.QUICK),
    Check("CRASH-4", recovers_to_the_same_state_when_killed_while_recovering, Profile.QUICK),
    Check("CRASH-7", reaches_the_same_state_by_replaying_the_log, Profile.QUICK),
)
