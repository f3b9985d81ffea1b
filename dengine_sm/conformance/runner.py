"""Runs checks over a subject, outside pytest, and says what it found."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import inspect
import os
import platform
import queue
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import attrs

from dengine_sm.conformance.abilities import abilities_of
from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.clauses import clauses as all_clauses
from dengine_sm.conformance.clauses import sentence_of
from dengine_sm.conformance.processes.wire import refuse_in_nursery
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import CheckResult, ClauseResult, Report, Status
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, NotBoundError, Violation
from dengine_sm.conformance.workers import give_back, take_worker
from dengine_sm.contract import CONTRACT_VERSION

HANG_S = {Profile.QUICK: 60.0, Profile.STANDARD: 300.0, Profile.DEEP: 7200.0}
"""Seconds without a sign of progress after which a check is given up: a backstop only."""

_WORST_FIRST = (
    Status.FAILED,
    Status.KNOWN_FAILURE,
    Status.SKIPPED,
    Status.PASSED,
    Status.NOT_BOUND,
)


@attrs.frozen
class Progress:
    """What a run tells while it goes on."""

    check: Check
    number: int
    """From 0."""
    total: int
    done: int = 0
    """Steps of the check done, of `steps`; both 0 when it does not tell."""
    steps: int = 0
    result: CheckResult | None = None
    """Set once, when the check has ended."""


def run_conformance(
    subject: Subject,
    *,
    profile: Profile = Profile.STANDARD,
    only: Collection[str] = (),
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Run every check of a profile over a backend.

    Args:
        subject: the backend.
        profile: which checks, and how hard they try.
        only: clause ids; empty for all.
        seed: equal seeds do the same, as far as threads and kills can.
        on_progress: called in this thread, several times a second at most.

    Returns:
        The report; KeyboardInterrupt ends the run early and leaves it incomplete.

    Raises:
        ValueError: `only` names something that is no clause.
        RuntimeError: a script runs the kit where other processes import it.
    """
    refuse_in_nursery()
    chosen = checks_for(profile, only)
    started_at = datetime.datetime.now(datetime.UTC)
    start = time.perf_counter()
    results: list[CheckResult] = []
    interrupted = False
    for number, check in enumerate(chosen):
        told = _told(on_progress, check, number, len(chosen))
        try:
            on_progress(Progress(check, number, len(chosen)))
            result = run_check(check, subject, profile=profile, seed=seed, on_progress=told)
            results.append(result)
            on_progress(Progress(check, number, len(chosen), result=result))
        except KeyboardInterrupt:
            interrupted = len(results) < len(chosen)
            break
    return Report(
        backend=subject.name,
        version=subject.version,
        distribution=subject.distribution,
        options=dict(subject.options),
        durability=subject.durability.value,
        workload=subject.workload.name,
        contract_version=CONTRACT_VERSION,
        kit_version=importlib.metadata.version("dengine-sm"),
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.release()} {platform.machine()}, "
        f"{os.cpu_count()} cores",
        profile=profile.label,
        seed=seed,
        started_at=started_at.isoformat(timespec="seconds"),
        time_s=round(time.perf_counter() - start, 3),
        is_complete=not only and not interrupted,
        clauses=clause_results(results, chosen, only),
        checks=tuple(results),
        abilities=abilities_of(subject),
    )


def _told(
    on_progress: Callable[[Progress], None], check: Check, number: int, total: int
) -> Callable[[int, int], None]:
    def tell(done: int, steps: int) -> None:
        on_progress(Progress(check, number, total, done, steps))

    return tell


def run_check(
    check: Check,
    subject: Subject,
    *,
    profile: Profile = Profile.STANDARD,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    hang_s: float | None = None,
) -> CheckResult:
    """Run one check in another thread, with a temporary directory that is removed."""
    root = Path(tempfile.mkdtemp(prefix="dengine-sm-kit-"))
    steps: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    trial = Trial(subject, root, profile, seed, lambda done, total: steps.put((done, total)))
    found: list[BaseException | None] = []

    def work() -> None:
        try:
            run_in_trial(check, trial)
            found.append(None)
        except BaseException as exc:  # a native library's panic is no Exception
            found.append(exc)
        finally:
            steps.put(None)

    start = time.perf_counter()
    worker = take_worker()
    worker.begin(f"dengine-sm-kit-{check.name}", work)
    try:
        has_ended = _follow(steps, HANG_S[profile] if hang_s is None else hang_s, on_progress)
    except BaseException:  # Ctrl-C; the thread ends with this process
        remove_tree(root)
        raise
    time_s = round(time.perf_counter() - start, 3)
    if not has_ended:
        return _hung(check, worker.thread, time_s, trial)
    give_back(worker)
    remove_tree(root)
    return _result(check, found[0], time_s, trial)


