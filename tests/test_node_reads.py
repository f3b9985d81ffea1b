"""Linearizable reads on a log that other nodes append to: many readers share a barrier."""

from __future__ import annotations

import asyncio

import pytest

from dengine_sm import CommitLogError, NodeBuilder, NotRunningError
from dengine_sm.config import NodeConfig, NodeSection, StateMachineSection
from dengine_sm.kv import Put, encode_command
from dengine_sm.log.embedded import EmbeddedLog

READERS = 20


class SharedLog(EmbeddedLog):
    """The embedded log, which pretends to be shared; the test lets its barriers pass."""

    is_shared = True

    def __init__(self, directory) -> None:
        super().__init__(directory)
        self.barriers: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self.gated = False

    async def read_barrier(self) -> int:
        if self.gated:
            gate = asyncio.get_running_loop().create_future()
            self.barriers.put_nowait(gate)
            await gate
        return await super().read_barrier()


@pytest.fixture
async def node_and_log(tmp_path):
    config = NodeConfig(
        node=NodeSection(data_dir=tmp_path / "node"),
        state_machine=StateMachineSection(backend="memory", validate="structure"),
    )
    log = SharedLog(tmp_path / "log")
    async with NodeBuilder(config).commit_log(log).build() as node:
        await node.propose(encode_command(Put(b"k", b"v")))
        log.gated = True
        yield node, log


def reading(node, count: int) -> list[asyncio.Task[bytes | None]]:
    return [asyncio.create_task(node.read(b"k")) for _ in range(count)]


async def test_readers_that_come_together_share_a_barrier(node_and_log):
    node, log = node_and_log
    readers = reading(node, READERS)

    (await log.barriers.get()).set_result(None)

    assert await asyncio.gather(*readers) == [b"v"] * READERS
    assert log.barriers.empty()


async def test_a_reader_that_comes_during_a_round_waits_for_the_next_barrier(node_and_log):
    node, log = node_and_log
    [early] = reading(node, 1)
    first = await log.barriers.get()
    [late] = reading(node, 1)
    first.set_result(None)
    await early
    second = await log.barriers.get()

    assert not late.done()
    second.set_result(None)
    assert await late == b"v"


async def test_a_cancelled_reader_leaves_the_barrier_to_the_others(node_and_log):
    node, log = node_and_log
    impatient, *others = reading(node, READERS)
    barrier = await log.barriers.get()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient

    barrier.set_result(None)

    assert await asyncio.gather(*others) == [b"v"] * (READERS - 1)


async def test_a_barrier_that_fails_fails_its_readers_and_no_others(node_and_log):
    node, log = node_and_log
    readers = reading(node, READERS)
    barrier = await log.barriers.get()
    later = reading(node, READERS)
    await asyncio.sleep(0)
    barrier.set_exception(CommitLogError("no quorum"))
    (await log.barriers.get()).set_result(None)

    errors = await asyncio.gather(*readers, return_exceptions=True)
    assert [str(error) for error in errors] == ["no quorum"] * READERS
    assert await asyncio.gather(*later) == [b"v"] * READERS


async def test_readers_under_way_are_told_that_the_node_stops(node_and_log):
    node, log = node_and_log
    now = reading(node, READERS)
    await log.barriers.get()
    later = reading(node, READERS)
    await asyncio.sleep(0)

    await node.stop()

    errors = await asyncio.gather(*now, *later, return_exceptions=True)
    assert {type(error) for error in errors} == {NotRunningError}
