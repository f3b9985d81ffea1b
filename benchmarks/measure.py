"""Figures, and how they are taken: ours and bare in turns, in one process, medians."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import statistics
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import attrs

T = TypeVar("T")
Program = Callable[[], Awaitable[float]]
"""Runs once and returns a rate in operations per second."""


@attrs.frozen
class Settings:
    """What all benchmarks are told."""

    quick: bool
    directory: Path
    """Scratch space on the file system that is measured; emptied by the caller."""

    def pick(self, full: T, quick: T) -> T:
        """Return the size for this run."""
        return quick if self.quick else full


@attrs.frozen
class Figure:
    """One line of the report."""

    benchmark: str
    name: str
    title: str
    unit: str
    ours: float | None = None
    bare: float | None = None
    bare_is: str = ""
    ratio: float | None = None
    target: float | None = None
    loop: str = "asyncio"
    rounds: int = 0
    spread: tuple[float, float] | None = None
    """Lowest and highest ratio of single rounds."""
    note: str = ""
    skipped: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is met; None without a target or a figure."""
        if self.target is None or self.ratio is None:
            return None
        return self.ratio >= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the figure as the report has it."""
        fields = attrs.asdict(self)
        fields["spread"] = list(self.spread) if self.spread else None
        fields["pass"] = self.passed
        return fields


Benchmark = Callable[[Settings], list[Figure]]


async def take_turns(rounds: int, programs: dict[str, Program]) -> dict[str, list[float]]:
    """Run all programs once per round, after a round that is not counted.

    The order rotates, so that none profits from always coming second.
    """
    rates: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            rate = await programs[name]()
            if turn:
                rates[name].append(rate)
    return rates


def compare(
    figure: Figure, rates: dict[str, list[float]], bare: str = "bare", ours: str = "ours"
) -> Figure:
    """Fill a figure in: medians, their ratio, and the spread over the rounds."""
    if bare not in rates:
        return figure
    singles = [one / other for one, other in zip(rates[ours], rates[bare], strict=True)]
    our_rate, bare_rate = statistics.median(rates[ours]), statistics.median(rates[bare])
    return attrs.evolve(
        figure,
        ours=our_rate,
        bare=bare_rate,
        ratio=our_rate / bare_rate,
        rounds=len(singles),
        spread=(min(singles), max(singles)),
    )


def installed(package: str) -> bool:
    """Tell whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def loops() -> list[str]:
    """Return the event loops to measure with."""
    return ["asyncio", "uvloop"] if installed("uvloop") else ["asyncio"]


def run_in(loop: str, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the named event loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
