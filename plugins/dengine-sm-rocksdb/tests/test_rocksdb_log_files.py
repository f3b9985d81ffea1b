"""What is damaged, missing or lost of RocksDB's log files is told from what a crash leaves."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from dengine_sm_rocksdb import Binding
from dengine_sm_rocksdb.chunk_row import is_chunk
from dengine_sm_rocksdb.frames import BLOCK_BYTES, FrameError, masked_crc32c, read_records
from dengine_sm_rocksdb.manifest import read_manifest
from dengine_sm_rocksdb.synced import Synced, SyncedFile, numbered_files, read_synced

from dengine_sm import CorruptionError
from dengine_sm.files import OsFileSystem
from dengine_sm.kv import WriteBatch

VALUE = bytes(range(256))


def write(store: Any, number: int, *, keys: int = 1, value: bytes = VALUE) -> None:
    data: dict[bytes, bytes | None] = {b"%03d-%03d" % (number, key): value for key in range(keys)}
    store.write(WriteBatch(data, {b"number": b"%d" % number}))


def killed(store: Any, target: Path) -> Path:
    """Copy the directory as a kill would leave it; return the database's in the copy."""
    shutil.copytree(store.directory, target)
    return target / store._engine.directory.name


def newest_wal(database: Path) -> Path:
    return max(database.glob("*.log"))


@pytest.fixture
def killed_store(make_store: Any, engine: Binding, tmp_path: Path) -> tuple[Any, Path]:
    """A store that is closed, on the copy of one that was killed: six flushed batches, then two."""
    store = make_store("original", binding=engine)
    store.open()
    for number in range(6):
        write(store, number)
    store.flush()
    write(store, 6)
    write(store, 7)
    database = killed(store, tmp_path / "copy")
    return make_store("copy", binding=engine), database


def recovered(store: Any) -> int:
    """Open a store, check that it holds whole batches, return how many."""
    store.open()
    count = int(store.get_internal(b"number") or b"-1") + 1
    assert sorted({int(key[:3]) for key, _ in store.scan(b"", None)}) == list(range(count))
    assert len(list(store.scan(b"", None))) == store.count()
    store.close()
    return count


def offsets(path: Path) -> list[int]:
    """Return where the records begin; of a WAL, those that are write batches of the store."""
    is_wal = path.suffix == ".log"
    return [
        record.offset for record in read_records(path) if not is_wal or is_chunk(record.payload)
    ]


