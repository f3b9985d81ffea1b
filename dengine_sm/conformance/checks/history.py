"""CRASH-1, APPLY-4: random histories agree with the model, and whatever else they find."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.control import current_build_context
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from dengine_sm.conformance.history import World
from dengine_sm.conformance.history_kills import HistoryWithKills
from dengine_sm.conformance.history_rules import History
from dengine_sm.conformance.processes.local import LocalMachine
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial

SHRINK_RUNS = 400
SHRINK_S = 8.0
"""What making a failing history shorter may cost; then the shortest so far is shown."""

MAY_FIND = (
    *("LIFE-3", "LIFE-4", "APPLY-5", "APPLY-6", "APPLY-7", "LOG-1", "LOG-2"),
    *("SNAP-1", "SNAP-2", "SNAP-3", "SNAP-5", "SNAP-6", "SNAP-9", "READ-1", "READ-2", "RESET-1"),
)


def history_agrees_with_the_model(trial: Trial) -> None:
    """Drive the machine at random, killing it now and then; compare after every step."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    with Nursery(trial.subject.maker) as nursery:
        _run(trial, HistoryWithKills, nursery.spawn)


def history_without_kills_agrees_with_the_model(trial: Trial) -> None:
    """Drive the machine at random, without a kill; compare after every step."""
    if trial.subject.maker is None:
        _run(trial, History, lambda directory: LocalMachine(trial, directory))
        return
    with Nursery(trial.subject.maker) as nursery:
        _run(trial, History, nursery.spawn)


def _run(trial: Trial, kind: type[History], spawn: Callable[[Path], Any]) -> None:
    """Run histories of a kind; the failure is the shortest one found, with its calls.

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
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    # Few and long: what takes several things in a row is then met more often.
    count = max(2, trial.effort.examples // 5)
    try:
        for number in range(count):
            trial.on_progress(number, count)
            histories = _Histories(world, kind, is_even=number % 3 > 0)
            hypothesis.seed(trial.seed * 100_003 + number)(histories)
            run_state_machine_as_test(histories, settings=configured)  # type: ignore[arg-type]  # "a class or a function"
    except Flaky as exc:
        if world.violation is None:
            raise
        # Threads of the machine's own may make one run of a history differ from the next.
        world.violation.history += world.lines
        raise world.violation from exc
    finally:
        trial.evidence.update(sorted(world.calls.items()))


class _Histories:
    """Makes the histories of one run of hypothesis."""

    def __init__(self, world: World, kind: type[History], *, is_even: bool) -> None:
        self._world = world
        self._is_even = is_even
        self._kind = kind
        self._made = self._shrunk = 0
        self._end_s = 0.0

    def __call__(self) -> History:
        """Return a history to carry out, or a dry one: the first, and those over the budget."""
        self._made += 1
        is_dry = self._made == 1 or self._is_long_enough()
        is_dry = is_dry and not current_build_context().is_final
        return self._kind(self._world, is_dry=is_dry, is_even=self._is_even)

    def _is_long_enough(self) -> bool:
        """Tell whether the search for a shorter failing history has used its budget."""
        if self._world.violation is None:
            return False
        self._shrunk += 1
        if self._shrunk == 1:
            self._end_s = time.perf_counter() + SHRINK_S
        return self._shrunk > SHRINK_RUNS or time.perf_counter() > self._end_s


CHECKS = (
    Check("APPLY-4", history_without_kills_agrees_with_the_model, Profile.STANDARD, also=MAY_FIND),
    Check(
        "CRASH-1",
        history_agrees_with_the_model,
        Profile.STANDARD,
        also=(*MAY_FIND, "LOG-3", "LOG-4", "CRASH-2", "CRASH-3", "CRASH-7", "SNAP-10"),
    ),
)
