"""A node on the embedded log: proposals, reads, restart, snapshots, failures."""

from __future__ import annotations

import asyncio
import shutil

import attrs
import pytest

from dengine_sm import (
    CommitLogError,
    ContractViolationError,
    LogGapError,
    LogId,
    NodeBuilder,
    NodeConfig,
    NotRunningError,
    Outcome,
    ProposalOutcomeUnknown,
    ReadConsistency,
    StorageError,
    StorageLockedError,
)
from dengine_sm.backends import create_file, create_memory
from dengine_sm.config import LogSection, NodeSection, SnapshotSection, StateMachineSection
from dengine_sm.kv import CompareAndSwap, Delete, Put, encode_command
from dengine_sm.log.embedded import EmbeddedLog


def config_of(directory, *, backend="file", **node) -> NodeConfig:
    return NodeConfig(
        node=NodeSection(data_dir=directory / "node", **node),
        state_machine=StateMachineSection(backend=backend, validate="structure"),
        log=LogSection(options={"segment_bytes": 4096}),
        snapshot=SnapshotSection(keep_log_entries=0),
    )


def put(key: bytes, value: bytes = b"v", ttl_ms: int | None = None) -> bytes:
    return encode_command(Put(key, value, ttl_ms))


@pytest.mark.parametrize("backend", ["memory", "file"])
async def test_proposals_and_reads_survive_a_restart(tmp_path, backend):
    config = config_of(tmp_path, backend=backend)
    async with NodeBuilder(config).build() as node:
        result = await node.propose(put(b"a", b"1"))
        assert result.outcome is Outcome.APPLIED and result.index == 1
        results = await asyncio.gather(*(node.propose(put(b"k%d" % i)) for i in range(500)))
        assert sorted(r.index for r in results) == list(range(2, 502))
        swap = encode_command(CompareAndSwap(b"a", b"2", b"3"))
        assert (await node.propose(swap)).outcome is Outcome.REJECTED
        many = await node.propose_many([put(b"m%04d" % i) for i in range(9000)] + [b"garbage"])
        assert [r.index for r in many] == list(range(503, 503 + 9001))
        assert many[-1].outcome is Outcome.REJECTED
        assert await node.read(b"a") == b"1"
        assert await node.read(b"a", consistency=ReadConsistency.EVENTUAL) == b"1"
        assert await node.read_many([b"m0001", b"nope"]) == [b"v", None]
        assert len((await node.scan(b"m", limit=7)).entries) == 7
        assert node.status().running and node.status().entries == 9501

    async with NodeBuilder(config).build() as node:
        assert await node.read(b"a") == b"1"
        status = node.status()
        assert status.last_applied == LogId(1, 9503)
        assert status.entries == 9501
        result = await node.propose(encode_command(Delete(b"a")))
        assert result.index == 9504
        assert node.status().last_applied.term == 2


@pytest.mark.parametrize("backend", ["memory", "file"])
async def test_snapshot_purges_and_restores(tmp_path, backend):
    config = config_of(tmp_path, backend=backend)
    async with NodeBuilder(config).build() as node:
        for part in range(5):
            await node.propose_many([put(b"%d-%d" % (part, i), b"x" * 100) for i in range(200)])
        metadata = await node.take_snapshot()
        assert metadata is not None and metadata.last_included == LogId(1, 1000)
        assert node.status().first_index > 1
        assert node.status().snapshot == metadata
        assert await node.take_snapshot() == metadata
        await node.propose(put(b"after"))
    async with NodeBuilder(config).build() as node:
        assert node.status().entries == 1001
        assert await node.read(b"4-199") == b"x" * 100
        assert await node.read(b"after") == b"v"


async def test_refuses_to_start_over_a_gap(tmp_path):
    config = config_of(tmp_path)
    async with NodeBuilder(config).build() as node:
        for part in range(5):
            await node.propose_many([put(b"%d-%d" % (part, i), b"x" * 100) for i in range(200)])
        await node.take_snapshot()
    shutil.rmtree(tmp_path / "node" / "snapshots")
    shutil.rmtree(tmp_path / "node" / "state_machine")

    node = NodeBuilder(config).build()
    with pytest.raises(LogGapError, match="no intact snapshot"):
        await node.start()

    with pytest.raises(NotRunningError):
        await node.propose(put(b"k"))


async def test_a_lost_machine_comes_back_from_snapshot_and_log(tmp_path):
    config = config_of(tmp_path)
    async with NodeBuilder(config).build() as node:
        await node.propose_many([put(b"%d" % i) for i in range(300)])
        await node.take_snapshot()
        await node.propose_many([put(b"t%d" % i) for i in range(50)])
    shutil.rmtree(tmp_path / "node" / "state_machine")

    async with NodeBuilder(config).build() as node:
        assert node.status().entries == 350
        assert node.status().last_applied.index == 350


