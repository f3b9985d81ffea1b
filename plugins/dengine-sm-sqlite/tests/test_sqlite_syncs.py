"""The order of writes and syncs, seen by strace; a sync that fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dengine_sm_sqlite.store import SQLiteStore

CHILD = Path(__file__).with_name("syncs_child.py")
CALLS = "openat,write,pwrite64,fdatasync,fsync,ftruncate,rename,unlink"

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def traced(directory: Path, script: str, *inject: str) -> list[str]:
    """Run the child; return what it did to the directory, such as `fdatasync state.sqlite-wal`."""
    log = directory.with_name("trace")
    python = os.path.realpath(sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    options = ["-f", "-y", "-qq", "-e", f"trace={CALLS}", *inject, "-o", str(log)]
    command = ["strace", *options, python, str(CHILD), str(directory), script]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return [step for line in log.read_text().splitlines() if (step := step_of(line, directory))]


def step_of(line: str, directory: Path) -> str | None:
    said = re.search(r'write\(1<.*>, "([a-z ]+)"', line)
    if said:
        return said[1]
    found = re.search(rf"(\w+)\(.*?{re.escape(str(directory))}/?([\w.-]*)", line)
    if found is None or (found[1] == "openat" and "O_CREAT" not in line):
        return None
    return f"{found[1]} {found[2] or '.'}"


def in_order(steps: list[str], *wanted: str) -> bool:
    rest = iter(steps)
    return all(any(step == want for step in rest) for want in wanted)


def test_a_new_database_is_synced_before_it_has_its_name(tmp_path):
    steps = traced(tmp_path / "store", "on_flush")

    before = steps[: steps.index("opened")]
    assert in_order(
        before,
        "fsync state.sqlite.new",
        "rename state.sqlite.new",
        "fsync .",
        "openat state.sqlite-wal",
        "fsync .",
        "openat state.sqlite-shm",
    )


def test_a_flush_syncs_the_log_and_notes_it_then(tmp_path):
    steps = traced(tmp_path / "store", "on_flush")

    assert not [step for step in steps[steps.index("written a") :] if step == "written b"][1:]
    flush = steps[steps.index("written b") + 1 : steps.index("flushed")]
    assert flush == ["fdatasync state.sqlite-wal", "pwrite64 SYNCED"]
    writes = steps[steps.index("written a") : steps.index("written b")]
    assert "fdatasync state.sqlite-wal" not in writes


def test_a_checkpoint_syncs_the_log_the_database_and_cuts_the_log(tmp_path):
    steps = traced(tmp_path / "store", "on_flush")

    close = steps[steps.index("flushed") + 1 : steps.index("closed")]
    databases = [n for n, step in enumerate(close) if step == "pwrite64 state.sqlite"]
    synced = close.index("fdatasync state.sqlite")
    assert databases
    assert max(databases) < synced < close.index("ftruncate state.sqlite-wal")
    assert close.index("fdatasync state.sqlite-wal") < min(databases)
    assert not [step for step in close if step.startswith("unlink")]


def test_every_write_is_synced_before_it_returns(tmp_path):
    steps = traced(tmp_path / "store", "per_apply")

    write = steps[steps.index("written a") + 1 : steps.index("written b")]
    assert write[0] == "pwrite64 state.sqlite-wal"
    assert write[-2:] == ["fdatasync state.sqlite-wal", "pwrite64 SYNCED"]


def test_a_write_whose_sync_failed_does_not_come_back(tmp_path):
    clean = traced(tmp_path / "clean", "per_apply")
    syncs = sum(step.startswith("fdatasync") for step in clean)

    steps = traced(
        tmp_path / "store", "per_apply", "-e", f"inject=fdatasync:error=EIO:when={syncs}"
    )

    assert "refused b" in steps
    store = SQLiteStore(tmp_path / "store")
    store.open()
    assert list(store.scan(b"", None)) == [(b"a", b"1")]
    assert store.count() == 1
    store.close()
