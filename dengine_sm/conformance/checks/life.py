"""Checks of constructing, starting and stopping (LIFE-1, LIFE-2, LIFE-4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from dengine_sm.conformance.checks.life_parts import (
    CHUNK,
    NO_OP_EVERY,
    changes_since,
    expect_terms,
    image_of,
    is_no_op,
    log_of_many_terms,
    metadata_at,
)
from dengine_sm.conformance.checks.snapshot_parts import raised, snapshot_of, span
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes import holdings
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import (
    CannotCheckError,
    expect_equal,
    expect_true,
    violates,
)
from dengine_sm.contract import StateMachine
from dengine_sm.errors import StorageLockedError
from dengine_sm.model import SnapshotMetadata

_ATTEMPTS = 3
_MACHINES = 4
_MAX_RESTARTS = 25

# LIFE-1


async def construction_opens_nothing(trial: Trial) -> None:
    """Construct machines on new, missing and used directories; nothing is open more than before."""
    if not holdings.can_tell():
        raise CannotCheckError("there is no /proc: open descriptors cannot be counted")
    used = trial.directory("used")
    machine = trial.open(used)
    await apply_all(machine, trial.oracle(2 * CHUNK).log)
    machine.stop()
    # What an engine makes once for a whole process is made by now.
    trial.open(start=False)
    directories: dict[str, Callable[[], Path]] = {
        "a new directory": trial.directory,
        "a missing directory": lambda: trial.directory() / "data",
        "a used directory": lambda: used,
    }
    for what, directory in directories.items():
        # Other threads of this process come and go: what stays is seen every time.
        opened = [_opened_by_constructing(trial, directory()) for _ in range(_ATTEMPTS)]
        expect_true(
            "LIFE-1",
            f"{_MACHINES} machines constructed on {what} open no descriptor and no thread",
            f"open since then: {', '.join(opened[-1])}",
            holds=not all(opened),
            history=[f"construct {_MACHINES} times on {what}"],
        )


def _opened_by_constructing(trial: Trial, directory: Path) -> list[str]:
    descriptors, threads = holdings.descriptors(), holdings.threads()
    machines = [trial.open(directory, start=False) for _ in range(_MACHINES)]
    opened = sorted((holdings.descriptors() - descriptors).elements())
    opened += [name for tid, name in holdings.threads().items() if tid not in threads]
    del machines
    return opened


async def constructed_machines_leave_the_directory_alone(trial: Trial) -> None:
    """Construct several machines on used, missing and busy directories, which stay as they are."""
    trial.needs_survival()
    oracle = trial.oracle(3 * CHUNK)
    directory = trial.directory("used")
    first = trial.open(directory)
    await first.apply_chunk(oracle.entries(1, CHUNK))
    first.stop()
    before = image_of(directory)
    idle = [trial.open(directory, start=False) for _ in range(_MACHINES)]
    history = ["start, apply, stop", f"construct {_MACHINES} times on the same directory"]
    expect_equal("LIFE-1", "changes", [], changes_since(before, directory), history)
    running = [machine.is_running() for machine in idle]
    expect_equal("LIFE-1", "is_running()", [False] * _MACHINES, running, history)
    first.start()
    idle.append(trial.open(directory, start=False))
    await first.apply_chunk(oracle.entries(CHUNK + 1, 2 * CHUNK))
    history += ["start the first", "construct once more", "apply"]
    oracle.check_state("LIFE-1", first, index=2 * CHUNK, history=history)
    await _makes_a_missing_directory(trial)


async def _makes_a_missing_directory(trial: Trial) -> None:
    __tracebackhide__ = True
    missing = trial.directory() / "data"
    machine = trial.open(missing, start=False)
    history = ["construct on a directory that only the parent of exists"]
    expect_true(
        "LIFE-1", "no directory", "a directory", holds=not missing.exists(), history=history
    )
    try:
        machine.start()
    except Exception as exc:
        violates("LIFE-1", expected="start() makes it", observed=raised(exc), history=history)


# LIFE-2


async def start_and_stop_alternate(trial: Trial) -> None:
    """Alternate start and stop, both also twice in a row, with applies in between."""
    restarts = min(trial.effort.steps, _MAX_RESTARTS)
    oracle = trial.oracle((restarts + 1) * CHUNK)
    machine = trial.open(start=False)
    history = ["stop() before the first start()"]
    machine.stop()
    _expect_running(machine, history, is_running=False)
    applied = 0
    for number in range(restarts):
        history = [f"start() for the {number + 1}. time on one object"]
        machine.start()
        _expect_running(machine, history, is_running=True)
        found = machine.last_applied().index if trial.subject.is_transient else applied
        oracle.check_state("LIFE-4", machine, index=found, what="after start()", history=history)
        chunk = oracle.entries(found + 1, found + CHUNK)
        await machine.apply_chunk(chunk)
        applied = found + CHUNK
        history += [f"apply_chunk({span(chunk)})", "start() while running"]
        machine.start()
        oracle.check_state("LIFE-2", machine, index=applied, history=history)
        for again in ("stop()", "stop() while stopped")[: 1 + number % 2]:
            machine.stop()
            history.append(again)
            _expect_running(machine, history, is_running=False)
        trial.on_progress(number + 1, restarts)
    trial.evidence["restarts"] = restarts


def _expect_running(machine: StateMachine, history: list[str], *, is_running: bool) -> None:
    __tracebackhide__ = True
    expect_equal("LIFE-2", "is_running()", is_running, machine.is_running(), history)


async def starts_after_a_failed_start(trial: Trial) -> None:
    """Let start fail because another machine runs there, twice; afterwards it works."""
    trial.needs_survival()
    oracle = trial.oracle(4 * CHUNK)
    directory = trial.directory()
    first = trial.open(directory)
    second = trial.open(directory, start=False)
    for number, machine in enumerate((first, second, first)):
        other = second if machine is first else first
        index = (number + 1) * CHUNK
        await machine.apply_chunk(oracle.entries(index - CHUNK + 1, index))
        history = ["start one machine", "start another on its directory, twice"]
        for _ in range(2):
            try:
                other.start()
            except StorageLockedError:
                _expect_running(other, history, is_running=False)
            else:
                violates("LIFE-6", expected="StorageLockedError", observed="it starts")
        other.stop()
        machine.stop()
        history += ["stop both", "start the other"]
        try:
            other.start()
        except Exception as exc:
            violates("LIFE-2", expected="it starts", observed=raised(exc), history=history)
        _expect_running(other, history, is_running=True)
        oracle.check_state("LIFE-2", other, index=index, history=history)


# LIFE-4


@attrs.frozen
class _Stage:
    """A running machine that is about to be changed a last time before it is stopped."""

    trial: Trial
    machine: StateMachine
    oracle: Oracle
    applied: int
    """The next entry carries no command."""
    metadata: SnapshotMetadata | None

    @property
    def next(self) -> int:
        return self.applied + 1


async def reopening_again_and_again_loses_nothing(trial: Trial) -> None:
    """Stop right after each kind of change, and compare everything, on old and new objects."""
    trial.needs_survival()
    rounds = max(len(_LAST_CHANGES), trial.effort.steps // 2)
    oracle = log_of_many_terms(trial, rounds * 2 * NO_OP_EVERY, salt=4)
    directory = trial.directory()
    machine = trial.open(directory)
    stage = _Stage(trial, machine, oracle, 0, None)
    for number in range(rounds):
        name, change = _LAST_CHANGES[number % len(_LAST_CHANGES)]
        upto = _up_to(stage.applied, number)
        entries = oracle.entries(stage.next, upto)
        await apply_all(machine, entries, chunk_size=1 + number % 5)
        stage = await change(attrs.evolve(stage, machine=machine, applied=upto))
        machine.stop()
        is_new = number % 3 == 2
        if is_new:
            machine = trial.open(directory, start=False)
        machine.start()
        which = "a new object" if is_new else "the same object"
        history = [f"apply {span(entries)}", name, "stop()", f"start() of {which}"]
        _expect_all_of(stage, machine, f"after restart {number + 1}", history)
        trial.on_progress(number + 1, rounds)
    trial.evidence["restarts"] = rounds


def _expect_all_of(stage: _Stage, machine: StateMachine, what: str, history: list[str]) -> None:
    __tracebackhide__ = True
    oracle = stage.oracle
    oracle.check_state("LIFE-4", machine, index=stage.applied, what=what, history=history)
    expect_terms("LIFE-4", machine, oracle, what=what, history=history)
    observed = machine.snapshot_metadata()
    expect_equal("LIFE-4", f"snapshot_metadata() {what}", stage.metadata, observed, history)


def _up_to(applied: int, number: int) -> int:
    """Return an index, one to seven on, that an entry without a command follows."""
    upto = applied + 1 + number % 3
    while not is_no_op(upto + 1):
        upto += 1
    return upto


async def _apply(stage: _Stage) -> _Stage:
    await stage.machine.apply_chunk(stage.oracle.entries(stage.next, stage.next))
    return attrs.evolve(stage, applied=stage.next)


async def _advance(stage: _Stage) -> _Stage:
    stage.machine.update_last_applied(stage.oracle.id_at(stage.next))
    return attrs.evolve(stage, applied=stage.next)


async def _generate(stage: _Stage) -> _Stage:
    taken = await snapshot_of(stage.trial, stage.machine)
    return attrs.evolve(stage, metadata=taken.metadata)


async def _note(stage: _Stage) -> _Stage:
    format_name = stage.metadata.format if stage.metadata else "elsewhere/1"
    metadata = metadata_at(stage.oracle.id_at(stage.applied), format_name, stage.applied)
    stage.machine.update_last_snapshot_metadata(metadata)
    return attrs.evolve(stage, metadata=metadata)


async def _flush(stage: _Stage) -> _Stage:
    stage.machine.flush()
    return stage


_LAST_CHANGES: tuple[tuple[str, Callable[[_Stage], Awaitable[_Stage]]], ...] = (
    ("apply one more entry", _apply),
    ("generate_snapshot_data", _generate),
    ("update_last_applied past an entry without a command", _advance),
    ("update_last_snapshot_metadata", _note),
    ("flush()", _flush),
)


CHECKS = (
    Check("LIFE-1", construction_opens_nothing, Profile.QUICK),
    Check("LIFE-1", constructed_machines_leave_the_directory_alone, Profile.QUICK),
    Check("LIFE-2", start_and_stop_alternate, Profile.QUICK, also=("LIFE-4",)),
    Check("LIFE-2", starts_after_a_failed_start, Profile.QUICK, also=("LIFE-6",)),
    Check("LIFE-4", reopening_again_and_again_loses_nothing, Profile.QUICK),
)
