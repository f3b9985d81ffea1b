"""An application machine keeps the contract around a plain object."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import pytest

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.application_state import encode_chunk
from dengine_sm.application_storage import MANIFEST_NAME, ApplicationStorage
from dengine_sm.errors import (
    ConcurrentApplyError,
    CorruptionError,
    LogGapError,
    LogOrderError,
    NotRunningError,
    SnapshotCorruptionError,
    SnapshotFormatError,
    SnapshotLabelError,
    StaleSnapshotError,
    StateMachinePoisonedError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.files import OsFileSystem
from dengine_sm.model import Durability, Entry, LogId, Outcome, SnapshotMetadata

FORMAT = "tape/1"


class Tape:
    """Keeps every command with its time; order and number matter."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        if entry.data == b"bad":
            return Outcome.REJECTED, b"bad"
        self.lines.append(b"%d %s" % (entry.timestamp_ms, entry.data))
        if entry.data == b"explode":
            raise ZeroDivisionError("boom")
        return Outcome.APPLIED, b"%d" % len(self.lines)

    def get(self, key: bytes) -> bytes | None:
        position = int(key)
        return self.lines[position] if position < len(self.lines) else None

    def query(self, request: bytes) -> bytes:
        return b"\n".join(self.lines)

    def dump(self) -> Iterable[bytes]:
        return list(self.lines)

    def load(self, records: Iterable[bytes]) -> None:
        self.lines = list(records)

    def len(self) -> int:
        return len(self.lines)


class BreakableDisk(OsFileSystem):
    """The real disk until a call is told to fail."""

    def __init__(self) -> None:
        self.failing: set[str] = set()

    def _check(self, call: str) -> None:
        if call in self.failing:
            raise OSError(28, os.strerror(28))

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        self._check("write")
        return super().write(fd, data)

    def fdatasync(self, fd: int) -> None:
        self._check("fdatasync")
        super().fdatasync(fd)

    def replace(self, source: Path, target: Path) -> None:
        self._check("replace")
        super().replace(source, target)


def entries(first: int, count: int, term: int = 1, data: bytes = b"x") -> list[Entry]:
    return [Entry(i, term, 1000 + i, data + b"%d" % i) for i in range(first, first + count)]


def make(directory: Path, **options: object) -> ApplicationStateMachine:
    return ApplicationStateMachine(Tape, directory, format=FORMAT, **options)  # type: ignore[arg-type]


def seen(machine: ApplicationStateMachine) -> tuple[object, ...]:
    """Return all that a machine shows of its state."""
    last_applied = machine.last_applied()
    terms = [machine.entry_term(index) for index in range(last_applied.index + 2)]
    return machine.query(b""), machine.len(), last_applied, terms, machine.snapshot_metadata()


def reopened(directory: Path, aside: Path) -> tuple[object, ...]:
    """Return what a machine shows that starts on a copy: the files as a kill leaves them."""
    shutil.copytree(directory, aside)
    machine = make(aside)
    machine.start()
    try:
        return seen(machine)
    finally:
        machine.stop()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[ApplicationStateMachine]:
    built = make(tmp_path / "m")
    built.start()
    yield built
    built.stop()


async def test_results_carry_index_outcome_and_value(machine: ApplicationStateMachine) -> None:
    chunk = [
        Entry(1, 1, 5, b"a"),
        Entry(2, 1, 6, b"bad"),
        Entry(3, 1, 7, b""),
        Entry(4, 2, 8, b"b"),
    ]

    results = await machine.apply_chunk(chunk)

    assert [(r.index, r.outcome, r.value) for r in results] == [
        (1, Outcome.APPLIED, b"1"),
        (2, Outcome.REJECTED, b"bad"),
        (3, Outcome.APPLIED, None),
        (4, Outcome.APPLIED, b"2"),
    ]
    assert machine.last_applied() == LogId(2, 4)
    assert [machine.entry_term(i) for i in range(6)] == [None, 1, 1, 1, 2, None]
    assert machine.get(b"1") == b"8 b"
    assert await machine.apply_chunk([]) == []


