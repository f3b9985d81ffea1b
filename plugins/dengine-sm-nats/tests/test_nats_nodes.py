"""Nodes on the log: snapshots that all take, joining by one, failing, stopping."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from dengine_sm_nats import NatsLogOptions
from dengine_sm_nats.log import POSITIONS, NatsLog
from dengine_sm_nats.published import SnapshotBoard
from nats_testing import client_of, log_options, node_config, publish_raw, put
from nats_tools import stream_info

from dengine_sm import (
    LogId,
    Node,
    NodeBuilder,
    Outcome,
    ProposalOutcomeUnknown,
    StorageError,
)
from dengine_sm.backends import create_memory


async def fill(node: Node, first: int, count: int = 50) -> None:
    await node.propose_many([put(b"%06d" % number) for number in range(first, first + count)])


async def published(server, stream):
    async with client_of(server) as client:
        options = NatsLogOptions(**log_options(server, stream))
        board = SnapshotBoard(client.jetstream(), options)
        await board.open()
        return await board.published()


async def first_sequence(server, stream) -> int:
    async with client_of(server) as client:
        return (await stream_info(client, stream)).state.first_seq


class FailsAt(type(create_memory(Path()))):
    """Fails while it applies an entry, as on a full disk."""

    at = 0

    async def apply_chunk(self, chunk):
        if self.at and chunk[-1].index >= self.at:
            raise StorageError("the disk is full; nothing was applied")
        return await super().apply_chunk(chunk)


def failing_machine(directory: Path, at: int) -> FailsAt:
    machine = create_memory(directory)
    machine.__class__ = FailsAt
    machine.at = at
    return machine


async def test_a_node_whose_machine_fails_stops_with_proposals_under_way(tmp_path, server, stream):
    config = node_config(tmp_path, server, stream, node_section={"max_batch_entries": 1})
    node = NodeBuilder(config).state_machine(failing_machine(tmp_path, 20)).build()
    await node.start()

    proposals = [asyncio.create_task(node.propose(put(b"%d" % n))) for n in range(60)]
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*proposals, return_exceptions=True)
        with pytest.raises(StorageError, match="disk is full"):
            await node.wait_stopped()

    assert any(isinstance(outcome, ProposalOutcomeUnknown) for outcome in outcomes)


async def test_appends_that_nobody_reads_back_do_not_hold_up_the_stop_of_a_failed_node(
    tmp_path, server, stream
):
    node = NodeBuilder(node_config(tmp_path, server, stream)).build()
    await node.start()
    await node.propose(put(b"a"))
    # As when a node fails in the moment in which an append begins.
    await node._stop_applying()
    proposal = asyncio.create_task(node.propose(put(b"b")))
    while not node._proposer._appends:
        await asyncio.sleep(0)
    node._fail(StorageError("the disk is full"))

    async with asyncio.timeout(20):
        with pytest.raises(StorageError):
            await node.wait_stopped()
        with pytest.raises(ProposalOutcomeUnknown):
            await proposal


async def nodes_that_purged(tmp_path, server, stream) -> list[LogId]:
    """Have one node take three snapshots, the last two of which stay published."""
    async with NodeBuilder(node_config(tmp_path, server, stream, node="a")).build() as node:
        for part in range(3):
            await fill(node, part * 50)
            await node.take_snapshot()
        await fill(node, 150, 7)
    archives = await published(server, stream)
    assert [LogId(1, 150), LogId(1, 100)] == [one.last_included for one in archives]
    assert await first_sequence(server, stream) == archives[-1].position.sequence + 1
    return [one.last_included for one in archives]


async def test_a_log_that_knows_published_snapshots_has_not_read_up_to_them(
    tmp_path, server, stream
):
    await nodes_that_purged(tmp_path, server, stream)
    log = NatsLog(tmp_path / "late", NatsLogOptions(**log_options(server, stream)))

    await log.open()
    try:
        # It tells the others so: none of them may purge what it is still to read.
        assert log.last_log_id() == LogId.ZERO
        assert log.first_index() > 1
    finally:
        await log.close()


@pytest.mark.parametrize("backend", ["memory", "file", "sqlite"])
async def test_a_new_node_joins_behind_a_purge_by_the_published_snapshot(
    tmp_path, server, stream, backend
):
    await nodes_that_purged(tmp_path, server, stream)

    config = node_config(tmp_path, server, stream, node="b", backend=backend)
    async with NodeBuilder(config).build() as node:
        assert (157, LogId(1, 157)) == (node.status().entries, node.status().last_applied)
        result = await node.propose(put(b"more"))
        assert (result.outcome, result.index) == (Outcome.APPLIED, 158)
    async with NodeBuilder(config).build() as node:
        assert node.status().entries == 158


async def test_two_archives_stay_published_and_in_the_store(tmp_path, server, stream):
    await nodes_that_purged(tmp_path, server, stream)

    async with client_of(server) as client:
        objects = await (await client.jetstream().object_store(f"{stream}-snapshots")).list()
    names = [archive.name for archive in await published(server, stream)]
    assert sorted(names) == sorted(info.name for info in objects if not info.deleted)


@pytest.mark.parametrize("lost", [POSITIONS, ""], ids=["positions", "log directory"])
@pytest.mark.parametrize("backend", ["file", "memory"])
async def test_a_node_that_lost_what_it_counted_counts_the_same_again(
    tmp_path, server, stream, backend, lost
):
    async with NodeBuilder(node_config(tmp_path, server, stream, backend=backend)).build() as node:
        await fill(node, 0)
        await publish_raw(server, stream, [b"foreign"])
        await fill(node, 50, 13)
    target = tmp_path / "n0" / "log" / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()

    async with NodeBuilder(node_config(tmp_path, server, stream, backend=backend)).build() as node:
        assert LogId(1, 64) == node.status().last_applied
        assert (await node.propose(put(b"more"))).index == 65


@pytest.mark.parametrize("lost", [POSITIONS, ""], ids=["positions", "log directory"])
async def test_a_node_that_lost_what_it_counted_goes_on_behind_a_purge(
    tmp_path, server, stream, lost
):
    await nodes_that_purged(tmp_path, server, stream)
    target = tmp_path / "a" / "log" / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()

    async with NodeBuilder(node_config(tmp_path, server, stream, node="a")).build() as node:
        assert (157, LogId(1, 157)) == (node.status().entries, node.status().last_applied)
        assert (await node.propose(put(b"more"))).index == 158
        # It has the state already: nothing newer was there to be installed.
        assert {150, 100} == {
            one.metadata.last_included.index for one in node.handler.snapshots.list()
        }


async def test_a_node_that_fell_behind_a_purge_while_it_runs_installs_and_goes_on(
    tmp_path, server, stream
):
    options = {"forget_node_s": 0.001}
    a = NodeBuilder(node_config(tmp_path, server, stream, node="a", **options)).build()
    b = NodeBuilder(node_config(tmp_path, server, stream, node="b", backend="memory")).build()
    async with a, b:
        await fill(a, 0)
        await b.read(b"")
        await b._stop_applying()
        skipped = asyncio.create_task(b.propose(put(b"skipped")))
        barrier = asyncio.create_task(b._log.read_barrier())
        await acknowledged(b, 2)
        for part in range(1, 4):
            await fill(a, part * 50)
            await a.take_snapshot()
        assert await first_sequence(server, stream) > b._log._counting.position.sequence + 3
        b._applying = b._spawn(b._apply_loop(), "apply")

        with pytest.raises(ProposalOutcomeUnknown, match="installed a snapshot over it"):
            await skipped
        assert await barrier >= 51
        result = await b.propose(put(b"more"))
        assert (result.outcome, result.index) == (Outcome.APPLIED, 202)
        assert (b.status().entries, b.status().last_applied.index) == (202, 202)
        assert await b.read(b"skipped") == b"v"


async def acknowledged(node: Node, count: int) -> None:
    """Return once so many messages of a node are in the stream, and not read back."""
    async with asyncio.timeout(20):
        while sum(one.sequence is not None for one in node._log._outbox._sent.values()) < count:
            await asyncio.sleep(0)
