"""Nodes on the log: snapshots that all take, joining by one, failing, stopping."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from dengine_sm_nats import NatsLogOptions
from dengine_sm_nats.published import SnapshotBoard
from nats_testing import (
    client_of,
    log_options,
    node_config,
    put,
    single_server,
)

from dengine_sm import (
    Node,
    NodeBuilder,
    ProposalOutcomeUnknown,
    StorageError,
)
from dengine_sm.backends import create_memory

_STREAMS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with single_server(tmp_path_factory.mktemp("server")) as servers:
        yield servers


@pytest.fixture
def stream() -> str:
    return f"nodes-{next(_STREAMS)}"


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
        return (await client.jetstream().stream_info(stream)).state.first_seq


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
    while not node._appends:
        await asyncio.sleep(0)
    node._fail(StorageError("the disk is full"))

    async with asyncio.timeout(20):
        with pytest.raises(StorageError):
            await node.wait_stopped()
        with pytest.raises(ProposalOutcomeUnknown):
            await proposal
