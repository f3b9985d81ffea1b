"""The benchmarks run, and report what the documentation says; how fast is not asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {
    "benchmark": str,
    "name": str,
    "title": str,
    "unit": str,
    "bare_is": str,
    "loop": str,
    "rounds": int,
    "note": str,
    "skipped": str,
}
NAMES = {
    "apply_chunk": {"apply_chunk", "apply_chunk_results", "apply_chunk_linear"},
    "propose": {"propose", "propose_futures", "propose_pysyncobj_default"},
    "propose_many": {"propose_many", "propose_many_results"},
    "read": {"read"},
    "snapshots": {
        "snapshot_write",
        "snapshot_install",
        "recover_log",
        "recover_checkpoint",
    },
    "checkpoint": {"checkpoint_stall"},
    "backends": {
        f"{name}_{figure}"
        for name in ("rocksdb", "lmdb", "sqlite")
        for figure in (
            *("apply_chunk", "get", "scan", "snapshot", "install", "snapshot_memory"),
            *("install_memory", "open", "open_growth"),
        )
    }
    | {
        f"{name}_growth_{order}"
        for name in ("rocksdb", "lmdb")
        for order in ("in_order", "at_random")
    },
    "cluster": {
        *("cluster_propose", "cluster_propose_waiting", "cluster_propose_alone"),
        *("cluster_propose_16", "cluster_read_client"),
        "cluster_propose_pysyncobj_default",
        *("cluster_propose_many", "cluster_propose_many_alone"),
        *("cluster_propose_many_pysyncobj_default", "cluster_read", "cluster_read_turns"),
        *("cluster_read_bound", "cluster_catch_up_file", "cluster_catch_up_rocksdb"),
    },
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report")
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--quick", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_reports_machine_and_versions(report: dict[str, Any]) -> None:
    assert (report["schema"], report["schema_version"]) == ("dengine-sm-benchmarks", 1)
    assert report["quick"] is True
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["sync_ms"] > 0
    assert {"dengine-sm", "cbor2"} <= report["versions"].keys()


@pytest.mark.parametrize("benchmark", NAMES)
def test_reports_every_figure(report: dict[str, Any], benchmark: str) -> None:
    observed = {one["name"] for one in report["figures"] if one["benchmark"] == benchmark}

    assert observed >= NAMES[benchmark]


def test_every_figure_has_the_fields(report: dict[str, Any]) -> None:
    for figure in report["figures"]:
        for field, kind in FIELDS.items():
            assert isinstance(figure[field], kind), (figure["name"], field)


def test_a_figure_with_a_target_says_whether_it_is_met(report: dict[str, Any]) -> None:
    with_target = [one for one in report["figures"] if one["target"] and not one["skipped"]]

    assert with_target
    for figure in with_target:
        assert figure["ours"] > 0
        assert figure["bare"] > 0
        assert figure["pass"] == (figure["ratio"] >= figure["target"]), figure["name"]


def test_refuses_an_unknown_benchmark() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--only", "aply"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert finished.returncode == 2
    assert "aply" in finished.stderr
