"""An application machine's files: restarts, kills, failing disks, damage, checkpoints."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from tape import FORMAT, BreakableDisk, Tape, entries, make, reopened, seen, snapshot

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.application_state import encode_chunk
from dengine_sm.application_storage import MANIFEST_NAME, ApplicationStorage
from dengine_sm.errors import (
    CorruptionError,
    StateMachinePoisonedError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.model import Durability, Entry, LogId, SnapshotMetadata


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[ApplicationStateMachine]:
    built = make(tmp_path / "m")
    built.start()
    yield built
    built.stop()


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
