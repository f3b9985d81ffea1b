"""`apply_chunk` of the backend `file`."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks import bare
from benchmarks.measure import Figure, Settings, compare, run_in, take_turns
from benchmarks.workload import commands, entries
from dengine_sm import Entry
from dengine_sm.backends.file import create_file

_BARE = "cbor2.loads and dict put per command, one FramedLog.append"


async def _ours(directory: Path, chunk: Sequence[Entry], *, read_results: bool = False) -> float:
    machine = create_file(directory)
    machine.start()
    try:
        start = perf_counter()
        results = await machine.apply_chunk(chunk)
        if read_results:
            assert all(result.succeeded for result in results)
        elapsed = perf_counter() - start
        assert machine.len() == len(chunk)
    finally:
        machine.stop()
        shutil.rmtree(directory)
    return len(chunk) / elapsed


async def _turns(settings: Settings, count: int, rounds: int) -> dict[str, list[float]]:
    payloads = commands(count)
    chunk = entries(payloads)
    directory = settings.directory / "apply"

    async def ours() -> float:
        return await _ours(directory / "ours", chunk)

    async def ours_read() -> float:
        return await _ours(directory / "ours", chunk, read_results=True)

    async def bare_program() -> float:
        try:
            return bare.apply_chunk(directory / "bare", payloads)
        finally:
            shutil.rmtree(directory / "bare")

    return await take_turns(
        rounds, {"ours": ours, "bare": bare_program, "ours, results read": ours_read}
    )


def run(settings: Settings) -> list[Figure]:
    """Measure a chunk of 10,000 entries, and whether the time is linear in their number."""
    sizes = settings.pick([1_000, 10_000, 100_000], [100, 1_000])
    middle = sizes[1]
    rates = {
        count: run_in("asyncio", _turns(settings, count, settings.pick(rounds, 1)))
        for count, rounds in zip(sizes, [21, 15, 5], strict=False)
    }
    main = Figure(
        "apply_chunk",
        "apply_chunk",
        f"apply_chunk, {middle:,} x 256 B on file",
        "entries/s",
        bare_is=_BARE,
        target=0.5,
    )
    read = Figure(
        "apply_chunk",
        "apply_chunk_results",
        "the same, every ApplyResult read",
        "entries/s",
        bare_is=_BARE,
        note="results are built when they are looked at",
    )
    return [
        compare(main, rates[middle]),
        compare(read, rates[middle], ours="ours, results read"),
        _linearity(rates),
    ]


def _linearity(rates: dict[int, dict[str, list[float]]]) -> Figure:
    """Compare how the rate falls off with size: the bare program is linear by construction."""
    ours = {count: statistics.median(one["ours"]) for count, one in rates.items()}
    others = {count: statistics.median(one["bare"]) for count, one in rates.items()}
    smallest, largest = min(rates), max(rates)
    our_quotient = ours[largest] / ours[smallest]
    bare_quotient = others[largest] / others[smallest]
    return Figure(
        "apply_chunk",
        "apply_chunk_linear",
        f"apply_chunk, rate at {largest:,} / rate at {smallest:,}",
        "quotient",
        ours=our_quotient,
        bare=bare_quotient,
        bare_is="the same quotient of the bare program",
        ratio=our_quotient / bare_quotient,
        target=0.8,
        rounds=min(len(one["ours"]) for one in rates.values()),
        note="entries/s at " + ", ".join(f"{count}: {rate:,.0f}" for count, rate in ours.items()),
    )
