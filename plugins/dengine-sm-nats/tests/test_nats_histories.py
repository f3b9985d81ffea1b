"""Two real histories through three nodes with three backends, clients on all of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from dengine_sm_nats.servers import LocalServers
from histories import SEED, chunks, digest, history

from dengine_sm import LogId, Node, NodeBuilder, NodeConfig
from dengine_sm.config import LogSection, NodeSection, SnapshotSection, StateMachineSection

BACKENDS = ("file", "rocksdb", "sqlite")


@asynccontextmanager
async def three_nodes(directory: Path, backends: tuple[str, ...]) -> AsyncIterator[list[Node]]:
    with LocalServers(directory / "servers", 3) as servers:
        nodes = []
        async with AsyncExitStack() as stack:
            for number, backend in enumerate(backends):
                config = NodeConfig(
                    node=NodeSection(f"n{number}", directory / f"n{number}"),
                    state_machine=StateMachineSection(backend, validate="structure"),
                    log=LogSection(
                        "nats",
                        {
                            "servers": list(servers.urls),
                            "monitoring": list(servers.monitoring),
                            "node": f"n{number}",
                        },
                    ),
                    snapshot=SnapshotSection(every_entries=None, every_bytes=None),
                )
                nodes.append(await stack.enter_async_context(NodeBuilder(config).build()))
            yield nodes


@pytest.mark.parametrize(
    ("name", "backends"),
    [("raft", BACKENDS), ("etcd", BACKENDS), ("raft", ("lmdb", "memory", "file"))],
)
async def test_every_node_meets_the_oracle_with_the_same_snapshot(
    tmp_path: Path, name: str, backends: tuple[str, ...]
) -> None:
    lines, checkpoints = history(name).entries, history(name).checkpoints
    rng = random.Random(SEED)
    async with three_nodes(tmp_path, backends) as nodes:
        stops = [checkpoint.after_line for checkpoint in checkpoints]
        remaining = list(checkpoints)
        for first, last in chunks(len(lines), rng, stops):
            commands = [entry.data for entry in lines[first - 1 : last]]
            results = await rng.choice(nodes).propose_many(commands)
            assert [first, last] == [results[0].index, results[-1].index]
            if last != remaining[0].after_line:
                continue
            checkpoint = remaining.pop(0)
            snapshots = []
            for node in nodes:
                observed = digest((await node.scan()).entries)
                assert (checkpoint.entries, checkpoint.sha256) == observed, node.backend
            metadata = await rng.choice(nodes).take_snapshot()
            assert metadata is not None and metadata.last_included == LogId(1, last)
            for node in nodes:
                # The node that was asked has its snapshot; the others took one at the same mark.
                await node.read(b"")
                await node.handler.wait_snapshot_written()
                newest = node.handler.snapshots.newest()
                assert newest is not None and newest.metadata == metadata, node.backend
                snapshots.append(newest.path.read_bytes())
            assert snapshots[0] == snapshots[1] == snapshots[2]
        assert not remaining
