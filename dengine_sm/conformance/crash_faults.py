"""What a machine owes when its disk fails: an error, an unchanged state, and no more (CRASH-8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dengine_sm.conformance.crash import Promises, Step, checked_state, plain
from dengine_sm.conformance.crash_runs import start
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import RemoteMachine, StepReport
from dengine_sm.conformance.processes.strace import DATA_CALLS, Call
from dengine_sm.conformance.violation import expect_true, violates
from dengine_sm.errors import StateMachinePoisonedError, StorageError
from dengine_sm.model import Durability

CLAUSE = "CRASH-8"
PROMISING = ("flush", "flush_async", "save_hard_state", "persist_last_applied")
"""Methods that report durability."""
WRITING = ("apply_chunk", *PROMISING)
"""Methods after whose failure further applies are refused."""


def expect_storage_error(step: Step, error: Exception, history: Sequence[str]) -> None:
    """Check what a call raised for a failing disk."""
    __tracebackhide__ = True
    expect_true(
        CLAUSE,
        f"{step.text} raises StorageError",
        f"{step.text} raised {type(error).__name__}: {error}",
        holds=isinstance(error, StorageError | StateMachinePoisonedError),
        history=history,
    )


def expect_state_as_before(
    oracle: Oracle, machine: RemoteMachine, step: Step, promises: Promises
) -> int:
    """Check the state in memory after a call that failed; return its index."""
    __tracebackhide__ = True
    history = promises.recent
    # An apply that raised has changed nothing (APPLY-3); the others may have moved the id.
    allowed = {step.before} if step.method == "apply_chunk" else {step.before, step.after}
    index = checked_state(oracle, CLAUSE, machine, "after the error", history)
    expect_true(
        CLAUSE,
        f"last_applied() after the error: at index {' or '.join(map(str, sorted(allowed)))}",
        f"last_applied() after the error: at index {index}",
        holds=index in allowed,
        history=history,
    )
    return index


def expect_refusal(oracle: Oracle, machine: RemoteMachine, promises: Promises) -> None:
    """Check that the machine applies nothing more until it is started again."""
    __tracebackhide__ = True
    applied = machine.last_applied().index
    last = min(applied + 2, len(oracle.log))
    if last == applied:
        return
    promises.note(f"apply_chunk(entries {applied + 1}..{last})")
    try:
        machine.apply_chunk(oracle.entries(applied + 1, last))
    except StateMachinePoisonedError:
        return
    except Exception as exc:
        observed = f"{type(exc).__name__}: {exc}"
    else:
        observed = "the chunk was applied"
    violates(
        CLAUSE,
        expected="StateMachinePoisonedError from apply_chunk until stop and start",
        observed=observed,
        history=promises.recent,
    )


def go_on_or_refuse(
    oracle: Oracle, machine: RemoteMachine, promises: Promises, applied: int
) -> None:
    """Apply after a failed install or snapshot, as if nothing had been; a refusal is fine."""
    __tracebackhide__ = True
    last = min(applied + 2, len(oracle.log))
    chunk = oracle.entries(applied + 1, last)
    step = Step(
        "apply_chunk", (chunk,), applied, last, f"apply_chunk(entries {applied + 1}..{last})"
    )
    try:
        results = machine.apply_chunk(chunk)
    except Exception as exc:
        promises.record_step(step, StepReport(0, begun=True, error=exc))
        expect_storage_error(step, exc, promises.recent)
        return
    promises.record_step(step, StepReport(0, begun=True, ended=True))
    oracle.check_results(CLAUSE, chunk, results, applied=applied, history=promises.recent)
    is_flushed(machine, promises)


def is_flushed(machine: RemoteMachine, promises: Promises) -> bool:
    """Flush again after a failure; what it then promises must hold."""
    __tracebackhide__ = True
    step = plain("flush", machine.last_applied().index)
    try:
        machine.flush()
    except Exception as exc:
        promises.record_step(step, StepReport(0, begun=True, error=exc))
        expect_storage_error(step, exc, promises.recent)
        return False
    promises.record_step(step, StepReport(0, begun=True, ended=True))
    return True


def restart(machine: RemoteMachine, promises: Promises) -> int:
    """Stop and start a machine whose disk works again; check and return what it has."""
    __tracebackhide__ = True
    promises.note("stop(), start()")
    try:
        machine.stop()
    except StorageError as exc:
        promises.note(f"stop() raised {type(exc).__name__}: {exc}")
    except Exception as exc:
        violates(
            CLAUSE,
            expected="stop() returns, or raises StorageError",
            observed=f"{type(exc).__name__}: {exc}",
            history=promises.recent,
        )
    start(machine, promises, CLAUSE)
    index = promises.check(machine, clause=CLAUSE)
    promises.recovered(index)
    return index


def swallowed_sync(
    steps: Sequence[Step], calls: Iterable[Call], durability: Durability, ended: Sequence[bool]
) -> Call | None:
    """Return a failed sync of written data in a call that reported durability all the same.

    A machine may save itself by writing the data once more, and syncing that.
    """
    calls = list(calls)
    for place, call in enumerate(calls):
        if not (call.is_sync and call.is_failed and call.step < len(steps)):
            continue
        method = steps[call.step].method
        promises = method in PROMISING or (
            method == "apply_chunk" and durability is Durability.PER_APPLY
        )
        if not (promises and ended[call.step]) or not _is_dirty(calls[:place], call):
            continue
        rest = [later for later in calls[place + 1 :] if later.step == call.step]
        if not is_saved_by(rest):
            return call
    return None


def is_saved_by(calls: Sequence[Call]) -> bool:
    """Tell whether these calls write something and then sync it."""
    for place, call in enumerate(calls):
        if call.name in DATA_CALLS and not call.is_failed:
            return any(later.is_sync and not later.is_failed for later in calls[place:])
    return False


def _is_dirty(before: Sequence[Call], sync: Call) -> bool:
    """Tell whether the process had written to the file since its last good sync."""
    if not sync.paths or Path(sync.paths[0]).is_dir():
        return False
    for call in reversed(before):
        if call.paths == sync.paths and not call.is_failed:
            return call.name in DATA_CALLS
    return False
