"""Snapshot, install and recovery as orientation; how long a checkpoint stalls applies."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter

from benchmarks.measure import Figure, Settings, run_in
from benchmarks.workload import commands, entries
from dengine_sm.backends.file import FileOptions, create_file
from dengine_sm.kv import KeyValueStateMachine, Put, encode_command

_STALL_LIMIT_MS = 50.0
_CHUNK = 100


async def _fill(machine: KeyValueStateMachine, payloads: list[bytes], size: int = 10_000) -> None:
    for start in range(0, len(payloads), size):
        await machine.apply_chunk(entries(payloads[start : start + size], first_index=1 + start))


async def _snapshots(settings: Settings, count: int, directory: Path) -> dict[str, float]:
    payloads = commands(count)
    machine = create_file(directory / "a")
    machine.start()
    await _fill(machine, payloads)
    start = perf_counter()
    await machine.generate_snapshot_data(directory / "snapshot", machine.last_applied())
    written = perf_counter() - start
    metadata = machine.snapshot_metadata()
    assert metadata is not None
    machine.stop()

    start = perf_counter()
    machine.start()
    recovered = perf_counter() - start
    assert machine.len() == count
    machine.stop()

    other = create_file(directory / "b")
    other.start()
    start = perf_counter()
    await other.apply_snapshot_from_file(metadata, directory / "snapshot")
    installed = perf_counter() - start
    assert other.len() == count
    other.stop()
    start = perf_counter()
    other.start()
    from_checkpoint = perf_counter() - start
    other.stop()
    shutil.rmtree(directory)
    return {
        "snapshot_write": written,
        "snapshot_install": installed,
        "recover_log": recovered,
        "recover_checkpoint": from_checkpoint,
    }


def run_snapshots(settings: Settings) -> list[Figure]:
    """Measure writing and installing a snapshot, and recovery, of 200,000 keys."""
    count = settings.pick(200_000, 500)
    rounds = settings.pick(3, 1)
    turns = [
        run_in("asyncio", _snapshots(settings, count, settings.directory / "snapshots"))
        for _ in range(rounds)
    ]
    titles = {
        "snapshot_write": "write a snapshot",
        "snapshot_install": "install a snapshot (file)",
        "recover_log": "recover file from its log",
        "recover_checkpoint": "recover file from its checkpoint",
    }
    return [
        Figure(
            "snapshots",
            name,
            f"{title}, {count:,} keys",
            "keys/s",
            ours=count / statistics.median(turn[name] for turn in turns),
            rounds=rounds,
            note=f"{statistics.median(turn[name] for turn in turns):.2f} s",
        )
        for name, title in titles.items()
    ]


def _checkpoint_thread() -> threading.Thread | None:
    for thread in threading.enumerate():
        if thread.name == "dengine-sm-checkpoint":
            return thread
    return None


def _updates(keys: int, first_index: int) -> Iterator[list[bytes]]:
    number = first_index
    while True:
        yield [
            encode_command(Put(b"key-%012d" % ((number + i) * 7919 % keys), bytes(256)))
            for i in range(_CHUNK)
        ]
        number += _CHUNK


async def _stalls(settings: Settings, keys: int, directory: Path) -> dict[str, list[float]]:
    """Return the milliseconds of every apply: during a checkpoint, after it, without one."""
    machine = create_file(directory, FileOptions(checkpoint_bytes=1 << 40))
    machine.start()
    await _fill(machine, commands(keys))
    machine.stop()
    # Opened again, the log is longer than a checkpoint's worth: the first apply begins one.
    machine = create_file(directory, FileOptions(checkpoint_bytes=settings.pick(128 << 20, 4096)))
    machine.start()
    index = machine.last_applied().index + 1
    updates = _updates(keys, index)
    pauses: dict[str, list[float]] = {"during": [], "folding": [], "quiet": []}
    checkpoint: threading.Thread | None = None
    for phase in ("during", "folding", "quiet"):
        # The first phase ends with the checkpoint, however long that takes.
        limit = None if phase == "during" else settings.pick(1000, 20)
        for payloads in islice(updates, limit):
            chunk = entries(payloads, first_index=index)
            index += _CHUNK
            start = perf_counter()
            await machine.apply_chunk(chunk)
            await asyncio.sleep(0)
            pauses[phase].append((perf_counter() - start) * 1000)
            if phase == "during":
                checkpoint = checkpoint or _checkpoint_thread()
                if checkpoint is None or not checkpoint.is_alive():
                    break
    machine.stop()
    assert list(directory.glob("checkpoint-*")), "no checkpoint was written"
    shutil.rmtree(directory)
    return pauses


def run_checkpoint(settings: Settings) -> list[Figure]:
    """Measure the longest pause of an apply while a million keys are checkpointed."""
    keys = settings.pick(1_000_000, 2_000)
    pauses = run_in("asyncio", _stalls(settings, keys, settings.directory / "checkpoint"))
    longest = max(pauses["during"] + pauses["folding"])
    details = ", ".join(
        f"{phase}: {len(times)} applies, median {statistics.median(times):.2f} ms, "
        f"longest {max(times):.1f} ms"
        for phase, times in pauses.items()
        if times
    )
    return [
        Figure(
            "checkpoint",
            "checkpoint_stall",
            f"longest apply during a checkpoint of {keys:,} keys",
            "ms, limit / longest as ratio",
            ours=longest,
            bare=_STALL_LIMIT_MS,
            bare_is="the limit of 50 ms",
            ratio=_STALL_LIMIT_MS / longest,
            target=1.0,
            rounds=1,
            note=details,
        )
    ]
