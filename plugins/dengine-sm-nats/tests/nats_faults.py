"""A cluster, and what fails in it: servers, nodes, the network, bits. All is running afterwards."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
from dengine_sm_nats.servers import LocalServers
from nats_nodes import NodeProcess
from proxy import Network

STREAM = "dengine"
BACKENDS = ("file", "rocksdb", "sqlite")


@attrs.define(eq=False)
class Cluster:
    """Servers behind proxies, and nodes as processes."""

    directory: Path
    backends: tuple[str, ...] = BACKENDS
    snapshot_entries: int = 2000
    servers: LocalServers = attrs.field(init=False)
    network: Network = attrs.field(init=False)
    nodes: list[NodeProcess] = attrs.field(init=False)

    async def start(self) -> None:
        # Of keys that an earlier storm wrote, the checker would know nothing.
        assert not self.directory.exists() or not list(self.directory.iterdir()), self.directory
        self.servers = LocalServers(self.directory / "servers", 3)
        self.network = Network(self.servers)
        urls = [f"nats://127.0.0.1:{port}" for port in self.network.clients]
        await asyncio.to_thread(self.servers.start)
        self.nodes = [
            NodeProcess(
                self.directory / f"node{number}",
                f"node{number}",
                backend,
                self.servers,
                snapshot_entries=self.snapshot_entries,
                # Monitoring goes away with a server; what it shows was verified at the start.
                log_options={"servers": urls, "sync": "unverified"},
            )
            for number, backend in enumerate(self.backends)
        ]
        await asyncio.gather(*(node.start() for node in self.nodes))

    async def stop(self) -> None:
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            await node.kill()
        await asyncio.to_thread(self.servers.stop)
        self.network.__exit__()

    async def leader(self) -> int:
        return await asyncio.to_thread(self.servers.leader_of, STREAM)

    async def healed(self) -> None:
        """Wait until every server is healthy and holds the whole stream."""
        await asyncio.to_thread(self.servers.wait_healthy)
        # A server that was wiped is healthy, and may vote, before it has copied everything. To
        # take another one then would leave one copy of three, and nobody promises that.
        for stream in (STREAM, f"KV_{STREAM}-snapshot-record", f"OBJ_{STREAM}-snapshots"):
            leader = await asyncio.to_thread(self.servers.leader_of, stream)
            state = await asyncio.to_thread(self.servers.replica_state, leader, stream)
            if state is not None:
                await asyncio.to_thread(self.servers.wait_copied, stream, state["last_seq"])


async def kill_leader(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    await _kill_server(cluster, await cluster.leader(), rng)


async def kill_server(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    await _kill_server(cluster, rng.randrange(3), rng)


async def _kill_server(cluster: Cluster, number: int, rng: random.Random) -> None:
    await asyncio.to_thread(cluster.servers.kill, number)
    await asyncio.sleep(rng.uniform(0, 2))
    await asyncio.to_thread(cluster.servers.start_one, number)


async def kill_all_servers(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    for number in range(3):
        await asyncio.to_thread(cluster.servers.kill, number)
    for number in range(3):
        await asyncio.to_thread(cluster.servers.start_one, number)


async def pause_leader(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    await _pause_server(cluster, await cluster.leader(), pause_s)


async def pause_server(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    await _pause_server(cluster, rng.randrange(3), pause_s)


async def _pause_server(cluster: Cluster, number: int, pause_s: float) -> None:
    cluster.servers.pause(number)
    try:
        await asyncio.sleep(pause_s)
    finally:
        cluster.servers.resume(number)


async def cut_off_leader(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    """Part the leader from the other servers; its clients stay with it half of the time."""
    number = await cluster.leader()
    await asyncio.to_thread(cluster.network.cut_off, number, clients=rng.random() < 0.5)
    try:
        await asyncio.sleep(pause_s)
    finally:
        await asyncio.to_thread(cluster.network.heal)


async def wipe_server(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    await _wipe_server(cluster, rng.randrange(3))


async def flip_bits(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    """Damage a block file of one server, go on with it for a while, then do what its alarm says."""
    number = rng.randrange(3)
    await asyncio.to_thread(cluster.servers.terminate, number)
    blocks = sorted((cluster.servers.store(number)).rglob(f"{STREAM}/msgs/*.blk"))
    for block in blocks:
        content = bytearray(block.read_bytes())
        if content:
            content[len(content) // 2] ^= 1 << rng.randrange(8)
            block.write_bytes(content)
    await asyncio.to_thread(cluster.servers.start_one, number)
    await asyncio.sleep(pause_s)
    await _wipe_server(cluster, number)


async def _wipe_server(cluster: Cluster, number: int) -> None:
    await asyncio.to_thread(cluster.servers.kill, number)
    await asyncio.to_thread(cluster.servers.wipe, number)
    await asyncio.to_thread(cluster.servers.start_one, number)


async def kill_node(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    node = rng.choice(cluster.nodes)
    await node.kill()
    await node.start_until_ready()


async def kill_all_nodes(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    await asyncio.gather(*(node.kill() for node in cluster.nodes))
    await asyncio.gather(*(node.start_until_ready() for node in cluster.nodes))


async def pause_node(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    node = rng.choice(cluster.nodes)
    node.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(pause_s)
    finally:
        node.signal(signal.SIGCONT)


async def wipe_node(cluster: Cluster, rng: random.Random, pause_s: float) -> None:
    node = rng.choice(cluster.nodes)
    await node.wipe()
    await node.start_until_ready()


Fault = Callable[[Cluster, random.Random, float], Awaitable[None]]
SERVER_FAULTS: tuple[Fault, ...] = (
    kill_leader,
    kill_server,
    kill_all_servers,
    pause_leader,
    pause_server,
    cut_off_leader,
    wipe_server,
    flip_bits,
)
NODE_FAULTS: tuple[Fault, ...] = (kill_node, kill_all_nodes, pause_node, wipe_node)


async def keep_failing(
    cluster: Cluster,
    faults: tuple[Fault, ...],
    rng: random.Random,
    pause_s: float,
    counts: Counter[str],
    until_s: float,
) -> None:
    """Inject one fault after the other, each kind as often as the others."""
    while time.monotonic() < until_s:
        for fault in rng.sample(faults, len(faults)):
            if time.monotonic() >= until_s:
                return
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            print(f"{time.strftime('%H:%M:%S')} {fault.__name__}", file=sys.stderr, flush=True)
            await fault(cluster, rng, pause_s)
            counts[fault.__name__] += 1
            if faults is SERVER_FAULTS:
                # One server's trouble at a time: two of three is more than a quorum survives.
                await cluster.healed()
