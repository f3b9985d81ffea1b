"""The embedded commit log: group commit, terms, time, purge, recovery."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys

import pytest

from dengine_sm import (
    CommitLogError,
    CorruptionError,
    LogGapError,
    LogId,
    NotRunningError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.files import FramedLog
from dengine_sm.log.embedded import EmbeddedLog, EmbeddedLogOptions


async def collect(log: EmbeddedLog, first: int, last: int) -> list:
    entries: list = []
    follower = log.follow(first)
    async for part in follower:
        entries += part
        if entries[-1].index >= last:
            break
    await follower.aclose()
    return entries


async def test_appends_get_consecutive_ids_and_come_back_in_order(tmp_path):
    log = EmbeddedLog(tmp_path)
    await log.open()
    ranges = await asyncio.gather(*(log.append([b"%d" % i, b""]) for i in range(50)))
    assert [r.first_index for r in ranges] == list(range(1, 100, 2))
    assert log.last_log_id() == LogId(1, 100)
    entries = await collect(log, 1, 100)
    assert [e.index for e in entries] == list(range(1, 101))
    assert [e.data for e in entries[::2]] == [b"%d" % i for i in range(50)]
    await log.close()
    await log.close()


async def test_waiting_appends_share_a_sync(tmp_path, monkeypatch):
    syncs = 0
    real = FramedLog.sync

    def counted(self):
        nonlocal syncs
        syncs += 1
        real(self)

    monkeypatch.setattr(FramedLog, "sync", counted)
    log = EmbeddedLog(tmp_path)
    await log.open()
    await asyncio.gather(*(log.append([b"x"]) for _ in range(200)))
    assert 1 <= syncs <= 3
    await log.close()


async def test_an_acknowledged_append_was_synced_first(tmp_path, monkeypatch):
    log = EmbeddedLog(tmp_path)
    await log.open()
    for i in range(5):
        ids = await log.append([b"x" * i, b"y"])
        assert log._frames.synced_sequence >= ids.last_index
    await log.close()


async def test_term_rises_at_every_open_even_without_appends(tmp_path):
    terms = []
    for _ in range(3):
        log = EmbeddedLog(tmp_path)
        await log.open()
        await log.close()
        log = EmbeddedLog(tmp_path)
        await log.open()
        terms.append((await log.append([b"x"])).term)
        await log.close()
    assert terms == [2, 4, 6]


async def test_timestamps_never_go_back(tmp_path, monkeypatch):
    clock = iter([5_000, 9_000, 3_000, 10_000])
    monkeypatch.setattr("dengine_sm.log.embedded.time.time_ns", lambda: next(clock) * 1_000_000)
    log = EmbeddedLog(tmp_path)
    await log.open()
    await log.append([b"a"])
    await log.append([b"b"])
    await log.close()
    log = EmbeddedLog(tmp_path)
    await log.open()
    await log.append([b"c"])
    await log.append([b"d"])
    stamps = [entry.timestamp_ms for entry in await collect(log, 1, 4)]
    assert stamps == [5_000, 9_000, 9_000, 10_000]
    await log.close()


async def test_purge_frees_disk_and_is_told_to_followers(tmp_path):
    log = EmbeddedLog(tmp_path, EmbeddedLogOptions(segment_bytes=4096))
    await log.open()
    for _ in range(40):
        await log.append([b"x" * 500])
    before = log._frames.size_bytes
    await log.purge(LogId(1, 30))
    assert 1 < log.first_index() <= 31
    assert log._frames.size_bytes < before
    with pytest.raises(CommitLogError, match="ends at"):
        await log.purge(LogId(1, 41))
    await log.close()

    log = EmbeddedLog(tmp_path, EmbeddedLogOptions(segment_bytes=4096))
    await log.open()
    with pytest.raises(LogGapError, match="purged"):
        await collect(log, 1, 40)
    assert [e.index for e in await collect(log, 31, 40)] == list(range(31, 41))
    await log.close()


async def test_advance_to_leaves_room_for_a_snapshot(tmp_path):
    log = EmbeddedLog(tmp_path)
    await log.open()
    await log.advance_to(LogId(7, 100))
    assert log.last_log_id() == LogId(7, 100) and log.first_index() == 101
    await log.close()
    log = EmbeddedLog(tmp_path)
    await log.open()
    assert log.last_log_id() == LogId(7, 100)
    ids = await log.append([b"x"])
    assert (ids.term, ids.first_index) == (8, 101)
    await log.advance_to(LogId(9, 50))
    assert (await log.append([b"x"])).term == 9
    await log.close()


async def test_second_opener_is_refused(tmp_path):
    log = EmbeddedLog(tmp_path)
    await log.open()
    with pytest.raises(StorageLockedError):
        await EmbeddedLog(tmp_path).open()
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from dengine_sm import StorageLockedError\n"
        "from dengine_sm.log.embedded import EmbeddedLog\n"
        "try:\n    asyncio.run(EmbeddedLog(Path(sys.argv[1])).open())\n"
        "except StorageLockedError:\n    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 7
    await log.append([b"x"])
    await log.close()


async def test_a_cancelled_append_is_still_appended(tmp_path):
    log = EmbeddedLog(tmp_path)
    await log.open()
    task = asyncio.create_task(log.append([b"kept"]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.append([b"next"])
    assert [e.data for e in await collect(log, 1, 2)] == [b"kept", b"next"]
    await log.close()
    with pytest.raises(NotRunningError):
        await log.append([b"late"])


async def test_close_ends_followers_and_finishes_appends(tmp_path):
    log = EmbeddedLog(tmp_path)
    await log.open()
    follower = asyncio.create_task(collect(log, 1, 1_000_000))
    appends = [asyncio.create_task(log.append([b"x"])) for _ in range(20)]
    await asyncio.sleep(0)
    await log.close()
    assert [(await task).count for task in appends] == [1] * 20
    await follower
    log = EmbeddedLog(tmp_path)
    await log.open()
    assert log.last_log_id().index == 20
    await log.close()


async def test_missing_parts_are_corruption_not_an_empty_log(tmp_path):
    log = EmbeddedLog(tmp_path / "log")
    await log.open()
    await log.append([b"x"])
    await log.close()
    for victim in ("META", "entries"):
        shutil.copytree(tmp_path / "log", tmp_path / victim)
        path = tmp_path / victim / victim
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(CorruptionError):
            await EmbeddedLog(tmp_path / victim).open()


async def test_another_format_is_refused(tmp_path):
    from dengine_sm.codec import encode
    from dengine_sm.files import write_checked_file

    write_checked_file(tmp_path / "META", encode(["dengine-sm-embedded-log", 2, 1, [0, 0], 1]))
    with pytest.raises(StorageFormatError):
        await EmbeddedLog(tmp_path).open()


async def test_two_followers_and_a_slow_one_get_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("dengine_sm.log.embedded._TAIL_BYTES", 2000)
    log = EmbeddedLog(tmp_path, EmbeddedLogOptions(segment_bytes=4096))
    await log.open()
    followers = [asyncio.create_task(collect(log, first, 100)) for first in (1, 1, 37)]
    for _ in range(50):
        await log.append([b"x" * 100, b"y" * 100])
    results = await asyncio.gather(*followers)
    assert [[e.index for e in part] for part in results] == [
        list(range(1, 101)),
        list(range(1, 101)),
        list(range(37, 101)),
    ]
    assert [e.index for e in await collect(log, 3, 100)] == list(range(3, 101))
    await log.close()
