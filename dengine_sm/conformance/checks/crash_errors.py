"""Disks that are full, read-only or failing (CRASH-8)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import attrs

from dengine_sm.conformance.crash import Promises, Scenario, Step, crash_log, plain
from dengine_sm.conformance.crash_faults import (
    CLAUSE,
    PROMISING,
    expect_refusal,
    expect_state_as_before,
    expect_storage_error,
    is_flushed,
    is_saved_by,
    restart,
)
from dengine_sm.conformance.crash_runs import go_on, new_workspace, nursery_of, start
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine, StepReport
from dengine_sm.conformance.processes.strace import SYNC_CALLS, Strace, require_strace
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, expect_true, violates
from dengine_sm.model import Durability

_ENTRIES = 500
_ROOM_BYTES = 1500


@attrs.define
class _Case:
    """A machine on a directory of its own, and what it has promised."""

    nursery: Nursery
    scenario: Scenario
    directory: Path
    promises: Promises
    machine: RemoteMachine
    applied: int = 0

    @property
    def oracle(self) -> Oracle:
        return self.scenario.oracle

    def call(self, step: Step) -> Exception | None:
        """Carry out a step; return what it raised."""
        error: Exception | None = None
        try:
            getattr(self.machine, step.method)(*step.args)
        except Exception as exc:
            error = exc
        self.promises.record_step(step, StepReport(0, True, error is None, error=error))
        if error is None:
            self.applied = step.after
        return error

    def do(self, step: Step) -> None:
        """Carry out a step that must work."""
        error = self.call(step)
        if error is not None:
            raise error

    def apply(self) -> Step:
        """Return the apply of the next few entries."""
        last = min(self.applied + self.scenario.rng.randint(1, 6), len(self.oracle.log))
        return self.scenario.chunk(self.applied, last)

    def recover(self) -> int:
        """Kill, start in a new process, check; return the applied index."""
        __tracebackhide__ = True
        self.machine.kill()
        self.promises.note("killed, start() in a new process")
        self.machine = self.nursery.spawn(self.directory)
        start(self.machine, self.promises, CLAUSE)
        self.applied = self.promises.check(self.machine, clause=CLAUSE)
        self.promises.recovered(self.applied)
        return self.applied


@contextlib.contextmanager
def _cases(trial: Trial, salt: int) -> Iterator[Iterator[_Case]]:
    """Yield cases without end: a started machine that has applied and flushed something."""
    seed = trial.seed * 1013 + salt
    rng = random.Random(seed)  # noqa: S311 - to repeat, not to hide
    with nursery_of(trial) as nursery:
        log = crash_log(trial.subject, _ENTRIES, seed, grows=True)
        scenario = Scenario(Oracle(trial.subject.workload, log), rng, {})
        yield (_new_case(trial, nursery, scenario) for _ in iter(int, 1))


def _new_case(trial: Trial, nursery: Nursery, scenario: Scenario) -> _Case:
    directory = new_workspace(trial, "case") / "data"
    promises = Promises(scenario.oracle, trial.subject.durability)
    case = _Case(nursery, scenario, directory, promises, nursery.spawn(directory))
    case.do(plain("start", 0))
    for _ in range(3):
        case.do(case.apply())
    case.do(plain("flush", case.applied))
    return case


def full_disk_is_reported_and_a_restart_is_right(trial: Trial) -> None:
    """Let files not grow, apply until that is reported, make room again; look."""
    with _cases(trial, 182) as cases:
        for number in range(max(2, trial.effort.kills // 3)):
            case = next(cases)
            step = _fill(case)
            trial.evidence.setdefault("reported by", []).append(step.method)
            expect_state_as_before(case.oracle, case.machine, step, case.promises)
            if step.method in PROMISING:
                is_flushed(case.machine, case.promises)
            expect_refusal(case.oracle, case.machine, case.promises)
            if number % 2:
                case.recover()
            else:
                case.machine.prepare("lift_file_size_limit")
                expect_refusal(case.oracle, case.machine, case.promises)
                case.applied = restart(case.machine, case.promises)
            _expect_not_there(case, step)
            go_on(case.oracle, case.machine, case.promises, CLAUSE)
            case.recover()
            case.machine.kill()


def _fill(case: _Case) -> Step:
    """Let no file grow much beyond the largest, and apply until a call fails."""
    __tracebackhide__ = True
    sizes = [path.stat().st_size for path in case.directory.rglob("*") if path.is_file()]
    limit = max(sizes, default=0) + case.scenario.rng.randint(1, _ROOM_BYTES)
    case.machine.prepare("limit_file_size", limit)
    case.promises.note(f"(no file can grow beyond {limit} bytes)")
    while case.applied < len(case.oracle.log) - 10:
        for step in (case.apply(), None):
            step = step or plain("flush", case.applied)
            error = case.call(step)
            if error is not None:
                expect_storage_error(step, error, case.promises.recent)
                return step
    # A machine that ignores the error has lost something by now.
    case.recover()
    raise CannotCheckError(
        f"the disk cannot be filled: {case.applied} entries were applied and flushed with "
        f"every file limited to {limit} bytes"
    )


def _expect_not_there(case: _Case, step: Step) -> None:
    """Check that a refused chunk has not come back (APPLY-3)."""
    __tracebackhide__ = True
    expect_true(
        CLAUSE,
        f"last_applied() after the restart: at most index {step.before}, {step.text} was refused",
        f"last_applied() after the restart: index {case.applied}",
        holds=step.method != "apply_chunk" or case.applied <= step.before,
        history=case.promises.recent,
    )


def failed_sync_is_never_taken_for_a_success(trial: Trial) -> None:
    """Let every sync fail during one call that promises durability; flush again."""
    require_strace()
    methods = [*PROMISING]
    if trial.subject.durability is Durability.PER_APPLY:
        methods = ["apply_chunk"]
    failed = 0
    with _cases(trial, 183) as cases:
        for method, case in zip(methods, cases, strict=False):
            failed += _fail_syncs(trial, case, method)
            case.machine.kill()
    trial.evidence["failed syncs"] = failed
    if not failed:
        raise CannotCheckError(f"strace sees no sync in {', '.join(methods)}")


def _fail_syncs(trial: Trial, case: _Case, method: str) -> int:
    """Make the syncs of one call fail; return how many did."""
    __tracebackhide__ = True
    step = case.apply()
    if method != "apply_chunk":
        case.do(step)
        args = (case.oracle.id_at(case.applied),) if method == "persist_last_applied" else ()
        step = attrs.evolve(plain(method, case.applied), args=args)
    log = case.directory.with_name("strace")
    inject = " ".join(f"?{name}:error=EIO:when=1+" for name in SYNC_CALLS)
    with Strace(case.machine.pid, log, inject) as tracer:
        error = case.call(step)
        tracer.detach()
        failed = [call for call in tracer.calls() if call.is_injected]
    if error is None:
        if any(not Path(path).is_dir() for call in failed for path in call.paths):
            violates(
                CLAUSE,
                expected=f"StorageError from {step.text}: every sync had failed",
                observed="it returned",
                history=case.promises.recent,
            )
        return 0
    expect_storage_error(step, error, case.promises.recent)
    expect_state_as_before(case.oracle, case.machine, step, case.promises)
    with Strace(case.machine.pid, log) as tracer:
        is_well = is_flushed(case.machine, case.promises)
        tracer.detach()
        if is_well and not is_saved_by(tracer.calls()):
            violates(
                CLAUSE,
                expected=f"no success of flush() after {step.text} has failed, before a restart",
                observed="flush() returned",
                history=case.promises.recent,
            )
    expect_refusal(case.oracle, case.machine, case.promises)
    restart(case.machine, case.promises)
    go_on(case.oracle, case.machine, case.promises, CLAUSE)
    case.recover()
    return len(failed)


def read_only_directory_is_refused(trial: Trial) -> None:
    """Take away the permission to write, try to work; give it back and look."""
    with _cases(trial, 184) as cases:
        case = next(cases)
        case.do(plain("stop", case.applied))
        case.machine.kill()
        with _read_only(case.directory):
            case.machine = case.nursery.spawn(case.directory, ("obey_permissions",))
            for step in (plain("start", case.applied), case.apply(), None):
                step = step or plain("flush", case.applied)
                error = case.call(step)
                if error is not None:
                    expect_storage_error(step, error, case.promises.recent)
                    trial.evidence["refused by"] = step.method
                    break
            case.machine.kill()
        case.recover()
        go_on(case.oracle, case.machine, case.promises, CLAUSE)
        case.recover()


@contextlib.contextmanager
def _read_only(directory: Path) -> Iterator[None]:
    modes = {path: path.stat().st_mode for path in (directory, *directory.rglob("*"))}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


CHECKS = (
    Check(CLAUSE, full_disk_is_reported_and_a_restart_is_right, Profile.QUICK),
    Check(CLAUSE, failed_sync_is_never_taken_for_a_success),
    Check(CLAUSE, read_only_directory_is_refused),
)
