"""CRASH-1, APPLY-4: random histories agree with the model, and whatever else they find."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from dengine_sm.conformance.history import World
from dengine_sm.conformance.history_kills import HistoryWithKills
from dengine_sm.conformance.history_rules import History
from dengine_sm.conformance.processes.local import LocalMachine
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.shorten import Act, Budget, OutOfTriesError, shorten
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import Violation

SHORTER_TRIES = 300
SHORTER_S = 6.0
"""What making a failing history shorter may cost; then the shortest so far is shown."""

MAY_FIND = (
    *("LIFE-1", "LIFE-2", "LIFE-3", "LIFE-4", "APPLY-2", "APPLY-5", "APPLY-6", "APPLY-7"),
    *("LOG-1", "LOG-2", "LOG-3", "LOG-4", "CRASH-2", "SNAP-1", "SNAP-2", "SNAP-3", "SNAP-5"),
    *("SNAP-6", "SNAP-9", "SNAP-10", "READ-1", "READ-2", "RESET-1"),
)


def history_agrees_with_the_model(trial: Trial) -> None:
    """Drive the machine at random, killing it now and then; compare after every step."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    # Few and long: what takes several things in a row is then met more often.
    with Nursery(trial.subject.maker) as nursery:
        _run(trial, HistoryWithKills, nursery.spawn, trial.effort.examples // 5)


def history_without_kills_agrees_with_the_model(trial: Trial) -> None:
    """Drive the machine at random, without a kill; compare after every step."""
    count = trial.effort.examples // 5
    if trial.subject.maker is None:
        _run(trial, History, lambda directory: LocalMachine(trial, directory), count)
        return
    if not trial.subject.is_transient:
        count = max(2, count // 3)  # those with kills do the same and more
    with Nursery(trial.subject.maker) as nursery:
        _run(trial, History, nursery.spawn, count)


def _run(trial: Trial, kind: type[History], spawn: Callable[[Path], Any], count: int) -> None:
    """Run histories of a kind; raises what the shortest failing one has found.

    Each has a run of hypothesis to itself: within one run most examples are mutations of a
    few. A run begins with the simplest example, which is drawn and not carried out.
    """
    __tracebackhide__ = True
    world = World(trial, spawn)
    configured = settings(
        max_examples=2,
        stateful_step_count=2 * trial.effort.steps,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    try:
        for number in range(count):
            trial.on_progress(number, count)
            histories = _Histories(world, kind, is_even=number % 3 > 0)
            hypothesis.seed(trial.seed * 100_003 + number)(histories)
            run_state_machine_as_test(histories, settings=configured)  # type: ignore[arg-type]  # "a class or a function"
    except (Violation, Flaky):
        # Threads of the machine's own may make one run of a history differ from the next,
        # which hypothesis finds flaky; what was seen once was seen.
        if world.violation is None:
            raise
    finally:
        trial.evidence.update(sorted(world.calls.items()))
    if world.violation is not None:
        _shorten(world, kind)
        # Hypothesis has noted the history as it was at first.
        vars(world.violation).pop("__notes__", None)
        raise world.violation


class _Histories:
    """Makes the histories of one run of hypothesis."""

    def __init__(self, world: World, kind: type[History], *, is_even: bool) -> None:
        self._world = world
        self._is_even = is_even
        self._kind = kind
        self._made = 0

    def __call__(self) -> History:
        """Return a history; the first is dry."""
        self._made += 1
        return self._kind(self._world, is_dry=self._made == 1, is_even=self._is_even)


def _shorten(world: World, kind: type[History]) -> None:
    """Look for a shorter history that fails; the world keeps the shortest."""
    budget = Budget.of(SHORTER_TRIES, SHORTER_S)

    def fails(acts: Sequence[Act]) -> bool:
        budget.spend()
        history, found = kind(world), None
        try:
            for act in acts:
                history.play(act)
        except Violation as exc:
            found = exc
        finally:
            history.close(found)
        return found is not None

    with contextlib.suppress(OutOfTriesError):
        shorten(world.acts, fails)


CHECKS = (
    Check("APPLY-4", history_without_kills_agrees_with_the_model, Profile.STANDARD, also=MAY_FIND),
    Check(
        "CRASH-1",
        history_agrees_with_the_model,
        Profile.STANDARD,
        also=(*MAY_FIND, "CRASH-3", "CRASH-7"),
    ),
)
