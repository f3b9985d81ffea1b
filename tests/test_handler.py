"""The handler between a log and a machine: order, waits, snapshots, purge."""

from __future__ import annotations

import asyncio

import pytest

from dengine_sm import (
    Entry,
    LogGapError,
    LogId,
    LogOrderError,
    Outcome,
    StateMachineHandler,
    StorageError,
)
from dengine_sm.backends import create_file, create_memory
from dengine_sm.kv import Put, encode_command
from dengine_sm.log.embedded import EmbeddedLog, EmbeddedLogOptions
from dengine_sm.snapshot import EveryEntries, SnapshotStore


class Recorder:
    """A machine that remembers what it was given, and can be told to fail."""

    def __init__(self, machine) -> None:
        self._machine = machine
        self.chunks: list[list[int]] = []
        self.snapshot_error: Exception | None = None
        self.flushes = 0

    def __getattr__(self, name):
        return getattr(self._machine, name)

    async def apply_chunk(self, chunk):
        self.chunks.append([entry.index for entry in chunk])
        return await self._machine.apply_chunk(chunk)

    async def flush_async(self):
        self.flushes += 1
        await self._machine.flush_async()

    async def generate_snapshot_data(self, directory, last_included):
        if self.snapshot_error is not None:
            raise self.snapshot_error
        return await self._machine.generate_snapshot_data(directory, last_included)


class Bench:
    """A started machine, an open log and a handler between them."""

    def __init__(self, root, machine) -> None:
        self.machine = Recorder(machine)
        self.log = EmbeddedLog(root / "log", EmbeddedLogOptions(segment_bytes=4096))
        self.store = SnapshotStore(root / "snapshots", 2)

    async def __aenter__(self) -> Bench:
        await self.log.open()
        self.machine.start()
        self.store.open()
        self.handler = StateMachineHandler(
            self.machine,
            self.log,
            self.store,
            policy=EveryEntries(10),
            keep_log_entries=0,
            apply_chunk_entries=4,
        )
        await self.handler.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.machine.stop()
        await self.log.close()

    async def commit(self, count: int) -> list[Entry]:
        first = self.log.last_log_id().index + 1
        for index in range(first, first + count):
            await self.log.append([encode_command(Put(b"%d" % index, b"v" * 200))])
        return [
            entry async for part in _until(self.log, first, first + count - 1) for entry in part
        ]


async def _until(log, first, last):
    follower = log.follow(first)
    async for part in follower:
        yield part
        if part[-1].index >= last:
            break
    await follower.aclose()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, create_file(tmp_path / "sm"))


