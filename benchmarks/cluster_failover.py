"""How long nothing can be written after the server that leads the stream was killed."""

from __future__ import annotations

import asyncio
import statistics
import sys
from time import perf_counter
from typing import Any

import attrs

from benchmarks.cluster_parts import STREAM, make_node, missing, replicas, three_servers
from benchmarks.measure import Figure, Settings, run_in
from benchmarks.workload import commands
from dengine_sm import Node

_WRITERS = 16
_QUIET_S = 1.0
"""Seconds of undisturbed writes before each kill, and behind each gap."""
_LONGEST_S = 60.0


@attrs.define
class _Acknowledged:
    """When proposals were acknowledged: how many, the last one, and the longest pause."""

    count: int = 0
    last_s: float = 0.0
    longest_s: float = 0.0
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    def note(self) -> None:
        now_s = perf_counter()
        self.longest_s = max(self.longest_s, now_s - self.last_s)
        self.last_s = now_s
        self.count += 1
        self.changed.set()

    def begin(self) -> None:
        self.last_s, self.longest_s = perf_counter(), 0.0

    async def more(self, count: int) -> None:
        """Return when so many more were acknowledged."""
        wanted = self.count + count
        async with asyncio.timeout(_LONGEST_S):
            while self.count < wanted:
                self.changed.clear()
                await self.changed.wait()


def run(settings: Settings) -> list[Figure]:
    """Kill the stream's leader again and again, and measure each gap."""
    if why := missing():
        return [Figure("cluster_failover", "cluster_failover", "write gap", "", skipped=why)]
    gaps_s = sorted(run_in("asyncio", _gaps(settings, settings.pick(20, 1))))
    text = ", ".join(f"{gap_s:.2f}" for gap_s in gaps_s)
    values = {
        "min": gaps_s[0],
        "median": statistics.median(gaps_s),
        "p90": gaps_s[round(0.9 * (len(gaps_s) - 1))],
        "max": gaps_s[-1],
    }
    return [
        Figure(
            "cluster_failover",
            f"cluster_failover_{name}",
            f"write gap after kill -9 of the stream's leader, {name}",
            "seconds",
            ours=value,
            rounds=len(gaps_s),
            note=f"all: {text}",
        )
        for name, value in values.items()
    ]


async def _gaps(settings: Settings, kills: int) -> list[float]:
    directory = settings.directory / "failover"
    with three_servers(directory / "servers") as servers:
        node = make_node(servers, directory / "node", "loaded")
        async with node, replicas(servers, directory, 2):
            acknowledged = _Acknowledged()
            writers = [
                asyncio.create_task(_write(node, acknowledged, b)) for b in commands(_WRITERS)
            ]
            try:
                return [await _gap(servers, acknowledged, n, kills) for n in range(kills)]
            finally:
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)


async def _write(node: Node, acknowledged: _Acknowledged, command: bytes) -> None:
    while True:
        await node.propose(command)
        acknowledged.note()


async def _gap(servers: Any, acknowledged: _Acknowledged, number: int, kills: int) -> float:
    await acknowledged.more(_WRITERS)
    await asyncio.sleep(_QUIET_S)
    leader = await asyncio.to_thread(servers.leader_of, STREAM)
    acknowledged.begin()
    await asyncio.to_thread(servers.kill, leader)
    # What was on its way when the leader died may still be acknowledged at once.
    await asyncio.sleep(_QUIET_S)
    await acknowledged.more(_WRITERS)
    await asyncio.sleep(_QUIET_S)
    gap_s = acknowledged.longest_s
    await asyncio.to_thread(servers.start_one, leader)
    await asyncio.to_thread(servers.wait_healthy)
    print(f"kill {number + 1}/{kills}: n{leader}, {gap_s:.2f} s", file=sys.stderr, flush=True)
    return gap_s