async def test_time_given_to_the_application_never_goes_back(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk([Entry(1, 1, 50, b""), Entry(2, 1, 20, b"a")])
    await machine.apply_chunk([Entry(3, 1, 30, b"b"), Entry(4, 1, 60, b"c")])

    assert machine.query(b"") == b"50 a\n50 b\n60 c"
    assert reopened(tmp_path / "m", tmp_path / "copy") == seen(machine)


async def test_duplicates_are_skipped_and_gaps_refused(machine: ApplicationStateMachine) -> None:
    await machine.apply_chunk(entries(1, 3, term=2))
    before = seen(machine)

    results = await machine.apply_chunk([Entry(2, 9, 1, b"other"), Entry(3, 9, 1, b"other")])

    assert [r.outcome for r in results] == [Outcome.DUPLICATE] * 2
    with pytest.raises(LogGapError):
        await machine.apply_chunk(entries(5, 1, term=2))
    with pytest.raises(LogOrderError):
        await machine.apply_chunk(entries(4, 1, term=1))
    assert seen(machine) == before
    mixed = await machine.apply_chunk(entries(3, 2, term=2))
    assert [r.outcome for r in mixed] == [Outcome.DUPLICATE, Outcome.APPLIED]


def test_stopped_machine_answers_only_is_running(tmp_path: Path) -> None:
    machine = make(tmp_path / "m")

    assert not machine.is_running()
    assert not (tmp_path / "m").exists()
    zero = SnapshotMetadata(LogId(1, 1), b"c" * 32, FORMAT)
    calls: list[Callable[[], object]] = [
        lambda: machine.get(b"0"),
        lambda: machine.query(b""),
        machine.len,
        machine.is_empty,
        machine.last_applied,
        machine.snapshot_metadata,
        machine.flush,
        machine.save_hard_state,
        lambda: machine.entry_term(1),
        lambda: machine.update_last_applied(LogId(1, 1)),
        lambda: machine.persist_last_applied(LogId(1, 1)),
        lambda: machine.update_last_snapshot_metadata(zero),
        lambda: machine.persist_last_snapshot_metadata(zero),
        lambda: asyncio.run(machine.apply_chunk(entries(1, 1))),
        lambda: asyncio.run(machine.reset()),
        lambda: asyncio.run(machine.flush_async()),
        lambda: asyncio.run(machine.generate_snapshot_data(tmp_path / "s", LogId.ZERO)),
        lambda: asyncio.run(machine.apply_snapshot_from_file(zero, tmp_path / "s")),
    ]
    for call in calls:
        with pytest.raises(NotRunningError):
            call()
    machine.stop()


async def test_restart_finds_everything(tmp_path: Path) -> None:
    machine = make(tmp_path / "m")
    for _ in range(2):
        machine.start()
        machine.start()
    await machine.apply_chunk(entries(1, 5))
    machine.update_last_applied(LogId(3, 7))
    await machine.apply_chunk(entries(8, 2, term=3))
    machine.update_last_snapshot_metadata(SnapshotMetadata(LogId(1, 5), b"c" * 32, FORMAT))
    before = seen(machine)

    machine.stop()
    machine.stop()
    machine.start()

    assert seen(machine) == before
    assert before[3] == [None, 1, 1, 1, 1, 1, None, 3, 3, 3, None]
    machine.stop()


@pytest.mark.parametrize(
    "promise",
    [
        lambda m: m.flush(),
        lambda m: m.save_hard_state(),
        lambda m: m.persist_last_applied(m.last_applied()),
        lambda m: m.persist_last_applied(LogId(4, 20)),
        lambda m: m.persist_last_snapshot_metadata(
            SnapshotMetadata(LogId(1, 5), b"c" * 32, FORMAT)
        ),
    ],
)
async def test_promised_state_survives_a_kill(
    machine: ApplicationStateMachine,
    tmp_path: Path,
    promise: Callable[[ApplicationStateMachine], None],
) -> None:
    await machine.apply_chunk(entries(1, 5))
    promise(machine)

    assert reopened(tmp_path / "m", tmp_path / "copy") == seen(machine)


async def test_per_apply_syncs_before_it_returns(tmp_path: Path) -> None:
    machine = make(tmp_path / "m", durability=Durability.PER_APPLY)
    machine.start()

    await machine.apply_chunk(entries(1, 5))

    assert machine._storage._log.synced_sequence == 1
    assert reopened(tmp_path / "m", tmp_path / "copy") == seen(machine)
    machine.stop()


def test_applied_id_never_goes_back(machine: ApplicationStateMachine) -> None:
    machine.update_last_applied(LogId(2, 9))

    for lower in (LogId(2, 8), LogId(1, 10), LogId(3, 5)):
        with pytest.raises(LogOrderError):
            machine.update_last_applied(lower)
        with pytest.raises(LogOrderError):
            machine.persist_last_applied(lower)
    machine.update_last_applied(LogId(2, 9))

    assert machine.last_applied() == LogId(2, 9)


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
async def test_exception_of_the_application_undoes_the_chunk(
    tmp_path: Path, durability: Durability
) -> None:
    machine = make(tmp_path / "m", durability=durability)
    machine.start()
    await machine.apply_chunk(entries(1, 3))
    before = seen(machine)

    with pytest.raises(StateMachinePoisonedError, match="apply raised ZeroDivisionError: boom"):
        await machine.apply_chunk([*entries(4, 2), Entry(6, 1, 1, b"explode")])

    assert seen(machine) == before
    with pytest.raises(StateMachinePoisonedError):
        await machine.apply_chunk(entries(4, 1))
    assert reopened(tmp_path / "m", tmp_path / "copy") == before
    machine.stop()
    machine.start()
    await machine.apply_chunk(entries(4, 1))
    assert machine.len() == 4
    machine.stop()


async def test_kill_before_the_undo_drops_the_unacknowledged_chunk(tmp_path: Path) -> None:
    machine = make(tmp_path / "m")
    machine.start()
    await machine.apply_chunk(entries(1, 3))
    before = seen(machine)
    machine.stop()
    storage = ApplicationStorage(tmp_path / "m", FORMAT, segment_bytes=1 << 20)
    storage.open()
    storage.append(encode_chunk([Entry(4, 1, 1, b"explode")]))
    storage.close()

    machine.start()

    assert seen(machine) == before
    await machine.apply_chunk(entries(4, 1))
    machine.stop()
    machine.start()
    assert machine.len() == 4
    machine.stop()


def test_second_machine_is_refused_while_the_first_runs(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    second = make(tmp_path / "m")

    with pytest.raises(StorageLockedError):
        second.start()

    machine.stop()
    second.start()
    second.stop()


def listing(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.sst").write_bytes(b"theirs")
    before = listing(tmp_path)

    with pytest.raises(StorageFormatError, match=re.escape("data.sst")):
        make(tmp_path).start()

    assert listing(tmp_path) == before


def test_other_application_is_refused(machine: ApplicationStateMachine, tmp_path: Path) -> None:
    machine.stop()
    before = listing(tmp_path)
    other = ApplicationStateMachine(Tape, tmp_path / "m", format="tape/2")

    with pytest.raises(StorageFormatError, match=re.escape("'tape/1'")):
        other.start()

    assert listing(tmp_path) == before


async def test_checkpoints_replace_the_log(tmp_path: Path) -> None:
    machine = make(tmp_path / "m", checkpoint_bytes=4096)
    machine.start()
    for first in range(1, 2001, 10):
        await machine.apply_chunk(entries(first, 10, data=b"d" * 20))
        machine._join_checkpointer()
    before = seen(machine)

    assert len(list((tmp_path / "m").glob("checkpoint-*"))) == 1
    assert len(list((tmp_path / "m" / "log").glob("*.seg"))) < 5
    assert reopened(tmp_path / "m", tmp_path / "copy") == before
    machine.stop()
    machine.start()
    assert seen(machine) == before
    machine.stop()


async def snapshot(machine: ApplicationStateMachine, directory: Path) -> SnapshotMetadata:
    last_included = machine.last_applied()
    checksum = await machine.generate_snapshot_data(directory, last_included)
    metadata = machine.snapshot_metadata()
    assert metadata == SnapshotMetadata(last_included, checksum, FORMAT)
    return metadata


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


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
@pytest.mark.parametrize("call", ["write", "fdatasync"])
async def test_disk_failure_leaves_the_state_and_poisons(
    tmp_path: Path, call: str, durability: Durability
) -> None:
    disk = BreakableDisk()
    machine = make(tmp_path / "m", durability=durability, file_system=disk)
    machine.start()
    await machine.apply_chunk(entries(1, 5))
    machine.flush()
    before = seen(machine)
    disk.failing.add(call)

    if call == "fdatasync" and durability is Durability.ON_FLUSH:
        await machine.apply_chunk(entries(6, 1))
        before = seen(machine)
        with pytest.raises(StorageError):
            machine.flush()
    else:
        with pytest.raises(StorageError):
            await machine.apply_chunk(entries(6, 1))
    disk.failing.clear()

    assert seen(machine) == before
    with pytest.raises(StateMachinePoisonedError):
        await machine.apply_chunk(entries(6, 1))
    with pytest.raises(StateMachinePoisonedError):
        machine.flush()
    machine.stop()
    machine.start()
    assert seen(machine) == before
    machine.stop()


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


async def test_log_cut_anywhere_recovers_to_a_chunk_boundary(tmp_path: Path) -> None:
    machine = make(tmp_path / "m")
    machine.start()
    await machine.apply_chunk(entries(1, 2))
    machine.flush()
    (segment,) = (tmp_path / "m" / "log").glob("*.seg")
    synced_size = segment.stat().st_size
    boundaries = {b"", machine.query(b"")}
    for first in (3, 5):
        await machine.apply_chunk(entries(first, 2))
        boundaries.add(machine.query(b""))
    content = segment.read_bytes()

    for size in range(len(content)):
        aside = tmp_path / f"cut-{size}"
        shutil.copytree(tmp_path / "m", aside)
        (aside / "log" / segment.name).write_bytes(content[:size])
        copy = make(aside)
        try:
            copy.start()
        except CorruptionError:
            continue
        assert copy.query(b"") in boundaries
        assert copy.len() >= 2 or size < synced_size
        copy.stop()
    machine.stop()


async def test_damaged_manifest_is_refused(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 2))
    machine.stop()
    path = tmp_path / "m" / MANIFEST_NAME
    content = path.read_bytes()

    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(CorruptionError) as caught:
            machine.start()
        assert caught.value.path == path


async def test_damaged_checkpoint_is_refused(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 2))
    metadata = await snapshot(machine, tmp_path / "s")
    await machine.apply_snapshot_from_file(metadata, tmp_path / "s")
    machine.stop()
    (records,) = (tmp_path / "m").glob("checkpoint-*/records.cbor")
    records.write_bytes(records.read_bytes()[:-1])

    with pytest.raises(CorruptionError):
        machine.start()
    shutil.rmtree(records.parent)
    with pytest.raises(CorruptionError):
        machine.start()


async def test_missing_log_is_no_empty_state(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 2))
    machine.stop()
    shutil.rmtree(tmp_path / "m" / "log")

    with pytest.raises(CorruptionError):
        machine.start()


