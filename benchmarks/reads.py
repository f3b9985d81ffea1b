"""Linearizable `Node.read` from one task."""

from __future__ import annotations

import random
import shutil
from time import perf_counter

from benchmarks import bare
from benchmarks.measure import Figure, Settings, compare, loops, run_in, take_turns
from benchmarks.workload import node_config, pairs
from dengine_sm import NodeBuilder
from dengine_sm.kv import Put, encode_command


async def _turns(settings: Settings) -> dict[str, list[float]]:
    state = dict(pairs(settings.pick(10_000, 100)))
    keys = random.Random(2).choices(list(state), k=settings.pick(200_000, 1_000))
    directory = settings.directory / "read"
    async with NodeBuilder(node_config(directory)).build() as node:
        await node.propose_many([encode_command(Put(key, value)) for key, value in state.items()])
        assert await node.read(keys[0]) == state[keys[0]]

        async def ours() -> float:
            read = node.read
            start = perf_counter()
            for key in keys:
                await read(key)
            return len(keys) / (perf_counter() - start)

        rates = await take_turns(
            settings.pick(15, 1), {"ours": ours, "bare": lambda: bare.reads(state, keys)}
        )
    shutil.rmtree(directory)
    return rates


def run(settings: Settings) -> list[Figure]:
    """Measure reads that see everything acknowledged before they began."""
    return [
        compare(
            Figure(
                "read",
                "read" if loop == "asyncio" else f"read_{loop}",
                f"linearizable read, one task ({loop})",
                "reads/s",
                bare_is="await of a coroutine around dict.get",
                target=0.4,
                loop=loop,
            ),
            run_in(loop, _turns(settings)),
        )
        for loop in loops()
    ]