def _follow(
    steps: queue.SimpleQueue[tuple[int, int] | None],
    hang_s: float,
    on_progress: Callable[[int, int], None],
) -> bool:
    """Pass on what a check tells until it ends; False if it has been silent for too long."""
    told_at = 0.0
    while True:
        try:
            step = steps.get(timeout=hang_s)
        except queue.Empty:
            return False
        if step is None:
            return True
        if time.perf_counter() - told_at > 0.1:
            told_at = time.perf_counter()
            on_progress(*step)


def remove_tree(root: Path) -> None:
    """Remove a directory, also where a check took permissions away; what stays, stays."""
    for parent, directories, _ in os.walk(root):
        for directory in (Path(parent, name) for name in directories):
            if not directory.is_symlink():
                with contextlib.suppress(OSError):
                    directory.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


def run_in_trial(check: Check, trial: Trial) -> None:
    """Run a check in this thread and clean up; what it raises is passed on."""
    __tracebackhide__ = True
    try:
        outcome = check.function(trial)
        if inspect.iscoroutine(outcome):
            trial.run(outcome)
    finally:
        trial.close()


def _hung(check: Check, thread: threading.Thread, time_s: float, trial: Trial) -> CheckResult:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame else ""
    return CheckResult(
        check.name,
        check.clause,
        Status.FAILED,
        time_s,
        violated=check.clause,
        reason=f"still busy after {time_s:.0f} s; the thread was left behind",
        expected="an end",
        observed=f"still busy after {time_s:.0f} s",
        details=stack,
        evidence=dict(trial.evidence),  # the thread may still write to its own
    )


def _result(check: Check, exc: BaseException | None, time_s: float, trial: Trial) -> CheckResult:
    bare = CheckResult(check.name, check.clause, Status.PASSED, time_s, evidence=trial.evidence)
    if exc is None:
        return bare
    if isinstance(exc, NotBoundError):
        return attrs.evolve(bare, status=Status.NOT_BOUND, reason=str(exc))
    if isinstance(exc, CannotCheckError):
        return attrs.evolve(bare, status=Status.SKIPPED, reason=str(exc))
    details = "".join(traceback.format_exception(exc))
    notes = tuple(line for note in getattr(exc, "__notes__", ()) for line in note.splitlines())
    exc = _once_seen(exc)
    if isinstance(exc, Violation):
        return attrs.evolve(
            bare,
            status=Status.FAILED,
            violated=exc.clause,
            reason=f"{exc.clause}: expected {exc.expected}; observed {exc.observed}",
            expected=exc.expected,
            observed=exc.observed,
            history=exc.history + notes,
            details=details,
        )
    raised = f"{type(exc).__name__}: {exc}"
    sentence = f"{check.clause} violated: {sentence_of(check.clause)}\n"
    return attrs.evolve(
        bare,
        status=Status.FAILED,
        violated=check.clause,
        reason=f"raised {raised}",
        expected="no exception",
        observed=raised,
        history=notes,
        details=sentence + details,
    )


def _once_seen(exc: BaseException) -> BaseException:
    """Return the violation in what hypothesis raises when a failure does not come again."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            found = _once_seen(inner)
            if isinstance(found, Violation):
                return found
    return exc


def clause_results(
    results: Sequence[CheckResult], chosen: Iterable[Check], only: Collection[str] = ()
) -> tuple[ClauseResult, ...]:
    """Fold check results into one result a clause.

    A check that failed over another clause than its own proves nothing about its own.
    """
    names = {check.name: check for check in chosen}
    found = []
    for clause in all_clauses().values():
        if only and clause.id not in only:
            continue
        own = [result for result in results if result.clause == clause.id]
        blamed = [r for r in results if r.violated == clause.id and r.clause != clause.id]
        statuses = [(_own_status(result), result.reason) for result in own]
        statuses += [(result.status, result.reason) for result in blamed]
        if not statuses:
            pending = any(check.clause == clause.id for check in names.values())
            why = "the run was interrupted" if pending else "no check in this profile"
            statuses = [(Status.SKIPPED, why)]
        status, reason = min(statuses, key=lambda item: _WORST_FIRST.index(item[0]))
        found.append(
            ClauseResult(
                clause.id,
                clause.sentence,
                status,
                round(sum(result.time_s for result in own), 3),
                tuple(result.check for result in (*own, *blamed)),
                reason if status is not Status.PASSED else "",
            )
        )
    return tuple(found)


def _own_status(result: CheckResult) -> Status:
    if result.status is Status.FAILED and result.violated != result.clause:
        return Status.SKIPPED
    return result.status