async def test_reader_inside_a_chunk_waits_for_its_end(tmp_path: Path) -> None:
    observed: list[int] = []
    answered = threading.Event()

    def read() -> None:
        observed.append(machine.len())
        answered.set()

    class ReadMidway(Tape):
        def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
            if entry.index == 5:
                reader.start()
                # A reader that does not wait answers at once; a right one only later.
                assert not answered.wait(0.2)
            return super().apply(entry)

    machine = ApplicationStateMachine(ReadMidway, tmp_path / "m", format=FORMAT)
    machine.start()
    reader = threading.Thread(target=read)

    await machine.apply_chunk(entries(1, 10))
    reader.join()

    assert observed == [10]
    machine.stop()


async def test_stop_waits_for_the_checkpoint(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Slow(Tape):
        def dump(self) -> Iterable[bytes]:
            lines = list(self.lines)

            def records() -> Iterator[bytes]:
                assert go_on.wait(10)
                yield from lines

            return records()

    machine = ApplicationStateMachine(Slow, tmp_path / "m", format=FORMAT, checkpoint_bytes=64)
    machine.start()
    await machine.apply_chunk(entries(1, 10))
    before = seen(machine)
    stopping = threading.Thread(target=machine.stop)
    stopping.start()
    stopping.join(0.2)

    assert stopping.is_alive()
    go_on.set()
    stopping.join()

    assert len(list((tmp_path / "m").glob("checkpoint-*"))) == 1
    assert reopened(tmp_path / "m", tmp_path / "copy") == before


async def test_overlapping_applies_are_refused(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Waiting(Tape):
        def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
            entered.set()
            go_on.wait(10)
            return super().apply(entry)

    machine = ApplicationStateMachine(
        Waiting, tmp_path / "m", format=FORMAT, durability=Durability.PER_APPLY
    )
    machine.start()
    first = asyncio.ensure_future(machine.apply_chunk(entries(1, 1)))
    await asyncio.to_thread(entered.wait)

    with pytest.raises(ConcurrentApplyError):
        await machine.apply_chunk(entries(1, 1))

    go_on.set()
    await first
    assert machine.len() == 1
    machine.stop()


async def test_cycles_leak_nothing(tmp_path: Path) -> None:
    machine = make(tmp_path / "m", checkpoint_bytes=256)
    rival = make(tmp_path / "m")
    observed = []
    for cycle in range(50):
        machine.start()
        await machine.apply_chunk(entries(cycle * 3 + 1, 3))
        with pytest.raises(StorageLockedError):
            rival.start()
        if cycle % 2:
            with pytest.raises(StateMachinePoisonedError):
                await machine.apply_chunk([Entry(cycle * 3 + 4, 1, 1, b"explode")])
        machine.stop()
        others = [t for t in threading.enumerate() if t.name == "application-checkpoint"]
        observed.append((len(os.listdir("/proc/self/fd")), len(others)))

    assert set(observed[5:]) == {observed[5]}
    assert list(tmp_path.rglob("*.tmp")) == []


async def test_snapshot_of_before_a_reset_is_not_noted(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk(entries(1, 5))
    writing = asyncio.ensure_future(machine.generate_snapshot_data(tmp_path / "s", LogId(1, 5)))
    await asyncio.sleep(0)
    machine._reset()

    await writing

    assert machine.snapshot_metadata() is None
