"""Make a failing history shorter: leave calls out, then simplify what they are given.

Hypothesis shrinks too, but through the choices that a history was drawn from; with a
process to start and kill for every try, its thousands of tries take too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from dengine_sm.conformance.steps import Step


@attrs.frozen(repr=False)
class Act:
    """One call of a rule; carried out again on any history, for it depends on nothing else."""

    function: Callable[..., None]
    arguments: Mapping[str, Any]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"state.{self.function.__name__}({shown})"


class OutOfTriesError(Exception):
    """The budget for making a history shorter is spent."""


@attrs.define
class Budget:
    """Ends the search when it has taken long enough; a shorter history is a courtesy."""

    tries: int
    end_s: float

    @classmethod
    def of(cls, tries: int, time_s: float) -> Budget:
        """Return a budget that begins now."""
        return cls(tries, time.perf_counter() + time_s)

    def spend(self) -> None:
        """Take one try.

        Raises:
            OutOfTriesError: there is none left.
        """
        self.tries -= 1
        if self.tries < 0 or time.perf_counter() > self.end_s:
            raise OutOfTriesError


def shorten(acts: Sequence[Act], fails: Callable[[Sequence[Act]], bool]) -> None:
    """Try shorter and simpler histories until none fails; `fails` keeps the best.

    Args:
        acts: a failing history.
        fails: carries a history out and tells whether it fails; ends the search by raising.
    """
    best = _simplified(_without_some(list(acts), fails), fails)
    _without_some(best, fails)


def _without_some(best: list[Act], fails: Callable[[Sequence[Act]], bool]) -> list[Act]:
    """Leave out runs of acts, long ones first."""
    size = len(best) // 2
    while size:
        start = 0
        while start < len(best):
            candidate = best[:start] + best[start + size :]
            if candidate and fails(candidate):
                best = candidate
            else:
                start += size
        size //= 2
    return best


def _simplified(best: list[Act], fails: Callable[[Sequence[Act]], bool]) -> list[Act]:
    for position in range(len(best)):
        is_simpler = True
        while is_simpler:
            is_simpler = False
            for act in _simpler_acts(best[position]):
                candidate = [*best[:position], act, *best[position + 1 :]]
                if fails(candidate):
                    best, is_simpler = candidate, True
                    break
    return best


def _simpler_acts(act: Act) -> Iterator[Act]:
    for name, value in act.arguments.items():
        for simpler in _simpler(value):
            yield attrs.evolve(act, arguments={**act.arguments, name: simpler})


def _simpler(value: Any) -> Iterator[Any]:
    match value:
        case [*items]:
            for position in range(len(items) if len(items) > 1 else 0):
                yield [*items[:position], *items[position + 1 :]]
            for position, item in enumerate(items):
                for simpler in _simpler(item):
                    yield [*items[:position], simpler, *items[position + 1 :]]
        case Step(jump_ms=jump_ms, is_new_term=is_new_term):
            if jump_ms:
                yield attrs.evolve(value, jump_ms=0)
            if is_new_term:
                yield attrs.evolve(value, is_new_term=False)
        case True:
            yield False
        case int() if value > 1:
            yield 1
        case bytes() if len(value) > 1:
            yield value[:1]
