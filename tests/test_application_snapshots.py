"""Snapshots of an application machine, and what replaces its state: installs, resets."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import pytest
from tape import FORMAT, BreakableDisk, Tape, entries, make, reopened, seen, snapshot

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.errors import (
    SnapshotCorruptionError,
    SnapshotFormatError,
    SnapshotLabelError,
    StaleSnapshotError,
    StorageError,
)
from dengine_sm.model import Entry, LogId, SnapshotMetadata


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[ApplicationStateMachine]:
    built = make(tmp_path / "m")
    built.start()
    yield built
    built.stop()


async def test_snapshot_install_and_tail_equal_the_whole_log(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk([Entry(1, 1, 900, b"late"), *entries(2, 5, term=3)])
    metadata = await snapshot(machine, tmp_path / "s")
    other = make(tmp_path / "other")
    other.start()
    await other.apply_chunk([Entry(1, 1, 1, b"different")])

    await other.apply_snapshot_from_file(metadata, tmp_path / "s")
    shutil.rmtree(tmp_path / "s")

    assert other.last_applied() == metadata.last_included == LogId(3, 6)
    assert other.snapshot_metadata() == metadata
    assert [other.entry_term(i) for i in (1, 5, 6, 7)] == [None, None, 3, None]
    tail = [Entry(7, 3, 1, b"early"), *entries(8, 3, term=4)]
    assert await other.apply_chunk(tail) == await machine.apply_chunk(tail)
    assert other.query(b"") == machine.query(b"")
    assert reopened(tmp_path / "other", tmp_path / "copy") == seen(other)
    other.stop()


async def test_snapshot_shows_nothing_of_later_applies(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 5))
    before = machine.query(b"")
    writing = asyncio.ensure_future(machine.generate_snapshot_data(tmp_path / "s", LogId(1, 5)))
    await asyncio.sleep(0)
    await machine.apply_chunk(entries(6, 5))
    checksum = await writing
    other = make(tmp_path / "other")
    other.start()

    metadata = SnapshotMetadata(LogId(1, 5), checksum, FORMAT)
    await other.apply_snapshot_from_file(metadata, tmp_path / "s")

    assert other.query(b"") == before
    other.stop()


async def test_bad_snapshots_change_nothing(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 5))
    with pytest.raises(SnapshotLabelError):
        await machine.generate_snapshot_data(tmp_path / "no", LogId(1, 4))
    assert not (tmp_path / "no").exists()
    good = await snapshot(machine, tmp_path / "s")
    other = make(tmp_path / "other")
    other.start()
    await other.apply_chunk(entries(1, 2))
    before = seen(other)

    for name in sorted(p.name for p in (tmp_path / "s").iterdir()):
        for damage in (b"", b"more"):
            broken = tmp_path / "broken"
            shutil.copytree(tmp_path / "s", broken)
            content = (broken / name).read_bytes()
            (broken / name).write_bytes(content[:-1] if damage == b"" else content + damage)
            with pytest.raises((SnapshotCorruptionError, SnapshotFormatError)):
                await other.apply_snapshot_from_file(good, broken)
            shutil.rmtree(broken)
    with pytest.raises(SnapshotFormatError):
        await other.apply_snapshot_from_file(attrs.evolve(good, format="tape/2"), tmp_path / "s")
    with pytest.raises(SnapshotCorruptionError):
        wrong = attrs.evolve(good, checksum=b"w" * 32)
        await other.apply_snapshot_from_file(wrong, tmp_path / "s")
    with pytest.raises(SnapshotCorruptionError):
        wrong = attrs.evolve(good, last_included=LogId(1, 6))
        await other.apply_snapshot_from_file(wrong, tmp_path / "s")
    assert seen(other) == before
    await other.apply_chunk(entries(3, 5))
    with pytest.raises(StaleSnapshotError):
        await other.apply_snapshot_from_file(good, tmp_path / "s")
    other.stop()


async def test_cancelled_generation_leaves_nothing(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Slow(Tape):
        def dump(self) -> Iterable[bytes]:
            def records() -> Iterator[bytes]:
                yield b"first"
                go_on.wait(10)
                yield b"second"

            return records()

    machine = ApplicationStateMachine(Slow, tmp_path / "m", format=FORMAT)
    machine.start()
    await machine.apply_chunk(entries(1, 5))
    writing = asyncio.ensure_future(machine.generate_snapshot_data(tmp_path / "s", LogId(1, 5)))
    while not (tmp_path / "s").exists():
        await asyncio.sleep(0)

    writing.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert not (tmp_path / "s").exists()
    assert machine.snapshot_metadata() is None
    machine.stop()


async def test_reset_is_durable(machine: ApplicationStateMachine, tmp_path: Path) -> None:
    await machine.apply_chunk(entries(1, 5))
    await snapshot(machine, tmp_path / "s")

    await machine.reset()

    assert seen(machine) == (b"", 0, LogId.ZERO, [None, None], None)
    assert machine.is_empty()
    assert reopened(tmp_path / "m", tmp_path / "copy") == seen(machine)
    await machine.apply_chunk(entries(1, 2))
    assert reopened(tmp_path / "m", tmp_path / "copy-2") == seen(machine)


async def test_failed_install_leaves_the_old_state(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 9))
    metadata = await snapshot(machine, tmp_path / "s")
    disk = BreakableDisk()
    other = make(tmp_path / "other", file_system=disk)
    other.start()
    await other.apply_chunk(entries(1, 2))
    before = seen(other)
    disk.failing.add("replace")

    with pytest.raises(StorageError):
        await other.apply_snapshot_from_file(metadata, tmp_path / "s")

    disk.failing.clear()
    assert seen(other) == before
    other.stop()
    other.start()
    assert seen(other) == before
    other.stop()


async def test_snapshot_of_before_a_reset_is_not_noted(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 5))
    writing = asyncio.ensure_future(machine.generate_snapshot_data(tmp_path / "s", LogId(1, 5)))
    await asyncio.sleep(0)
    machine._reset()

    await writing

    assert machine.snapshot_metadata() is None
