"""The checks that the loader's preflight runs, with the commands of the workload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps

from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import NotBoundError, violates
from dengine_sm.conformance.workload import sample_commands
from dengine_sm.preflight import key_value_commands
from dengine_sm.preflight_checks import CHECKS as PREFLIGHT
from dengine_sm.preflight_checks import NOT_FOR_TRANSIENT, MismatchError, PreflightRun
from dengine_sm.preflight_checks import Check as PreflightCheck


def _adapted(clause: str, function: PreflightCheck) -> Callable[[Trial], Awaitable[None]]:
    @wraps(function)
    async def check(trial: Trial) -> None:
        __tracebackhide__ = True
        if trial.subject.is_transient and clause in NOT_FOR_TRANSIENT:
            raise NotBoundError("the machine is TRANSIENT: it survives nothing")
        is_key_value = trial.subject.is_key_value
        commands = (
            key_value_commands()
            if is_key_value
            else sample_commands(trial.subject.workload, 8, trial.seed)
        )
        run = PreflightRun(
            trial.subject.open_state_machine, trial.root, tuple(commands), is_key_value
        )
        try:
            await function(run)
        except MismatchError as exc:
            violates(
                clause,
                expected=exc.expected,
                observed=exc.observed,
                history=[f"in {exc.method}"],
            )
        finally:
            run.stop_all()

    return check


CHECKS = tuple(
    Check(clause, _adapted(clause, function), Profile.QUICK) for clause, function in PREFLIGHT
)
