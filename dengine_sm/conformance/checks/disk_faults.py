"""Failures of the disk at every step of what is written through `dengine_sm.files` (CRASH-8)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dengine_sm.conformance.course import Call, Course, snapshot_at
from dengine_sm.conformance.fault_case import CLAUSE, Case, open_case
from dengine_sm.conformance.faults import FAULTS, NO_PERMISSION, Fault, FaultyFileSystem
from dengine_sm.conformance.images import Image
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import NotBoundError

_ENTRIES = 40
_TIMES_POINTS = 2
_OF_TELLING_KINDS = 2

Point = tuple[Fault, int]
"""A fault, and which of its calls it meets, from 1."""


def disk_failures_are_reported_and_a_restart_is_right(trial: Trial) -> None:
    """Lets single calls to the file system fail, in many ways, while the machine works."""
    trial.needs_survival()
    oracle = trial.oracle(_ENTRIES, salt=108)
    calls = _course(trial, oracle)
    points = _sampled(trial, _points(trial, oracle, calls))
    reported = 0
    for number, (fault, at) in enumerate(points):
        with open_case(trial, oracle) as case:
            reported += _fail(case, calls, fault, at)
        trial.on_progress(number + 1, len(points))
    trial.evidence |= {"failures": len(points), "reported": reported}


def _course(trial: Trial, oracle: Oracle) -> list[Call]:
    course = Course(trial, oracle, random.Random(trial.seed))  # noqa: S311 - no secret
    calls = [course.call("start"), course.apply(), course.call("flush"), course.apply()]
    calls += [course.call("save_hard_state"), course.apply(), course.persist()]
    calls.append(course.install(*snapshot_at(trial, oracle, course.applied + 6)))
    calls += [course.apply(), course.call("flush_async"), course.call("stop")]
    calls += [course.call("start"), course.apply(), course.call("flush")]
    return calls


def _points(
    trial: Trial, oracle: Oracle, calls: Sequence[Call]
) -> dict[tuple[Fault, str, str], list[Point]]:
    """Run the course in peace; return every point, by fault, method and file system call."""
    found: dict[tuple[Fault, str, str], list[Point]] = {}
    counts = dict.fromkeys(FAULTS, 0)
    with open_case(trial, oracle) as case:
        for call in calls:
            seen = len(case.fs.calls)
            call.make(trial, case.machine)
            for name in case.fs.calls[seen:]:
                for fault in FAULTS:
                    if name in fault.calls:
                        counts[fault] += 1
                        kind = fault, call.method, name
                        found.setdefault(kind, []).append((fault, counts[fault]))
    _needs_the_layer(case.fs)
    return found


def _needs_the_layer(fs: FaultyFileSystem) -> None:
    if fs.past() or not fs.is_used:
        raise NotBoundError(
            "the backend writes past dengine_sm.files: its system calls are made to fail instead"
        )


def _sampled(trial: Trial, found: dict[tuple[Fault, str, str], list[Point]]) -> list[Point]:
    """Return points of as many kinds as possible; all of them when the profile says so."""
    rng = random.Random(trial.seed)  # noqa: S311 - no secret
    everything = [point for points in found.values() for point in points]
    if not trial.effort.points:
        return everything
    # First what tells most: records not written, or not synced, where that is promised.
    telling = [
        rng.sample(points, min(_OF_TELLING_KINDS, len(points)))
        for (_, method, name), points in found.items()
        if method not in ("start", "stop") and name in ("write", "fsync")
    ]
    one_of_each = [rng.choice(points) for points in found.values()]
    rng.shuffle(one_of_each)
    chosen = dict.fromkeys([point for points in telling for point in points])
    chosen |= dict.fromkeys(one_of_each)
    return list(chosen)[: _TIMES_POINTS * trial.effort.points]


def _fail(case: Case, calls: Sequence[Call], fault: Fault, at: int) -> bool:
    """Let one failure come and all that follows from it; tell whether a call reported it."""
    __tracebackhide__ = True
    case.history.append(f"({fault.text}: number {at} of {', '.join(sorted(fault.calls))})")
    case.fs.arm(fault, at)
    # What no call reports may show at once, or only later; a later install would hide it.
    failed = case.make(calls, goes_on=at % 4 == 0 and not fault.is_short)
    if failed is None:
        return _restart_unreported(case, calls)
    call, exc = failed
    if not case.fs.struck:
        raise exc
    case.expect_reported(call, exc)
    if call.method not in ("start", "stop", "apply_chunk"):
        case.go_on()
    allowed = _allowed(case, call, calls, fault)
    flushed = _flush_again(case)
    if flushed:
        allowed = {index for index in allowed if index >= flushed[0]}
    case.restart()
    clause = "APPLY-3" if call.method == "apply_chunk" else CLAUSE
    case.expect_all_well(case.check(allowed, "after the restart", clause))
    if flushed:
        case.expect_durable(*flushed)
    return True


def _restart_unreported(case: Case, calls: Sequence[Call]) -> bool:
    """Restart after a failure that no call has reported: nothing may have come of it."""
    __tracebackhide__ = True
    allowed = {case.applied}
    if case.restart() is not None:
        boundaries = {0, *(call.after for call in calls)}
        allowed |= {index for index in boundaries if case.floor <= index <= case.applied}
    case.expect_all_well(case.check(allowed, "after a failure that no call reported"))
    return False


def _allowed(case: Case, call: Call, calls: Sequence[Call], fault: Fault) -> set[int]:
    """Return the applied indices that a restart may find after a call has failed."""
    newest = max(case.applied, call.before)
    boundaries = {0, case.applied, *(known.after for known in calls)}
    allowed = {index for index in boundaries if case.floor <= index <= newest}
    # Nothing refused comes back (APPLY-3); unless the disk took no way back either.
    if call.method != "apply_chunk" or fault.is_lasting:
        allowed.add(call.after)
    return allowed


def _flush_again(case: Case) -> tuple[int, int] | None:
    """Flush after a failure; if that works, return what is durable, and after which step."""
    __tracebackhide__ = True
    if not case.machine.is_running() or case.refusal_of("flush()", case.machine.flush):
        return None
    return case.machine.last_applied().index, case.fs.steps


def a_directory_that_cannot_be_written_is_refused(trial: Trial) -> None:
    """Takes the permission to write away before a start, of a new and of a used directory."""
    trial.needs_survival()
    oracle = trial.oracle(20, salt=109)
    course = Course(trial, oracle, random.Random(trial.seed))  # noqa: S311 - no secret
    use = [course.call("start"), course.apply(), course.call("flush"), course.call("stop")]
    work = [course.call("start"), course.apply(), course.call("flush")]
    for fault in NO_PERMISSION:
        for used in (False, True):
            with open_case(trial, oracle) as case:
                if used:
                    _expect_peace(case, use)
                    _needs_the_layer(case.fs)
                    _refuse(case, work, fault)
                else:
                    course.applied = 0
                    _refuse(case, [work[0], course.apply(), work[-1]], fault)
    trial.evidence["cases"] = 2 * len(NO_PERMISSION)


def _expect_peace(case: Case, calls: Sequence[Call]) -> None:
    failed = case.make(calls)
    if failed is not None:
        raise failed[1]


def _refuse(case: Case, calls: Sequence[Call], fault: Fault) -> None:
    """Work without permission to write, then with it."""
    __tracebackhide__ = True
    before = Image.of(case.directory)
    case.history.append(f"({fault.text})")
    case.fs.arm(fault, 1)
    failed = case.make(calls)
    if not case.fs.struck:
        _needs_the_layer(case.fs)
    if failed is None:
        case.violated("StorageError from start(), or from what follows", "all calls returned")
    call, exc = failed
    case.expect_reported(call, exc)
    changed = Image.of(case.directory).differing(before)
    if changed:
        case.violated("an unchanged directory", f"changed: {', '.join(changed)}")
    case.restart()
    index = case.check(_allowed(case, call, calls, fault), "after the restart")
    case.expect_all_well(index)


CHECKS = (
    Check(CLAUSE, disk_failures_are_reported_and_a_restart_is_right, also=("APPLY-3",)),
    Check(CLAUSE, a_directory_that_cannot_be_written_is_refused),
)
