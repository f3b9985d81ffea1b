"""The picture: how far each ratio is above or below its target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from benchmarks.measure import Figure

_MET, _MISSED = "#2a7f62", "#b23a48"
_LONGEST = 4.0
"""Bars end here; their labels tell by how much more."""


def draw(figures: Sequence[Figure], path: Path, subtitle: str) -> None:
    """Draw a bar per figure that has a target; 1 is the target."""
    shown = [one for one in reversed(figures) if one.ratio is not None and one.target]
    relative = [min((one.ratio or 0) / (one.target or 1), _LONGEST) for one in shown]
    mpl.rcParams["font.size"] = 9
    canvas = Canvas(figsize=(9, 1.6 + 0.42 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    colours = [_MET if one.passed else _MISSED for one in shown]
    bars = axes.barh([one.title for one in shown], relative, color=colours, height=0.62)
    texts = [f"{one.ratio:.2f}  (target {one.target:.2g})" for one in shown]
    axes.bar_label(bars, labels=texts, padding=4)
    axes.axvline(1, color="#333333", linewidth=1, linestyle="--")
    axes.set_xlim(0, max([1.0, *relative]) * 1.3)
    axes.set_xlabel("ratio, as a multiple of its target (dashed line)")
    title = f"dengine-sm against bare programs\n{subtitle}"
    canvas.suptitle(title, x=0.01, ha="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, dpi=110)