def change(path: Path, how: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    how(content)
    path.write_bytes(content)


def flip(at: int, bit: int) -> Callable[[bytearray], None]:
    def how(content: bytearray) -> None:
        content[at] ^= 1 << bit

    return how


def test_the_checksum_is_rocksdbs(killed_store: tuple[Any, Path]) -> None:
    assert (
        masked_crc32c(b"123456789")
        == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    )
    wal = newest_wal(killed_store[1])
    assert len(list(read_records(wal, verify=True))) >= len(offsets(wal)) == 8


def test_records_larger_than_a_block_are_read_whole(make_store: Any, tmp_path: Path) -> None:
    store = make_store()
    store.open()
    for number, keys in enumerate((1, 500, 3, 900)):
        write(store, number, keys=keys)

    records = list(read_records(newest_wal(store._engine.directory), verify=True))

    assert [len(record.payload[:12]) for record in records] == [12, 12, 12, 12]
    assert [record.payload.count(VALUE) for record in records] == [1, 500, 3, 900]


def test_a_kill_loses_nothing(killed_store: tuple[Any, Path]) -> None:
    assert recovered(killed_store[0]) == 8


def test_a_cut_of_the_last_write_recovers_to_the_one_before(killed_store: tuple[Any, Path]) -> None:
    store, database = killed_store
    wal = newest_wal(database)
    image, content = store.directory.parent / "image", wal.read_bytes()
    shutil.copytree(store.directory, image)
    last = offsets(wal)[-1]

    for at in (last, last + 1, last + 6, last + 7, last + 8, len(content) - 1):
        shutil.rmtree(store.directory)
        shutil.copytree(image, store.directory)
        wal.write_bytes(content[:at])
        assert recovered(store) == 7, at


@pytest.mark.parametrize("lost", [1, 300])
def test_a_cut_of_what_was_synced_is_damage(killed_store: tuple[Any, Path], lost: int) -> None:
    store, database = killed_store
    wal = newest_wal(database)
    synced = read_synced(database)
    assert offsets(wal)[5] < synced.wal_bytes <= offsets(wal)[6]
    wal.write_bytes(wal.read_bytes()[: synced.wal_bytes - lost])

    with pytest.raises(CorruptionError, match=r"ends, of \d+ synced bytes") as raised:
        store.open()
    assert (raised.value.path, raised.value.offset) == (wal, synced.wal_bytes - lost)


@pytest.mark.parametrize("record", [0, 3, 6])
@pytest.mark.parametrize(
    "at", [0, 4, 5, 6, 7, 40], ids=["checksum", "length", "length", "kind", "sequence", "content"]
)
def test_any_flip_before_the_last_write_is_damage(
    killed_store: tuple[Any, Path], record: int, at: int
) -> None:
    """RocksDB takes a length that became too great for the end of the file."""
    store, database = killed_store
    wal = newest_wal(database)
    where = offsets(wal)[record]

    for bit in (0, 6):
        change(wal, flip(where + at, bit))
        for _ in range(2):
            with pytest.raises(CorruptionError) as raised:
                store.open()
        assert (raised.value.path, raised.value.offset) == (wal, where)
        change(wal, flip(where + at, bit))
    assert recovered(store) == 8


def test_zeros_between_synced_records_are_damage(killed_store: tuple[Any, Path]) -> None:
    """RocksDB skips a block that goes on with zeros."""
    store, database = killed_store
    wal = newest_wal(database)
    second, third = offsets(wal)[1:3]

    def how(content: bytearray) -> None:
        content[second:third] = bytes(third - second)

    change(wal, how)

    with pytest.raises(CorruptionError, match="a frame of unknown kind"):
        store.open()


def test_zeros_in_place_of_unsynced_pages_are_what_a_power_loss_leaves(
    make_store: Any, tmp_path: Path
) -> None:
    store = make_store("original")
    store.open()
    write(store, 0)
    store.flush()
    for number in range(1, 20):
        write(store, number)
    database = killed(store, tmp_path / "copy")
    wal = newest_wal(database)
    copy = make_store("copy")
    ends = offsets(wal)

    def how(content: bytearray) -> None:
        content[2048:3072] = bytes(1024)

    change(wal, how)

    whole = sum(end <= 2048 for end in ends[1:])
    assert 0 < whole < 19
    assert recovered(copy) == whole
    assert recovered(copy) == whole


def framed(payloads: list[bytes]) -> bytes:
    """Lay records out as RocksDB does, as long as they fit into one block."""
    frames = [
        masked_crc32c(b"\1" + payload).to_bytes(4, "little")
        + len(payload).to_bytes(2, "little")
        + b"\1"
        + payload
        for payload in payloads
    ]
    assert sum(map(len, frames)) < BLOCK_BYTES
    return b"".join(frames)


def test_an_older_wal_that_lost_its_unsynced_end_takes_the_newer_one_with_it(
    killed_store: tuple[Any, Path],
) -> None:
    """A hole must not be left, and RocksDB would leave one."""
    store, database = killed_store
    older = newest_wal(database)
    payloads = [record.payload for record in read_records(older)]
    newer = older.with_name(f"{int(older.stem) + 50:06d}.log")
    newer.write_bytes(framed(payloads[6:]))
    image = store.directory.parent / "image"
    shutil.copytree(store.directory, image)
    write_synced(database, lambda size: len(framed(payloads[:3])))

    for lost, expected in ((1, 5), (len(framed(payloads[5:6])), 5), (400, 4)):
        older.write_bytes(framed(payloads[:6])[:-lost])
        assert recovered(store) == expected
        shutil.rmtree(store.directory)
        shutil.copytree(image, store.directory)
        write_synced(database, lambda size: len(framed(payloads[:3])))
    older.write_bytes(framed(payloads[:6]))
    assert recovered(store) == 8


def write_synced(database: Path, size_of: Callable[[int], int]) -> None:
    """Let `SYNCED` promise less."""
    synced = read_synced(database)
    smaller = attrs.evolve(synced, wal_bytes=size_of(synced.wal_bytes), chunk=0)
    (database / "SYNCED").write_bytes(smaller.encode(0))


WRITES_UNTIL_A_FAMILY_IS_FLUSHED_ALONE = """
import os, sys
from pathlib import Path
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb import RocksDBOptions, create_rocksdb
from dengine_sm_rocksdb.manifest import read_manifest
from dengine_sm_rocksdb.synced import numbered_files

store = create_rocksdb(Path(sys.argv[1]), RocksDBOptions(write_buffer_bytes=64 << 10))._store
store.open()
directory = store._engine.directory
for number in range(1000):
    data = {b"%03d-%03d" % (number, key): bytes(range(256)) for key in range(20)}
    store.write(WriteBatch(data, {b"number": b"%d" % number}))
    wals, manifests = numbered_files(directory)
    manifest = read_manifest(directory / f"MANIFEST-{manifests[-1]:06d}")[0]
    if manifest.first_needed_wal <= wals[0] < manifest.newest_log_number:
        print(number, flush=True)
        os.kill(os.getpid(), 9)
"""


def test_an_older_wal_of_which_a_part_is_in_a_table_was_synced(
    make_store: Any, tmp_path: Path
) -> None:
    """RocksDB syncs the closed WALs before; without that the families would part."""
    for attempt in range(10):
        store = make_store(f"store-{attempt}")
        child = subprocess.run(
            [sys.executable, "-c", WRITES_UNTIL_A_FAMILY_IS_FLUSHED_ALONE, str(store.directory)],
            capture_output=True,
            text=True,
            check=False,
        )
        database = next(store.directory.glob("data-*"))
        wals, manifests = numbered_files(database)
        manifest = read_manifest(database / f"MANIFEST-{manifests[-1]:06d}")[0]
        if manifest.first_needed_wal <= wals[0] < manifest.newest_log_number:
            break
    else:
        pytest.fail(f"no family was flushed alone: {child}")
    older = database / f"{wals[0]:06d}.log"
    content = older.read_bytes()

    older.write_bytes(content[:-9])
    with pytest.raises(CorruptionError):
        store.open()
    older.write_bytes(content)
    assert recovered(store) == int(child.stdout) + 1


@pytest.mark.parametrize("kind", ["wal", "manifest", "current", "synced", "sst"])
def test_a_missing_file_is_damage(make_store: Any, tmp_path: Path, kind: str) -> None:
    store = make_store("original")
    store.open()
    store.replace_all([WriteBatch({b"000-000": VALUE}, {b"number": b"0"})])
    write(store, 1)
    store.flush()
    database = killed(store, tmp_path / "copy")
    pattern = {"wal": "*.log", "manifest": "MANIFEST-*", "current": "CURRENT", "synced": "SYNCED"}
    path = max(database.glob(pattern.get(kind, "*.sst")))
    content = path.read_bytes()
    copy = make_store("copy")

    path.unlink()
    for _ in range(2):
        with pytest.raises(CorruptionError) as raised:
            copy.open()
    assert raised.value.path.is_relative_to(database)
    path.write_bytes(content)

    assert recovered(copy) == 2


def test_a_manifest_that_lost_whole_edits_is_damage(killed_store: tuple[Any, Path]) -> None:
    """RocksDB would start with an older set of files."""
    store, database = killed_store
    path = max(database.glob("MANIFEST-*"))
    content = path.read_bytes()

    for offset in offsets(path)[1:]:
        path.write_bytes(content[:offset])
        with pytest.raises(CorruptionError, match="synced bytes") as raised:
            store.open()
        assert (raised.value.path, raised.value.offset) == (path, offset)
    path.write_bytes(content)
    assert recovered(store) == 8


KILLED_WHILE_TABLES_ARE_WRITTEN = """
import os, random, sys, threading, time
from pathlib import Path
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb import RocksDBOptions, create_rocksdb

rng = random.Random(int(sys.argv[2]))
store = create_rocksdb(Path(sys.argv[1]), RocksDBOptions(write_buffer_bytes=64 << 10))._store
store.open()
for number in range(rng.randrange(20, 150)):
    data = {b"%03d-%03d" % (number, key): bytes(range(256)) for key in range(20)}
    store.write(WriteBatch(data, {b"number": b"%d" % number}))
    if rng.random() < 0.3:
        store.flush()
        print(number, flush=True)
time.sleep(rng.random() / 100)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_wal_that_rocksdb_has_removed_is_not_missed(make_store: Any, seed: int) -> None:
    store = make_store()

    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_TABLES_ARE_WRITTEN, str(store.directory), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert child.returncode == -9, child.stderr
    assert recovered(store) > int(child.stdout.split()[-1])


@pytest.mark.parametrize("kind", ["MANIFEST-*", "SYNCED", "CURRENT"])
def test_other_files_cut_or_flipped_anywhere_are_damage_or_harmless(
    killed_store: tuple[Any, Path], kind: str
) -> None:
    store, database = killed_store
    image = store.directory.parent / "image"
    shutil.copytree(store.directory, image)
    path = max(database.glob(kind))
    content = path.read_bytes()
    rng = random.Random(3)
    refused = 0

    for at in sorted(rng.sample(range(len(content)), min(12, len(content)))):
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        for wrong in (bytes(flipped), content[:at]):
            path.write_bytes(wrong)
            try:
                store.open()
            except CorruptionError:
                refused += 1
            else:
                store.close()
                assert recovered(store) == 8, f"{at}: {wrong!r}"
                shutil.rmtree(store.directory)
                shutil.copytree(image, store.directory)
    path.write_bytes(content)

    assert refused > 0
    assert recovered(store) == 8


def test_a_scan_over_a_damaged_block_raises(make_store: Any) -> None:
    """An iterator of RocksDB ends there as it does at the end."""
    store = make_store("original")
    store.open()
    store.replace_all(
        [WriteBatch({b"%05d" % key: random.Random(key).randbytes(200) for key in range(2000)})]
    )
    path = max(store._engine.directory.glob("*.sst"), key=lambda path: path.stat().st_size)
    store.close()
    change(path, flip(200_000, 0))
    store.open()

    for reader in (store, store.view()):
        found = []
        with pytest.raises(CorruptionError, match="block checksum mismatch") as raised:
            found.extend(reader.scan(b"", None))
        assert raised.value.path == path
        assert 0 < raised.value.offset <= 200_000
        with pytest.raises(CorruptionError):
            reader.get_multi([b"%05d" % key for key in range(2000)])
    assert store.get(b"00001") is not None


class ShortWrites(OsFileSystem):
    """A disk that takes only a part of what is overwritten, while `is_full`."""

    is_full = False

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return super().pwrite(fd, data[:100] if self.is_full else data, offset)


def test_a_torn_write_of_what_is_durable_leaves_the_one_before(tmp_path: Path) -> None:
    fs = ShortWrites()
    file = SyncedFile(tmp_path, fs)
    file.create()
    for chunk in (1, 2, 3):
        file.write(Synced(chunk=chunk))
    fs.is_full = True
    with pytest.raises(OSError, match="takes no more bytes"):
        file.write(Synced(chunk=4))
    file.note(Synced(chunk=5))
    assert read_synced(tmp_path) == Synced(chunk=3)
    file.close()

    fs.is_full = False
    file = SyncedFile(tmp_path, fs)
    file.open()
    for chunk in (6, 7):
        file.write(Synced(chunk=chunk))
        assert read_synced(tmp_path) == Synced(chunk=chunk)
    file.close()


def test_fewer_batches_than_were_durable_are_damage(killed_store: tuple[Any, Path]) -> None:
    """Whatever has taken them."""
    store, database = killed_store
    synced = attrs.evolve(read_synced(database), chunk=99)
    (database / "SYNCED").write_bytes(synced.encode(99))

    with pytest.raises(CorruptionError, match=r"recovered \d+ write batches, expected 99"):
        store.open()


def test_a_manifest_says_what_is_needed(make_store: Any, engine: Binding) -> None:
    store = make_store(binding=engine, write_buffer_bytes=64 << 10)
    store.open()
    for number in range(40):
        write(store, number, keys=20)
    directory = store._engine.directory
    store.close()
    wals, manifests = numbered_files(directory)

    manifest, error = read_manifest(directory / f"MANIFEST-{manifests[-1]:06d}")

    assert error is None
    assert manifest.is_understood
    assert set(manifest.names.values()) == {b"internal", b"store"}
    assert 0 < manifest.first_needed_wal <= wals[0]
    assert (manifest.min_log_to_keep > 0) is (engine is Binding.ROCKSDICT)
    assert manifest.may_be_removed(manifest.first_needed_wal - 1, b"store")
    assert not manifest.may_be_removed(wals[-1], b"store")


def test_a_frame_error_says_where() -> None:
    error = FrameError(7, 9, "a frame that is longer than what is left", is_torn=True)

    assert "7" in str(error)
