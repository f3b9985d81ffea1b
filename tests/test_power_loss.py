"""Power loss at every step of what writes through `dengine_sm.files` (CRASH-6)."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import pytest

from dengine_sm.backends.file_store import FileStore
from dengine_sm.conformance.power import ForgetfulFileSystem, UnsyncedFileSystem
from dengine_sm.files import FramedLog, replaced_file_system, write_checked_file
from dengine_sm.files.new_file import NewFile
from dengine_sm.kv import Delete, KeyValueStateMachine, Put, encode_command
from dengine_sm.log.embedded import EmbeddedLog, EmbeddedLogOptions
from dengine_sm.model import Entry, LogId, SnapshotMetadata
from dengine_sm.snapshot import SnapshotStore, verify_snapshot, write_portable

T = TypeVar("T")
State = tuple[tuple[bytes, bytes], ...]

SURVIVORS = [None, 1, 2, 3]
"""Seeds of what survives of the unsynced; None for nothing."""


@attrs.define
class Recorded:
    """One run below `root`, and every power loss that could have cut it short."""

    root: Path
    fs: ForgetfulFileSystem
    promised: list[tuple[int, object]] = attrs.field(factory=list)
    """Step after which it was acknowledged, and what."""

    def promise(self, what: object) -> None:
        self.promised.append((self.fs.steps, what))

    def promised_at(self, step: int) -> list[object]:
        return [what for since, what in self.promised if since <= step]

    def power_losses(self, survivors: int | None) -> Iterator[tuple[int, Path]]:
        """Lay out each in the place of the original."""
        assert self.fs.past() == []
        disk = self.fs.disk()
        with replaced_file_system(UnsyncedFileSystem()):
            for step in range(self.fs.steps + 1):
                disk.advance(step)
                choices = None if survivors is None else random.Random(f"{survivors}/{step}")
                yield step, disk.left_by_power_loss(choices).restore(self.root)

    def kills(
        self, recover: Callable[[Path], T], check: Callable[[Path, T], None], first: int = 0
    ) -> None:
        """Kill at every second step, recover, let the power fail, look for all of it."""
        disk = self.fs.disk()
        for step in range(first, self.fs.steps + 1, 2):
            disk.advance(step)
            fs = ForgetfulFileSystem(disk.left_by_kill().restore(self.root), disk.tree())
            with replaced_file_system(fs):
                recovered = recover(self.root)
            lost = fs.disk()
            lost.advance(fs.steps)
            lost.left_by_power_loss().restore(self.root)
            with replaced_file_system(UnsyncedFileSystem()):
                check(self.root, recovered)


def record(root: Path, work: Callable[[Recorded], None]) -> Recorded:
    root.mkdir()
    fs = ForgetfulFileSystem(root)
    recorded = Recorded(root, fs)
    with replaced_file_system(fs):
        work(recorded)
    return recorded


# The machine `file`


@attrs.define
class Scenario:
    """A machine at work, and what must be found after a power loss at any instant."""

    recorded: Recorded
    machine: KeyValueStateMachine
    aside: Path
    states: dict[int, State] = attrs.field(factory=lambda: {0: ()})

    async def apply(self, number: int) -> None:
        first = self.machine.last_applied().index + 1
        commands = [Put(b"key %d" % (number % 7), b"value %d" % number * 9), Delete(b"key 3")]
        chunk = [
            Entry(first + at, 1 + number // 4, number, encode_command(command))
            for at, command in enumerate(commands[: 1 + number % 2])
        ]
        entries = dict(self.states[first - 1])
        for entry, command in zip(chunk, commands, strict=False):
            match command:
                case Put(key, value):
                    entries[key] = value
                case Delete(key):
                    entries.pop(key, None)
            last = entry.index
        self.states[last] = tuple(sorted(entries.items()))
        await self.machine.apply_chunk(chunk)
        wait_for_checkpoint()

    def flush(self) -> None:
        self.machine.flush()
        self.recorded.promise(self.machine.last_applied().index)

    async def install(self) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)
        await self.machine.generate_snapshot_data(self.aside, self.machine.last_applied())
        metadata = self.machine.snapshot_metadata()
        assert metadata is not None
        await self.machine.apply_snapshot_from_file(metadata, self.aside)
        self.recorded.promise(self.machine.last_applied().index)

    async def work(self) -> None:
        self.machine.start()
        for number in range(24):
            await self.apply(number)
            if number % 3 == 1:
                self.flush()
            if number in (5, 14):
                await self.install()
        self.machine.stop()
        self.recorded.promise(max(self.states))
        self.machine.start()
        await self.apply(24)
        self.flush()
        self.machine.stop()


def wait_for_checkpoint() -> None:
    for thread in threading.enumerate():
        if thread.name == "dengine-sm-checkpoint":
            thread.join()


def machine_on(directory: Path) -> KeyValueStateMachine:
    return KeyValueStateMachine(FileStore(directory, segment_bytes=500, checkpoint_bytes=700))


@pytest.mark.parametrize("survivors", SURVIVORS)
def test_power_loss_at_every_step_loses_nothing_flushed(
    tmp_path: Path, survivors: int | None
) -> None:
    scenarios = []

    def work(recorded: Recorded) -> None:
        # Two levels that the machine makes itself.
        machine = machine_on(recorded.root / "data" / "machine")
        scenarios.append(Scenario(recorded, machine, tmp_path / "snapshot"))
        asyncio.run(scenarios[0].work())

    recorded = record(tmp_path / "disk", work)
    [newest] = recorded.root.rglob("checkpoint-*")
    assert int(newest.name.removeprefix("checkpoint-")) > 4, "two are of installs, more by size"
    assert recorded.fs.steps > 200

    for step, left in recorded.power_losses(survivors):
        machine = machine_on(left / "data" / "machine")
        machine.start()
        last = machine.last_applied().index
        flushed = max(recorded.promised_at(step), default=0)
        assert last >= flushed, f"{flushed} was flushed, {last} is there: step {step}"
        assert last in scenarios[0].states, f"{last} is no chunk boundary: step {step}"
        assert scenarios[0].states[last] == machine.scan_prefix(b"").entries, step
        machine.stop()


def started_machine(root: Path, *, apply: bool) -> tuple[int, State]:
    machine = machine_on(root / "data" / "machine")
    machine.start()
    if not apply:
        machine.flush()
    else:
        last = machine.last_applied()
        entry = Entry(last.index + 1, max(last.term, 1), 99, encode_command(Put(b"new", b"1")))
        asyncio.run(machine.apply_chunk([entry]))
        machine.flush()
        wait_for_checkpoint()
    found = machine.last_applied().index, machine.scan_prefix(b"").entries
    # Nothing that `stop` syncs is to help.
    machine._store._release()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("apply", [False, True])
def test_what_a_killed_machine_recovers_and_flushes_survives_power_loss(
    tmp_path: Path, apply: bool
) -> None:
    def work(recorded: Recorded) -> None:
        machine = machine_on(recorded.root / "data" / "machine")
        asyncio.run(Scenario(recorded, machine, tmp_path / "snapshot").work())

    def check(root: Path, found: tuple[int, State]) -> None:
        assert found == started_machine(root, apply=False)

    record(tmp_path / "disk", work).kills(partial(started_machine, apply=apply), check, apply)


# The log `embedded`


@functools.cache
def payloads_of(group: int) -> tuple[bytes, ...]:
    return tuple(b"%d/%d " % (group, at) * (3 + 60 * (group % 3)) for at in range(1 + group % 4))


def log_on(root: Path) -> EmbeddedLog:
    return EmbeddedLog(root / "data" / "log", EmbeddedLogOptions(segment_bytes=4096))


async def use_log(recorded: Recorded) -> None:
    """Append over several segments, purge, reopen, go on beyond a snapshot, reopen."""
    log = log_on(recorded.root)
    last = 0
    for round_ in range(4):
        await log.open()
        for group in range(10):
            payloads = payloads_of(10 * round_ + group)
            await log.append(payloads)
            last += len(payloads)
            recorded.promise(("last", last))
        if round_ == 1:
            await log.purge(LogId(log.last_log_id().term, last // 2))
        if round_ == 2:
            last += 100
            await log.advance_to(LogId(log.last_log_id().term, last))
            recorded.promise(("last", last))
        await log.close()


async def entries_of(log: EmbeddedLog) -> list[Entry]:
    entries: list[Entry] = []
    if log.first_index() <= log.last_log_id().index:
        async for some in log.follow(log.first_index()):
            entries += some
            if entries[-1].index == log.last_log_id().index:
                break
    return entries


def expected_entries() -> dict[int, bytes]:
    expected, index = {}, 0
    for group in range(40):
        index += 100 * (group == 30)
        for payload in payloads_of(group):
            index += 1
            expected[index] = payload
    return expected


@pytest.mark.parametrize("survivors", SURVIVORS)
def test_power_loss_at_every_step_loses_no_acknowledged_append(
    tmp_path: Path, survivors: int | None
) -> None:
    recorded = record(tmp_path / "disk", lambda recorded: asyncio.run(use_log(recorded)))
    expected = expected_entries()
    terms: list[int] = []

    async def check(step: int, left: Path) -> None:
        log = log_on(left)
        await log.open()
        promised = [index for _, index in recorded.promised_at(step)]  # type: ignore[misc]
        last = log.last_log_id().index
        assert last >= max(promised, default=0), f"step {step}"
        entries = await entries_of(log)
        assert [expected[entry.index] for entry in entries] == [e.data for e in entries], step
        indices = [entry.index for entry in entries]
        assert indices == list(range(log.first_index(), last + 1)), f"step {step}"
        entry_terms = [entry.term for entry in entries]
        assert entry_terms == sorted(entry_terms), f"step {step}"
        terms.append(log._term)
        await log.close()

    for step, left in recorded.power_losses(survivors):
        asyncio.run(check(step, left))
    assert recorded.fs.steps > 150
    assert terms[-1] == 5, "one for each time it was opened"


def recovered_entries(root: Path, *, append: bool) -> list[Entry]:
    async def recover() -> list[Entry]:
        log = log_on(root)
        await log.open()
        if append:
            await log.append([b"new"])
        entries = await entries_of(log)
        await log.close()
        return entries

    return asyncio.run(recover())


@pytest.mark.parametrize("append", [False, True])
def test_what_a_killed_log_recovers_survives_power_loss(tmp_path: Path, append: bool) -> None:
    recorded = record(tmp_path / "disk", lambda recorded: asyncio.run(use_log(recorded)))

    def check(root: Path, found: list[Entry]) -> None:
        assert found == recovered_entries(root, append=False)

    recorded.kills(partial(recovered_entries, append=append), check, append)


# Published snapshots


def metadata_of(index: int, checksum: bytes) -> SnapshotMetadata:
    return SnapshotMetadata(LogId(3, index), checksum, "kv-portable/1")


def rows_of(index: int) -> list[tuple[bytes, bytes, None]]:
    return [(b"key %04d" % row, b"value of %d" % index, None) for row in range(300)]


def publish(store: SnapshotStore, index: int) -> SnapshotMetadata:
    directory = store.temporary_directory()
    checksum = write_portable(
        directory, last_included=LogId(3, index), clock_ms=5, entries=rows_of(index)
    )
    metadata = metadata_of(index, checksum)
    store.publish(directory, metadata)
    shutil.rmtree(directory)
    return metadata


def use_store(recorded: Recorded) -> None:
    """Publish, publish again over the same id, adopt, clean up."""
    root = recorded.root
    store = SnapshotStore(root / "data" / "snapshots", 2)
    store.open()
    for index in (5, 9, 9):
        recorded.promise(publish(store, index))
    other = SnapshotStore(root / "other")
    other.open()
    archive = root / "other" / "unsynced"
    with NewFile(archive) as file:
        publish(other, 14)
        file.write(other.newest().path.read_bytes())  # type: ignore[union-attr]
    recorded.promise(store.adopt(archive).metadata)
    store.cleanup()
    recorded.promise(publish(store, 20))


@pytest.mark.parametrize("survivors", SURVIVORS)
def test_power_loss_at_every_step_loses_no_published_snapshot(
    tmp_path: Path, survivors: int | None
) -> None:
    recorded = record(tmp_path / "disk", use_store)
    first_removal = next(
        number
        for number, operation in enumerate(recorded.fs.operations)
        if operation.name == "remove" and operation.path.endswith(".dsnap")
    )

    for step, left in recorded.power_losses(survivors):
        store = SnapshotStore(left / "data" / "snapshots", 2)
        store.open()
        assert store.damaged() == [], step
        there = {published.metadata.last_included.index for published in store.list()}
        promised = {
            what.last_included.index
            for what in recorded.promised_at(step)
            if isinstance(what, SnapshotMetadata)
        }
        # Once cleaning up may have begun, the two newest are enough.
        kept = promised if step < first_removal else set(sorted(promised)[-2:])
        assert kept <= there, f"step {step}"
        for published in store.list():
            with store.extract(published) as directory:
                verify_snapshot(directory, published.metadata, formats=("kv-portable/1",))
        names = sorted(path.name for path in store.directory.iterdir())
        assert len(names) == len(there), names


def published(root: Path) -> list[SnapshotMetadata]:
    store = SnapshotStore(root / "data" / "snapshots", 2)
    store.open()
    return [published.metadata for published in store.list()]


def test_what_a_reopened_store_lists_survives_power_loss(tmp_path: Path) -> None:
    def check(root: Path, found: list[SnapshotMetadata]) -> None:
        assert found == published(root)

    record(tmp_path / "disk", use_store).kills(published, check)


# The file system itself


def test_a_failed_sync_loses_what_it_should_have_written(tmp_path: Path) -> None:
    fs = ForgetfulFileSystem(tmp_path)
    fd = fs.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"first")
    fs.fsync(fd)
    fs.sync_directory(tmp_path)
    fs.write(fd, b" second")
    fs.pwrite(fd, b"F", 0)
    fs._note_file("fail_sync", fd)
    fs.write(fd, b" third")
    fs.fsync(fd)
    fs.close(fd)

    disk = fs.disk()
    disk.advance(fs.steps)

    assert disk.left_by_power_loss().files == {"f": b"first" + bytes(7) + b" third"}
    assert fs.past() == []


def test_what_is_written_past_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "earlier").write_bytes(b"durable")
    fs = ForgetfulFileSystem(tmp_path)
    with replaced_file_system(fs):
        write_checked_file(tmp_path / "through", b"content")
        FramedLog(tmp_path / "log").open()
    assert fs.past() == []

    (tmp_path / "past").write_bytes(b"content")
    (tmp_path / "LOCK").write_bytes(b"123\n")
    with (tmp_path / "through").open("ab") as stream:
        stream.write(b"more")

    assert fs.past() == ["past", "through"]


def test_only_objects_of_the_block_use_the_replacement(tmp_path: Path) -> None:
    fs = ForgetfulFileSystem(tmp_path)
    earlier = FramedLog(tmp_path / "earlier")
    with replaced_file_system(fs):
        log = FramedLog(tmp_path / "log")
    earlier.open()
    assert fs.steps == 0

    log.open()
    log.append(b"record")

    assert fs.operations[-1].path.endswith(".seg")
    earlier.close()
    log.close()
