"""Run the benchmarks: `python -m benchmarks.run [--only NAME] [--quick] [--out DIR]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks import apply, backends, cluster, cluster_failover, proposals, reads, storage
from benchmarks.measure import Benchmark, Figure, Settings, installed
from benchmarks.report import make_report, table

BENCHMARKS: dict[str, Benchmark] = {
    "apply_chunk": apply.run,
    "propose": proposals.run_propose,
    "propose_many": proposals.run_propose_many,
    "read": reads.run,
    "snapshots": storage.run_snapshots,
    "checkpoint": storage.run_checkpoint,
    "backends": backends.run_applies,
    "backends_large": backends.run_large,
    "backends_growth": backends.run_growth,
    "cluster": cluster.run,
    "cluster_failover": cluster_failover.run,
}
_ONLY_WHEN_ASKED = {"cluster_failover"}
"""Takes minutes, most of them waiting for elections."""
_OUT = Path(__file__).parent / "out"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(BENCHMARKS), help="run this one; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows only that it runs")
    parser.add_argument("--out", type=Path, default=_OUT, help="directory of the report")
    parser.add_argument(
        "--scratch", type=Path, help="where the data goes: measure the disk that is meant"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write `report.json`, `report.md` and `report.png`; 0 whatever the figures say."""
    options = _arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="dengine-sm-bench-", dir=options.scratch) as scratch:
        directory = Path(scratch)
        settings = Settings(options.quick, directory)
        for name in options.only or [one for one in BENCHMARKS if one not in _ONLY_WHEN_ASKED]:
            print(f"{name} ...", file=sys.stderr, flush=True)
            start = perf_counter()
            figures += BENCHMARKS[name](settings)
            print(f"{name}: {perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        report = make_report(figures, quick=options.quick, directory=directory)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.out / "report.md").write_text(table(figures) + "\n")
    print(table(figures))
    if installed("matplotlib"):
        from benchmarks.picture import draw

        machine = report["machine"]
        draw(
            figures,
            options.out / "report.png",
            f"{report['date'][:10]}, {report['python']}, {machine['processor']}, "
            f"{machine['cores']} cores, sync {machine['sync_ms']:.2f} ms",
        )
    else:
        print("matplotlib is not installed: no picture", file=sys.stderr)
    print(f"report: {options.out / 'report.json'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