async def test_filters_duplicates_and_cuts_chunks_before_the_machine_sees_them(bench):
    async with bench:
        entries = await bench.commit(10)
        await bench.handler.apply_chunk(entries[:3])
        results = await bench.handler.apply_chunk(entries)
        assert [r.outcome for r in results] == [Outcome.DUPLICATE] * 3 + [Outcome.APPLIED] * 7
        assert [r.index for r in results] == list(range(1, 11))
        assert bench.machine.chunks == [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert await bench.handler.apply_chunk([]) == []


async def test_results_of_a_chunk_come_before_the_next_one_is_applied(bench):
    async with bench:
        entries = await bench.commit(10)
        seen = []
        async for results in bench.handler.apply_in_chunks(entries):
            seen.append(([result.index for result in results], len(bench.machine.chunks)))

        assert seen == [([1, 2, 3, 4], 1), ([5, 6, 7, 8], 2), ([9, 10], 3)]


async def test_refuses_gaps_and_disorder_before_the_machine_sees_them(bench):
    async with bench:
        entries = await bench.commit(3)
        with pytest.raises(LogGapError):
            await bench.handler.apply_chunk(entries[1:])
        await bench.handler.apply_chunk(entries)
        with pytest.raises(LogOrderError):
            await bench.handler.apply_chunk([Entry(4, 0, 1, b"")])
        assert bench.machine.chunks == [[1, 2, 3]]


async def test_pending_range_is_half_open_and_never_shrinks(bench):
    async with bench:
        entries = await bench.commit(5)
        assert bench.handler.pending_range() is None
        bench.handler.update_pending(5)
        bench.handler.update_pending(3)
        assert bench.handler.pending_range() == (1, 6)
        await bench.handler.apply_chunk(entries[:2])
        assert bench.handler.pending_range() == (3, 6)
        await bench.handler.apply_chunk(entries[2:])
        assert bench.handler.pending_range() is None


async def test_waiters_wake_in_time_and_time_out_cleanly(bench):
    async with bench:
        entries = await bench.commit(6)
        waits = [asyncio.create_task(bench.handler.wait_applied(i, 20)) for i in (6, 1, 3)]
        late = asyncio.create_task(bench.handler.wait_applied(7, 0.01))
        await asyncio.sleep(0)
        await bench.handler.apply_chunk(entries[:3])
        assert (await waits[1]).index == 3 and (await waits[2]).index == 3
        assert not waits[0].done()
        await bench.handler.apply_chunk(entries[3:])
        assert (await waits[0]).index == 6
        with pytest.raises(TimeoutError):
            await late
        assert (await bench.handler.wait_applied(2)).index == 6


async def test_waiters_wake_on_install(tmp_path):
    async with Bench(tmp_path / "a", create_memory()) as source:
        await source.handler.apply_chunk(await source.commit(5))
        published = await source.handler.create_snapshot()
    async with Bench(tmp_path / "b", create_memory()) as target:
        wait = asyncio.create_task(target.handler.wait_applied(5, 20))
        await asyncio.sleep(0)
        await target.handler.install_snapshot(published.path)
        assert (await wait).index == 5
        assert target.handler.pending_range() is None
        assert target.log.last_log_id() == LogId(1, 5)


async def test_snapshot_purges_what_is_durable_and_retains_two(bench):
    async with bench:
        for _ in range(3):
            await bench.handler.apply_chunk(await bench.commit(20))
            assert bench.handler.should_snapshot()
            published = await bench.handler.create_snapshot()
            assert published.metadata.last_included == bench.handler.last_applied
            assert not bench.handler.should_snapshot()
        assert await bench.handler.create_snapshot() is None
        assert [s.metadata.last_included.index for s in bench.store.list()] == [40, 60]
        assert bench.log.first_index() > 20
        assert bench.machine.flushes >= 3
        assert bench.machine.snapshot_metadata() == bench.store.newest().metadata
        assert [p.name for p in bench.store.directory.iterdir() if p.name.startswith("tmp")] == []


async def test_a_failed_snapshot_purges_nothing_and_backs_off(bench):
    async with bench:
        await bench.handler.apply_chunk(await bench.commit(20))
        bench.machine.snapshot_error = StorageError("disk full")
        with pytest.raises(StorageError, match="disk full"):
            await bench.handler.create_snapshot()
        assert bench.log.first_index() == 1
        assert bench.store.list() == []
        assert not bench.handler.should_snapshot()
        bench.machine.snapshot_error = None
        await bench.handler.apply_chunk(await bench.commit(1))
        assert await bench.handler.create_snapshot() is not None


async def test_a_damaged_snapshot_is_passed_over_for_an_older_one(tmp_path):
    async with Bench(tmp_path, create_memory()) as bench:
        for _ in range(2):
            await bench.handler.apply_chunk(await bench.commit(5))
            await bench.handler.create_snapshot()
        newest = bench.store.newest().path
    body = bytearray(newest.read_bytes())
    body[-20] ^= 1
    newest.write_bytes(body)
    async with Bench(tmp_path, create_memory()) as again:
        assert again.log.first_index() <= 6
        assert again.handler.last_applied.index == 5


async def test_applies_go_on_while_a_snapshot_is_written(bench):
    async with bench:
        await bench.handler.apply_chunk(await bench.commit(30))
        entries = await bench.commit(30)
        task = asyncio.create_task(bench.handler.create_snapshot())
        await asyncio.sleep(0)
        applied = 0
        for entry in entries:
            await bench.handler.apply_chunk([entry])
            applied += not task.done()
            await asyncio.sleep(0)
        published = await task
        assert published.metadata.last_included.index == 30
        assert applied > 0
