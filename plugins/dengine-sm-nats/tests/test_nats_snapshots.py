"""Snapshots at marks: the same on all nodes, uploaded once, compared."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dengine_sm_nats.published import SnapshotBoard
from dengine_sm_nats.servers import LocalServers
from nats_testing import node_config, put, single_server

from dengine_sm import LogId, Node, NodeBuilder, NodeConfig, Outcome, StateDivergenceError
from dengine_sm.backends import create_memory

NAMES = ("a", "b", "c")
BACKENDS = ("file", "memory", "sqlite")


@pytest.fixture
def uploads(monkeypatch):
    """The ids that are uploaded, by any node of this process."""
    seen = []
    publish = SnapshotBoard.publish

    async def noted(self, metadata, *rest):
        seen.append(metadata.last_included)
        return await publish(self, metadata, *rest)

    monkeypatch.setattr(SnapshotBoard, "publish", noted)
    return seen


async def start_all(stack: AsyncExitStack, configs: list[NodeConfig]) -> list[Node]:
    return [await stack.enter_async_context(NodeBuilder(config).build()) for config in configs]


def ids_of(node: Node) -> list[LogId]:
    return [one.metadata.last_included for one in node.handler.snapshots.list()]


async def until_equal_snapshots(nodes: list[Node], last: LogId) -> None:
    """Return once all nodes have written the snapshot of an id."""
    async with asyncio.timeout(30):
        while any(not ids_of(node) or ids_of(node)[-1] != last for node in nodes):
            await asyncio.sleep(0.01)


async def test_snapshots_that_all_ask_for_at_once_are_the_same_ones_uploaded_once(
    tmp_path, uploads
):
    with LocalServers(tmp_path / "servers", 3) as servers:
        configs = [
            node_config(tmp_path, servers, "marks", node=name, backend=backend)
            for name, backend in zip(NAMES, BACKENDS, strict=True)
        ]
        async with AsyncExitStack() as stack:
            nodes = await start_all(stack, configs)
            for part in range(4):
                proposals = [
                    node.propose_many(
                        [
                            put(b"%s%d-%d" % (node.config.node.name.encode(), part, n))
                            for n in range(30)
                        ]
                    )
                    for node in nodes
                ]
                taken = asyncio.gather(*(node.take_snapshot() for node in nodes))
                await asyncio.gather(*proposals)
                await taken
            last = await nodes[0].take_snapshot()
            assert last is not None and LogId(1, 360) == last.last_included
            await until_equal_snapshots(nodes, last.last_included)

            newest = [node.handler.snapshots.newest() for node in nodes]
            assert len({one.metadata.checksum for one in newest if one}) == 1
            assert ids_of(nodes[0]) == ids_of(nodes[1]) == ids_of(nodes[2])
            assert sorted(set(uploads)) == sorted(uploads)


class Forgets(type(create_memory(Path()))):
    """Drops one command, as a machine with a fault does."""

    async def apply_chunk(self, chunk):
        return await super().apply_chunk(
            [
                entry
                if b"forgotten" not in entry.data
                else type(entry)(entry.index, entry.term, entry.timestamp_ms, put(b"other"))
                for entry in chunk
            ]
        )


def broken_node(config: NodeConfig) -> Node:
    machine = create_memory(config.node.data_dir / "state_machine")
    machine.__class__ = Forgets
    return NodeBuilder(config).state_machine(machine).build()


async def until_heard(nodes: list[Node]) -> None:
    """Return once every node knows of all others."""
    async with asyncio.timeout(30):
        while any(node._log._neighbours.count() != len(nodes) for node in nodes):
            await asyncio.sleep(0.05)


async def test_a_node_whose_state_differs_is_stopped_named_and_rejoins_when_wiped(tmp_path):
    with single_server(tmp_path / "server") as server:
        configs = [node_config(tmp_path, server, "diverge", node=name) for name in NAMES]
        async with AsyncExitStack() as stack:
            good = await start_all(stack, configs[:2])
            bad = broken_node(configs[2])
            await bad.start()
            await until_heard([*good, bad])
            await good[0].propose(put(b"equal"))
            assert await good[0].take_snapshot() is not None
            await bad.read(b"")
            await good[1].propose(put(b"forgotten"))
            assert await good[0].take_snapshot() is not None

            async with asyncio.timeout(30):
                with pytest.raises(StateDivergenceError, match="node 'c' at LogId") as caught:
                    await bad.wait_stopped()
            assert (LogId(1, 2), LogId(1, 1)) == (caught.value.log_id, caught.value.last_equal)
            # It stays stopped, with a sound machine too, until its directory is gone.
            for _ in range(2):
                with pytest.raises(StateDivergenceError, match="stopped by an alarm") as again:
                    await NodeBuilder(configs[2]).build().start()
                assert LogId(1, 2) == again.value.log_id

            result = await good[0].propose(put(b"after"))
            assert (result.outcome, result.index) == (Outcome.APPLIED, 3)
            shutil.rmtree(tmp_path / "c")
            rejoined = await stack.enter_async_context(NodeBuilder(configs[2]).build())
            assert await rejoined.read(b"forgotten") == b"v"
            nodes = [*good, rejoined]
            last = await rejoined.take_snapshot()
            assert last is not None
            await until_equal_snapshots(nodes, last.last_included)
            for node in nodes:
                await node.read(b"after")
                assert node.status().running and node.status().entries == 3
