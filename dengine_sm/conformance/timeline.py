"""The points of a crash sweep, laid out to be drawn: one row a system call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from dengine_sm.conformance.report_text import TIMELINE

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 960, 128, 16, 8, 30, 26
"""Of the drawing: the whole, the row labels, margins, a row, and the axis."""

PALETTE = 7
"""Colours and shapes that outcomes share in turn; failures have one of their own."""

_FAILURES = ("violat", "fail", "wrong", "lost", "hang", "hung")
_DODGE = 6.0
_TICKS = 8


@attrs.frozen
class Point:
    """One crash or fault, and what came of it."""

    x: float
    y: float
    style: str
    title: str


@attrs.frozen
class Legend:
    """One outcome."""

    style: str
    outcome: str
    count: int


@attrs.frozen
class Timeline:
    """A drawing, in its own units."""

    width: int
    height: int
    rows: tuple[tuple[str, float], ...]
    """Name of a system call, and the height of its line."""
    ticks: tuple[tuple[int, float], ...]
    """Number of a point, and its place along the axis."""
    points: tuple[Point, ...]
    """Failures last, so that nothing hides them."""
    legend: tuple[Legend, ...]
    is_dense: bool
    """Whether points are to be drawn small."""


def timeline_of(evidence: Mapping[str, Any]) -> Timeline | None:
    """Lay out `evidence["timeline"]`: rows `[K, system call, file, step, outcome]`.

    Returns:
        None when there is no such row; rows of another form are left out.
    """
    rows = evidence.get(TIMELINE)
    points = [row for row in rows if _is_point(row)] if isinstance(rows, Sequence) else []
    if not points:
        return None
    first, last = min(row[0] for row in points), max(row[0] for row in points)
    calls = list(dict.fromkeys(str(row[1]) for row in points))
    outcomes = Counter(str(row[4]) for row in points)
    styles = _styles(list(outcomes))
    heights = {call: TOP + ROW * (number + 0.5) for number, call in enumerate(calls)}
    return Timeline(
        width=WIDTH,
        height=TOP + ROW * len(calls) + BOTTOM,
        rows=tuple(heights.items()),
        ticks=tuple((k, _x(k, first, last)) for k in _ticks(first, last)),
        points=tuple(
            sorted(
                _placed(points, heights, styles, first, last),
                key=lambda point: point.style == "bad",
            )
        ),
        legend=tuple(Legend(styles[o], o, count) for o, count in outcomes.items()),
        is_dense=len(points) > 150,
    )


def _is_point(row: Any) -> bool:
    is_row = isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 5
    return is_row and type(row[0]) in (int, float)


def _placed(
    rows: Sequence[Any],
    heights: Mapping[str, float],
    styles: Mapping[str, str],
    first: float,
    last: float,
) -> list[Point]:
    """Place the points; several on one spot, such as a kill and two errors, stand apart."""
    seen: Counter[tuple[float, str]] = Counter()
    placed = []
    for k, call, file, step, outcome in rows:
        spot = (k, str(call))
        above = (0.0, -_DODGE, _DODGE)[seen[spot] % 3]
        seen[spot] += 1
        title = f"{k}: {call} {file}".rstrip() + (f", in {step}" if step else "") + f": {outcome}"
        placed.append(
            Point(_x(k, first, last), heights[str(call)] + above, styles[str(outcome)], title)
        )
    return placed


def _styles(outcomes: Sequence[str]) -> dict[str, str]:
    bad = {o for o in outcomes if any(word in o.lower() for word in _FAILURES)}
    good = [outcome for outcome in outcomes if outcome not in bad]
    return {
        **dict.fromkeys(bad, "bad"),
        **{outcome: f"o{number % PALETTE}" for number, outcome in enumerate(good)},
    }


def _x(k: float, first: float, last: float) -> float:
    share = (k - first) / (last - first) if last > first else 0.5
    return round(LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16), 1)


def _ticks(first: float, last: float) -> list[int]:
    """Return round numbers from first to last, `_TICKS` at most."""
    step = next(
        mantissa * 10**power
        for power in range(20)
        for mantissa in (1, 2, 5)
        if (last - first) / (mantissa * 10**power) <= _TICKS - 1
    )
    begin = -(-int(first) // step) * step
    return list(range(begin, int(last) + 1, step))
