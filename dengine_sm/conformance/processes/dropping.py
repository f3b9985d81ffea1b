"""Machines that nobody stops; runs in a process that the kit kills afterwards."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dengine_sm.conformance.maker import Maker
from dengine_sm.errors import StorageLockedError
from dengine_sm.model import Entry


def exit_without_stop(_machine: Any) -> NoReturn:
    """End the process as the interpreter ends it, but for what waits for threads."""
    gc.collect()
    atexit._run_exitfuncs()
    os._exit(0)


async def drop_running_machine(
    _machine: Any, maker: str, directory: Path, chunks: Sequence[Sequence[Entry]]
) -> int:
    """Drop a running machine, then go on with a new one, if the directory is not locked.

    Returns:
        The index of the last entry that a machine has applied and flushed.
    """
    factory = Maker.from_json(maker).resolve()
    machine: Any = factory(directory)
    machine.start()
    await _apply_and_flush(machine, chunks[0])
    del machine
    await _collect()
    successor = factory(directory)
    try:
        successor.start()
    except StorageLockedError:
        return chunks[0][-1].index
    await _apply_and_flush(successor, chunks[1])
    return chunks[1][-1].index


async def drop_stopped_machine(
    _machine: Any, maker: str, directory: Path, chunks: Sequence[Sequence[Entry]]
) -> int:
    """Drop a stopped machine while another one runs on its directory.

    Returns:
        The index of the last entry that a machine has applied and flushed.
    """
    factory = Maker.from_json(maker).resolve()
    machine: Any = factory(directory)
    machine.start()
    await _apply_and_flush(machine, chunks[0])
    machine.stop()
    successor = factory(directory)
    successor.start()
    await _apply_and_flush(successor, chunks[1])
    del machine
    await _collect()
    await _apply_and_flush(successor, chunks[2])
    return chunks[2][-1].index


async def _apply_and_flush(machine: Any, chunk: Sequence[Entry]) -> None:
    await machine.apply_chunk(chunk)
    machine.flush()


async def _collect() -> None:
    # What a finished task or a callback of the loop still holds goes with the next turns.
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
