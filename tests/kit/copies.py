"""What the tests of copies share: toy backends, states, and how to look at one."""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dengine_sm import Entry, StateMachine, create_state_machine
from dengine_sm.copying import BackendDirectory, CopyReport, copy_state
from dengine_sm.kv import Delete, Put, encode_command

KIT = Path(__file__).parent
ENGINES = KIT.parent / "toy_plugins" / "engines"
HOUR_MS = 3_600_000


def install_engines(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the toy backends, as pip would, for this process and those it starts."""
    project = tomllib.loads((ENGINES / "pyproject.toml").read_text())
    (module,) = project["tool"]["setuptools"]["py-modules"]
    meta = project["project"]
    info = site / f"{meta['name'].replace('-', '_')}-{meta['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {meta['name']}\nVersion: {meta['version']}\n"
    )
    (name,) = meta["entry-points"]["dengine_sm"]
    (info / "entry_points.txt").write_text(f"[dengine_sm]\n{name} = {module}\n")
    shutil.copy(ENGINES / f"{module}.py", site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{KIT}")
    importlib.invalidate_caches()
    sys.modules.pop(module, None)


def entries(count: int, value: bytes = b"value") -> list[Entry]:
    """Return puts with and without time to live, odd keys and values, and deletes."""
    chunk = []
    for index in range(1, count + 1):
        match index % 10:
            case 3:
                command = encode_command(Put(b"timed-%d" % index, value, ttl_ms=HOUR_MS))
            case 5:
                command = encode_command(Put(b"\x00\xff%d" % index, b""))
            case 7:
                command = encode_command(Delete(b"key-%d" % (index - 1)))
            case _:
                command = encode_command(Put(b"key-%d" % index, value))
        chunk.append(Entry(index, 1 + index // 100, 1_000_000 + index, command))
    return chunk


def opened(backend: str, directory: Path) -> StateMachine:
    machine = create_state_machine(backend, directory, validate="structure")
    machine.start()
    return machine


def fill(backend: str, directory: Path, chunk: Sequence[Entry]) -> Path:
    """Make a machine's directory from a log, stopped; return it."""
    machine = opened(backend, directory)

    async def apply() -> None:
        for start in range(0, len(chunk), 1000):
            await machine.apply_chunk(chunk[start : start + 1000])

    try:
        asyncio.run(apply())
    finally:
        machine.stop()
    return directory


def copied(source: BackendDirectory, target: BackendDirectory, **rest: Any) -> CopyReport:
    return asyncio.run(copy_state(source, target, **rest))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def content(backend: str, directory: Path) -> Any:
    """Return the state and its place in the log, and what ends with a lifetime."""
    machine = opened(backend, directory)
    last = machine.last_applied()

    async def later() -> None:
        stamp_ms = 1_000_000 + 2 * HOUR_MS
        await machine.apply_chunk([Entry(last.index + 1, last.term, stamp_ms, b"")])

    try:
        now = machine.scan_prefix(b"").entries  # type: ignore[attr-defined]
        term = machine.entry_term(last.index)
    finally:
        machine.stop()
    # In a copy, so that a look changes nothing.
    aside = directory.with_name(f"{directory.name}-look")
    shutil.copytree(directory, aside)
    machine = opened(backend, aside)
    try:
        asyncio.run(later())
        left = machine.scan_prefix(b"").entries  # type: ignore[attr-defined]
    finally:
        machine.stop()
        shutil.rmtree(aside)
    return last, term, now, left
