"""Real processes killed many times on one directory: nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import random
import select
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.client import Client
from dengine_sm.errors import ClientError
from dengine_sm.kv import CompareAndSwap, encode_command
from dengine_sm.model import Durability

pytestmark = [pytest.mark.storm, pytest.mark.timeout(200)]

CHILD = Path(__file__).with_name("storm_child.py")
SEED = 20240607

_spec = importlib.util.spec_from_file_location("storm_child", CHILD)
assert _spec is not None and _spec.loader is not None
child = importlib.util.module_from_spec(_spec)
sys.modules["storm_child"] = child
_spec.loader.exec_module(child)


@attrs.define
class Reports:
    """What a killed writer said before it died."""

    ready: int | None = None
    begun: set[int] = attrs.field(factory=set)
    applied: int = 0
    flushed: int = 0
    installing: int = 0

    def take(self, line: str) -> None:
        fact, index = line.split()
        match fact:
            case "ready":
                self.ready = int(index)
            case "begin":
                self.begun.add(int(index))
            case "applied" | "flushed" | "installing":
                setattr(self, fact, max(getattr(self, fact), int(index)))


def run_and_kill(
    directory: Path, rng: random.Random, durability: Durability, *, while_opening: bool
) -> Reports:
    """Run a writer and kill it: after so many lines and then so many microseconds."""
    lines = 1 if while_opening else rng.randint(2, 700)
    pause_s = rng.uniform(0, 0.012 if while_opening else 0.001)
    command = [sys.executable, str(CHILD), str(directory), str(rng.random())[2:], durability.value]
    reports = Reports()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            for _ in range(lines):
                line = process.stdout.readline()
                assert line, process.stderr.read().decode()
                reports.take(line.decode())
            select.select([], [], [], pause_s)  # the instant of the kill, nothing waits for it
        finally:
            process.kill()
        for line in process.stdout.read().decode().splitlines():
            reports.take(line)
    return reports


@contextlib.contextmanager
def reopened(directory: Path, durability: Durability) -> Iterator[Any]:
    """Open a copy, so that the next writer recovers from what the kill left."""
    copy = directory.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    machine = child.machine_on(copy, durability)
    machine.start()
    try:
        yield machine
    finally:
        machine.stop()


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
def test_killed_writers_lose_nothing_and_tear_nothing(tmp_path, durability):
    directory = tmp_path / "machine"
    model = child.Model()
    promised = installed = 0
    checkpoints, purges = 0, 0

    for kill in range(40):
        seed = f"{SEED}/{durability.value}/{kill}"
        rng = random.Random(seed)
        while_opening = kill % 4 == 3
        before = model.index
        reports = run_and_kill(directory, rng, durability, while_opening=while_opening)
        promised = max(promised, reports.flushed)
        if durability is Durability.PER_APPLY:
            promised = max(promised, reports.applied)
        installed = max(installed, reports.installing)

        with reopened(directory, durability) as machine:
            last = machine.last_applied()
            where = f"seed {seed!r}: recovered {last}, promised {promised}, {reports}"
            assert last.index >= promised, f"CRASH-2: {where}"
            assert last.index in {before, *reports.begun}, f"CRASH-3: {where}"
            assert reports.ready in (None, before), f"CRASH-4: {where}"
            model.advance(last.index)
            observed = machine.scan_prefix(b"")
            assert last == observed.last_applied
            assert model.entries() == observed.entries, f"CRASH-1: {where}"
            assert len(model.state) == machine.len(), f"CRASH-1: {where}"
            for index in range(max(installed, 1), last.index + 1):
                assert child.term_of(index) == machine.entry_term(index), f"LOG-2: {index}, {where}"
            assert machine.entry_term(last.index + 1) is None
        checkpoints += any(directory.glob("checkpoint-*"))
        purges += not any(directory.glob("log/*-00000000000000000001*"))

    assert promised > 1000
    assert checkpoints > 20 and purges > 20, "the storm met no checkpoints"
