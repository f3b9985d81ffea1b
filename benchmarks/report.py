"""The report as JSON and as a table."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.measure import Figure

SCHEMA = "dengine-sm-benchmarks"
SCHEMA_VERSION = 1
_PACKAGES = ("dengine-sm", "attrs", "cbor2", "sortedcontainers", "uvloop", "pysyncobj")


def make_report(figures: Sequence[Figure], *, quick: bool, directory: Path) -> dict[str, Any]:
    """Return everything measured, and where."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
            "sync_ms": _sync_ms(directory),
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "figures": [figure.as_json() for figure in figures],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _sync_ms(directory: Path) -> float:
    """Return what writing and syncing 4 KiB takes here: a sync costs nothing on a tmpfs."""
    times: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(21):
            start = perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append((perf_counter() - start) * 1000)
    return statistics.median(times)


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    if digits is None:
        digits = 0 if value >= 1000 else 2
    return f"{value:,.{digits}f}"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        "| figure | unit | ours | bare | ratio | rounds | target | met |",
        "|---|---|---:|---:|---:|---|---:|---|",
    ]
    for figure in figures:
        spread = ""
        if figure.spread:
            spread = f"{figure.rounds}: {figure.spread[0]:.2f} to {figure.spread[1]:.2f}"
        elif figure.rounds:
            spread = str(figure.rounds)
        met = {True: "yes", False: "**no**", None: ""}[figure.passed]
        cells = [
            figure.title,
            figure.unit,
            figure.skipped or _number(figure.ours),
            _number(figure.bare),
            _number(figure.ratio, 2),
            spread,
            _number(figure.target, 2),
            met,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