async def test_a_log_behind_the_machine_is_refused(tmp_path):
    config = config_of(tmp_path)
    async with NodeBuilder(config).build() as node:
        await node.propose(put(b"a"))
    shutil.copytree(tmp_path / "node" / "log", tmp_path / "old-log")
    async with NodeBuilder(config).build() as node:
        await node.propose(put(b"b"))
    shutil.rmtree(tmp_path / "node" / "log")
    shutil.copytree(tmp_path / "old-log", tmp_path / "node" / "log")

    with pytest.raises(CommitLogError, match="older copy"):
        await NodeBuilder(config).build().start()


async def test_second_node_on_one_directory_is_refused(tmp_path):
    config = config_of(tmp_path)
    async with NodeBuilder(config).build() as node:
        with pytest.raises(StorageLockedError):
            await NodeBuilder(config).build().start()
        await node.propose(put(b"a"))


async def test_back_pressure_bounds_what_is_in_flight(tmp_path):
    config = config_of(tmp_path, max_in_flight=10)
    async with NodeBuilder(config).build() as node:
        seen = 0

        async def one(i: int) -> None:
            nonlocal seen
            await node.propose(put(b"%d" % i))
            seen = max(seen, node.status().in_flight)

        await asyncio.gather(*(one(i) for i in range(300)))
        assert node.status().entries == 300
        assert 0 < seen <= 10
        assert node.status().in_flight == 0


async def test_cancelled_proposals_free_their_slots(tmp_path):
    config = config_of(tmp_path, max_in_flight=5)
    async with NodeBuilder(config).build() as node:
        tasks = [asyncio.create_task(node.propose(put(b"%d" % i))) for i in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await node.propose(put(b"last"))).succeeded
        assert node.status().in_flight == 0


async def test_shutdown_event_stops_cleanly(tmp_path):
    config = config_of(tmp_path)
    event = asyncio.Event()
    node = NodeBuilder(config, event).build()
    await node.start()
    pending = [asyncio.create_task(node.propose(put(b"%d" % i))) for i in range(100)]
    await asyncio.sleep(0)
    event.set()
    await node.wait_stopped()
    assert all(r.succeeded for r in await asyncio.gather(*pending))
    with pytest.raises(NotRunningError):
        await node.propose(put(b"k"))
    with pytest.raises(NotRunningError):
        await node.read(b"0")
    create = create_file(tmp_path / "node" / "state_machine")
    create.start()
    assert create.len() == 100
    create.stop()


class _Wrapped:
    """A machine whose applies go wrong from some index on."""

    def __init__(self, machine, wrong, index) -> None:
        self._machine, self._wrong, self._index = machine, wrong, index

    def __getattr__(self, name):
        return getattr(self._machine, name)

    async def apply_chunk(self, chunk):
        if chunk[-1].index >= self._index:
            return await self._wrong(self._machine, chunk)
        return await self._machine.apply_chunk(chunk)


async def _raises(machine, chunk):
    raise StorageError("the disk is gone")


async def _too_few(machine, chunk):
    return list(await machine.apply_chunk(chunk))[:-1]


@pytest.mark.parametrize(
    ("wrong", "error"), [(_raises, StorageError), (_too_few, ContractViolationError)]
)
async def test_a_failing_machine_stops_the_node(tmp_path, wrong, error):
    config = config_of(tmp_path)
    node = NodeBuilder(config).state_machine("memory").build()
    machine = _Wrapped(create_memory(), wrong, 3)
    from dengine_sm.node import Node

    node = Node(machine, EmbeddedLog(tmp_path / "log"), config)
    await node.start()
    await node.propose(put(b"1"))
    await node.propose(put(b"2"))
    with pytest.raises(ProposalOutcomeUnknown):
        await node.propose(put(b"3"))
    with pytest.raises(error):
        await node.wait_stopped()
    assert node.status().failure is not None
    with pytest.raises(NotRunningError, match="has failed"):
        await node.propose(put(b"4"))


async def test_policy_takes_snapshots_by_itself(tmp_path):
    config = attrs.evolve(
        config_of(tmp_path), snapshot=SnapshotSection(every_entries=100, keep_log_entries=10)
    )
    async with NodeBuilder(config).build() as node:
        await node.propose_many([put(b"%d" % i) for i in range(500)])
        async with asyncio.timeout(30):
            while node.status().snapshot is None:
                await asyncio.sleep(0.05)
        assert node.status().snapshot.last_included.index == 500


async def test_expiry_follows_log_time(tmp_path):
    config = config_of(tmp_path)
    async with NodeBuilder(config).build() as node:
        await node.propose(put(b"k", b"v", 1))
        async with asyncio.timeout(10):
            while await node.read(b"k") is not None:
                await node.propose(b"")
        assert node.status().entries == 0


async def test_install_snapshot_moves_machine_and_log(tmp_path):
    source, target = config_of(tmp_path / "a"), config_of(tmp_path / "b", backend="memory")
    async with NodeBuilder(source).build() as node:
        await node.propose_many([put(b"%d" % i) for i in range(50)])
        await node.take_snapshot()
        archive = node.handler.snapshots.newest().path
    async with NodeBuilder(target).build() as node:
        await node.install_snapshot(archive)
        assert node.status().last_applied.index == 50
        assert (await node.propose(put(b"next"))).index == 51
    async with NodeBuilder(target).build() as node:
        assert node.status().entries == 51
