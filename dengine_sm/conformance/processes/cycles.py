"""Cycles of use, failing paths included, and what the process holds after some of them.

Runs in a process of its own, which the kit asks for the counts at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dengine_sm.conformance.maker import Maker, OpenStateMachine
from dengine_sm.conformance.processes import holdings
from dengine_sm.model import Entry, LogId

Counts = dict[str, list[str]]
"""What is held, by kind: a line for each descriptor, thread, child and file."""

_STEP = 3
_RESET_EVERY = 5
ENTRIES = 2 * _STEP * _RESET_EVERY + _STEP + 1
"""Length of a log that no cycle comes to the end of."""
_TEMPORARY = ("tmp", "temp")


def count_over_cycles(
    _machine: Any, maker: str, root: Path, entries: Sequence[Entry], cycles: int, every: int
) -> list[Counts]:
    """Use a machine in cycles on one directory.

    Args:
        maker: makes the machine.
        root: empty; the machine's directory is `root / "data"`.
        entries: the log, `ENTRIES` long: the machine is reset now and then.
        cycles: how many.
        every: cycles between two counts.

    Returns:
        What was held after each `every` cycles.
    """
    user = _User(Maker.from_json(maker).resolve(), root, entries)
    counts = []
    for number in range(cycles):
        # A loop for each cycle: its threads end with it, and are not the machine's.
        asyncio.run(user.cycle())
        if (number + 1) % every == 0:
            counts.append(user.holdings())
    return counts


class _User:
    def __init__(self, factory: OpenStateMachine, root: Path, entries: Sequence[Entry]) -> None:
        self._factory = factory
        self._data, self._work, self._foreign = root / "data", root / "work", root / "foreign"
        self._entries = entries
        self._number = 0
        self._data.mkdir()
        self._foreign.mkdir()
        (self._foreign / "acme-backend.txt").write_text("format: acme 7\n")

    def holdings(self) -> Counts:
        gc.collect()
        siblings = [path for path in self._data.parent.iterdir() if path != self._data]
        return {
            "descriptors": sorted(holdings.descriptors().elements()),
            "threads": sorted(holdings.threads().values()),
            "child processes": sorted(holdings.children()),
            "temporary files": _paths_below(Path(tempfile.gettempdir())),
            "files beside the directory": sorted(str(path) for path in siblings),
            "temporary files in the directory": [
                path
                for path in _paths_below(self._data)
                if any(word in Path(path).name.lower() for word in _TEMPORARY)
            ],
        }

    async def cycle(self) -> None:
        """Use one machine from construction to stop; what fails is for other clauses."""
        self._number += 1
        self._work.mkdir()
        machine = self._factory(self._data)
        with contextlib.suppress(Exception):
            machine.start()
        for step in (
            *(self._apply, self._apply_a_gap, self._start_a_second, self._start_elsewhere),
            *(self._flush, self._cancel_a_snapshot, self._fail_a_snapshot, self._mislabel),
            *(self._install, self._reset),
        ):
            with contextlib.suppress(Exception):
                await step(machine)
        for _ in range(2):
            with contextlib.suppress(Exception):
                machine.stop()
        with contextlib.suppress(Exception):
            machine.get(b"a")
        shutil.rmtree(self._work)

    async def _apply(self, machine: Any) -> None:
        applied = machine.last_applied().index
        await machine.apply_chunk(self._entries[applied : applied + _STEP])

    async def _apply_a_gap(self, machine: Any) -> None:
        await machine.apply_chunk(self._entries[machine.last_applied().index + 1 :][:_STEP])

    async def _start_a_second(self, _machine: Any) -> None:
        self._start_and_stop(self._data)

    async def _start_elsewhere(self, _machine: Any) -> None:
        self._start_and_stop(self._foreign)

    def _start_and_stop(self, directory: Path) -> None:
        other = self._factory(directory)
        with contextlib.suppress(Exception):
            other.start()
        other.stop()

    async def _flush(self, machine: Any) -> None:
        machine.flush()
        await machine.flush_async()
        machine.save_hard_state()

    async def _cancel_a_snapshot(self, machine: Any) -> None:
        path = self._work / "cancelled"
        task = asyncio.ensure_future(machine.generate_snapshot_data(path, machine.last_applied()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        shutil.rmtree(path, ignore_errors=True)

    async def _fail_a_snapshot(self, machine: Any) -> None:
        path = self._work / "no-directory"
        path.write_bytes(b"in the way")
        await machine.generate_snapshot_data(path, machine.last_applied())

    async def _mislabel(self, machine: Any) -> None:
        label = LogId(machine.last_applied().term, machine.last_applied().index + 1)
        await machine.generate_snapshot_data(self._work / "mislabelled", label)

    async def _install(self, machine: Any) -> None:
        """Install a snapshot damaged, then as it is, then when it is stale."""
        path, damaged = self._work / "sound", self._work / "damaged"
        await machine.generate_snapshot_data(path, machine.last_applied())
        metadata = machine.snapshot_metadata()
        shutil.copytree(path, damaged)
        for file in [file for file in damaged.rglob("*") if file.is_file()]:
            file.write_bytes(file.read_bytes()[:-1])
        with contextlib.suppress(Exception):
            await machine.apply_snapshot_from_file(metadata, damaged)
        await machine.apply_snapshot_from_file(metadata, path)
        await self._apply(machine)
        await machine.apply_snapshot_from_file(metadata, path)

    async def _reset(self, machine: Any) -> None:
        if self._number % _RESET_EVERY == 0:
            await machine.reset()


def _paths_below(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*"))
