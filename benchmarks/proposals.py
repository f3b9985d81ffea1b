"""`Node.propose` from concurrent tasks, and `Node.propose_many`, on the embedded log."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter

import attrs

from benchmarks import bare
from benchmarks.measure import (
    Figure,
    Program,
    Settings,
    compare,
    installed,
    loops,
    run_in,
    take_turns,
)
from benchmarks.workload import commands, node_config, pairs
from dengine_sm import Node, NodeBuilder
from dengine_sm.kv import Put, encode_command

WORKERS = 256
_PYSYNCOBJ_MODES = {"default": 4, "tick": 1, "tick-synced": 1}
"""How PySyncObj is driven, and which share of the commands it gets: its defaults are slow."""


async def propose_all(node: Node, payloads: Sequence[bytes]) -> float:
    """Propose from 256 tasks, each awaiting its own; return commands per second."""
    waiting = iter(payloads)

    async def work() -> None:
        for payload in waiting:
            result = await node.propose(payload)
            assert result.succeeded

    start = perf_counter()
    await asyncio.gather(*[work() for _ in range(WORKERS)])
    return len(payloads) / (perf_counter() - start)


async def _pysyncobj(directory: Path, count: int, mode: str) -> float:
    """Run PySyncObj in a process of its own: its threads must not share our interpreter."""
    directory.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.pysyncobj_node",
        str(directory),
        str(count),
        str(WORKERS),
        mode,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    shutil.rmtree(directory)
    if process.returncode:
        raise RuntimeError(f"benchmarks.pysyncobj_node: exit code {process.returncode}")
    return float(json.loads(output)["rate"])


async def _propose_turns(settings: Settings) -> dict[str, list[float]]:
    count = WORKERS * settings.pick(80, 4)
    payloads = commands(count)
    directory = settings.directory / "propose"
    async with NodeBuilder(node_config(directory / "node")).build() as node:

        async def ours() -> float:
            return await propose_all(node, payloads)

        programs: dict[str, Program] = {
            "ours": ours,
            "bare": lambda: bare.tasks_and_futures(WORKERS, count // WORKERS),
            "futures": lambda: bare.futures_only(WORKERS, count // WORKERS),
        }
        if installed("pysyncobj"):
            for mode, share in _PYSYNCOBJ_MODES.items():
                programs[mode] = partial(_pysyncobj, directory / mode, count // share, mode)
        rates = await take_turns(settings.pick(7, 1), programs)
    shutil.rmtree(directory)
    return rates


def run_propose(settings: Settings) -> list[Figure]:
    """Measure 256 concurrent proposers."""
    figures: list[Figure] = []
    for loop in loops():
        rates = run_in(loop, _propose_turns(settings))
        name = "propose" if loop == "asyncio" else f"propose_{loop}"
        title = f"propose, {WORKERS} proposers ({loop})"
        main = Figure(
            "propose",
            name,
            title,
            "commands/s",
            bare_is="256 workers, a future and a task per operation",
            # The target is about asyncio; uvloop's own bare program is shown beside it.
            target=0.35 if loop == "asyncio" else None,
            loop=loop,
        )
        futures = Figure(
            "propose",
            f"{name}_futures",
            f"{title} to futures alone",
            "commands/s",
            bare_is="256 workers, a future per operation, no task",
            loop=loop,
        )
        figures += [compare(main, rates), compare(futures, rates, "futures")]
        figures += _pysyncobj_figures(name, title, loop, rates)
    return figures


def _pysyncobj_figures(
    name: str, title: str, loop: str, rates: dict[str, list[float]]
) -> list[Figure]:
    missing = "" if installed("pysyncobj") else "pysyncobj is not installed"
    how = {
        "default": "as its documentation starts it",
        "tick": "ticked in a busy loop",
        "tick-synced": "ticked in a busy loop, journal synced before each tick",
    }
    return [
        compare(
            Figure(
                "propose",
                f"{name}_pysyncobj_{mode.replace('-', '_')}",
                f"{title} to PySyncObj, {mode}",
                "commands/s",
                bare_is=f"PySyncObj, one node, journal on, 256 in flight, {text}",
                target=6.0 if mode == "default" else None,
                loop=loop,
                skipped=missing,
            ),
            rates,
            mode,
        )
        for mode, text in how.items()
    ]


async def _batch_turns(settings: Settings) -> dict[str, list[float]]:
    size, number = settings.pick((1_000, 20), (50, 3))
    source = iter(pairs(size * number))
    batched = [list(islice(source, size)) for _ in range(number)]
    directory = settings.directory / "propose_many"
    async with NodeBuilder(node_config(directory / "node")).build() as node:

        async def ours(*, read_results: bool = False) -> float:
            start = perf_counter()
            for batch in batched:
                payloads = [encode_command(Put(key, value)) for key, value in batch]
                results = await node.propose_many(payloads)
                assert len(results) == size
                if read_results:
                    assert all(result.succeeded for result in results)
            return size * number / (perf_counter() - start)

        async def bare_program() -> float:
            try:
                return bare.batches(directory / "bare", batched)
            finally:
                shutil.rmtree(directory / "bare")

        programs: dict[str, Program] = {
            "ours": ours,
            "bare": bare_program,
            "ours, results read": partial(ours, read_results=True),
        }
        rates = await take_turns(settings.pick(11, 1), programs)
    shutil.rmtree(directory)
    return rates


def run_propose_many(settings: Settings) -> list[Figure]:
    """Measure batches of 1,000 commands."""
    figures: list[Figure] = []
    for loop in loops():
        rates = run_in(loop, _batch_turns(settings))
        main = Figure(
            "propose_many",
            "propose_many" if loop == "asyncio" else f"propose_many_{loop}",
            f"propose_many, batches of 1,000 ({loop})",
            "commands/s",
            bare_is="encode, one synced FramedLog.append per batch, decode, dict put",
            target=0.5,
            loop=loop,
        )
        read = attrs.evolve(
            main,
            name=f"{main.name}_results",
            title="the same, every ApplyResult read",
            target=None,
            note="results are built when they are looked at",
        )
        figures += [compare(main, rates), compare(read, rates, ours="ours, results read")]
    return figures
