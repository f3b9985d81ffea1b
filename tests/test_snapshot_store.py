import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from dengine_sm.errors import SnapshotCorruptionError, SnapshotError, StorageError
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import (
    PORTABLE_FORMAT,
    PublishedSnapshot,
    SnapshotStore,
    pack_archive,
    read_portable,
    verify_archive,
    verify_snapshot,
    write_portable,
)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "store")
    store.open()
    return store


def make_snapshot(directory: Path, last: LogId, value: bytes = b"v") -> SnapshotMetadata:
    rows = [(b"%04d" % n, value, None) for n in range(100)]
    checksum = write_portable(directory, last_included=last, clock_ms=1, entries=rows)
    return SnapshotMetadata(last, checksum, PORTABLE_FORMAT)


def publish(store: SnapshotStore, last: LogId, value: bytes = b"v") -> PublishedSnapshot:
    source = store.temporary_directory()
    metadata = make_snapshot(source, last, value)
    return store.publish(source, metadata)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def ids(store: SnapshotStore) -> list[tuple[int, int]]:
    listed = [published.metadata.last_included for published in store.list()]
    return [(last.term, last.index) for last in listed]


def test_touches_nothing_before_open(tmp_path: Path) -> None:
    SnapshotStore(tmp_path / "store")

    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_has_no_newest(store: SnapshotStore) -> None:
    assert not (store.list() or store.damaged() or store.cleanup())
    assert store.newest() is None


def test_publishes_and_extracts(store: SnapshotStore) -> None:
    published = publish(store, LogId(2, 7))

    assert published.path.name == "snapshot-00000000000000000002-00000000000000000007.dsnap"
    assert published.size_bytes == published.path.stat().st_size
    assert [published] == store.list()
    with store.extract(published) as directory:
        verify_snapshot(directory, published.metadata, formats=[PORTABLE_FORMAT])
        assert sum(len(block.keys) for block in read_portable(directory).blocks) == 100
    assert not directory.exists()


def test_an_extracted_directory_goes_away_after_a_failure(store: SnapshotStore) -> None:
    published = publish(store, LogId(2, 7))

    with pytest.raises(RuntimeError), store.extract(published) as directory:
        (directory / "more").touch()
        raise RuntimeError

    assert not directory.exists()


def test_lists_by_term_before_index(store: SnapshotStore) -> None:
    for last in (LogId(3, 5), LogId(1, 90), LogId(2, 100), LogId(2, 9)):
        publish(store, last)

    assert ids(store) == [(1, 90), (2, 9), (2, 100), (3, 5)]
    newest = store.newest()
    assert newest is not None
    assert LogId(3, 5) == newest.metadata.last_included


def test_tolerates_foreign_files(store: SnapshotStore) -> None:
    publish(store, LogId(1, 1))
    foreign = ["README", "snapshot-1-2.dsnap", "snapshot-x.dsnap.bak", ".hidden"]
    for name in foreign:
        (store.directory / name).write_bytes(b"not ours")
    (store.directory / "sub").mkdir()

    store.open()
    store.cleanup(1)

    assert ids(store) == [(1, 1)]
    assert store.damaged() == []
    assert {*foreign, "sub"} < {path.name for path in store.directory.iterdir()}


def test_a_damaged_archive_is_reported_and_not_listed(store: SnapshotStore) -> None:
    publish(store, LogId(1, 1))
    cut = publish(store, LogId(1, 2)).path
    flipped = publish(store, LogId(1, 3)).path
    renamed = publish(store, LogId(1, 4)).path
    link = renamed.with_name(f"snapshot-{1:020}-{5:020}.dsnap")
    other = renamed.rename(renamed.with_name(f"snapshot-{1:020}-{9:020}.dsnap"))
    link.symlink_to(other)
    os.truncate(cut, cut.stat().st_size - 1)
    flip(flipped, 100)

    assert ids(store) == [(1, 1)]
    assert [cut, flipped, link, other] == store.damaged()


def test_a_damaged_body_is_found_by_extracting(store: SnapshotStore) -> None:
    published = publish(store, LogId(1, 1))
    flip(published.path, published.size_bytes - 1)
    before = set(store.directory.iterdir())

    with pytest.raises(SnapshotCorruptionError), store.extract(published):
        pytest.fail("extracted")

    assert before == set(store.directory.iterdir())


def test_extracting_what_was_removed_is_damage(store: SnapshotStore) -> None:
    published = publish(store, LogId(1, 1))
    published.path.unlink()

    with pytest.raises(SnapshotCorruptionError, match="missing"), store.extract(published):
        pytest.fail("extracted")


def test_a_snapshot_of_the_same_id_is_replaced(store: SnapshotStore) -> None:
    old = publish(store, LogId(1, 1), b"old")
    new = publish(store, LogId(1, 1), b"new")

    assert [new] == store.list()
    assert old.metadata != new.metadata
    with pytest.raises(SnapshotError, match="was replaced"), store.extract(old):
        pytest.fail("extracted")


def test_a_reader_never_sees_half_of_a_replacement(store: SnapshotStore, tmp_path: Path) -> None:
    sources = []
    for number in range(2):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "data").write_bytes(os.urandom((4 << 20) + number))
        sources.append((source, SnapshotMetadata(LogId(1, 1), bytes([number + 1] * 32), "test/1")))
    path = store.publish(*sources[0]).path
    done = threading.Event()
    looks: list[tuple[int, list[Path]]] = []

    def look() -> None:
        while not done.is_set():
            looks.append((len(store.list()), store.damaged()))
            verify_archive(path)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(look)
        for number in range(20):
            store.publish(*sources[number % 2])
        done.set()
        reader.result()

    assert {(1, ())} == {(count, tuple(damaged)) for count, damaged in looks}


def test_open_reaps_what_a_crash_left(store: SnapshotStore, tmp_path: Path) -> None:
    published = publish(store, LogId(1, 1))
    leftover = store.temporary_directory()
    (leftover / "deep").mkdir(parents=True)
    (leftover / "deep" / "file").touch()
    store.temporary_directory().write_bytes(b"half an archive")
    store.temporary_directory().symlink_to(tmp_path)

    store.open()

    assert [published.path] == list(store.directory.iterdir())
    assert tmp_path.exists()


def test_a_temporary_directory_is_new_each_time(store: SnapshotStore) -> None:
    paths = {store.temporary_directory() for _ in range(20)}

    assert len(paths) == 20
    assert not any(path.exists() for path in paths)
    assert {store.directory} == {path.parent for path in paths}


def test_cleanup_keeps_the_newest(store: SnapshotStore) -> None:
    published = [publish(store, LogId(1, index)) for index in range(1, 6)]

    assert [one.path for one in published[:3]] == store.cleanup()
    assert ids(store) == [(1, 4), (1, 5)]
    assert [published[3].path] == store.cleanup(1)
    assert store.cleanup(1) == []


def test_cleanup_never_removes_the_newest_sound_one(store: SnapshotStore) -> None:
    published = [publish(store, LogId(1, index)) for index in range(1, 6)]
    flip(published[4].path, published[4].size_bytes - 1)
    flip(published[3].path, 10)
    damaged = [one.path.read_bytes() for one in published[3:]]

    assert [one.path for one in published[:2]] == store.cleanup(1)

    with store.extract(published[2]) as directory:
        verify_snapshot(directory, published[2].metadata, formats=[PORTABLE_FORMAT])
    assert damaged == [one.path.read_bytes() for one in published[3:]]


def test_cleanup_removes_nothing_when_none_is_sound(store: SnapshotStore) -> None:
    for index in (1, 2, 3):
        published = publish(store, LogId(1, index))
        flip(published.path, published.size_bytes - 1)

    assert store.cleanup(1) == []


@pytest.mark.parametrize("count", [0, -1])
def test_refuses_to_keep_none(store: SnapshotStore, tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SnapshotStore(tmp_path, count)
    with pytest.raises(ValueError, match="at least 1"):
        store.cleanup(count)


def test_adopts_a_sound_archive(store: SnapshotStore, tmp_path: Path) -> None:
    metadata = make_snapshot(tmp_path / "source", LogId(5, 5))
    pack_archive(tmp_path / "source", tmp_path / "archive", metadata)

    adopted = store.adopt(tmp_path / "archive")

    assert [adopted] == store.list()
    assert adopted.metadata == metadata
    assert not (tmp_path / "archive").exists()


def test_adopts_from_another_file_system(store: SnapshotStore, tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    others = [path for path in map(Path, ("/dev/shm", "/tmp", "/var/tmp")) if path.is_dir()]
    elsewhere = next((path for path in others if path.stat().st_dev != device), None)
    if elsewhere is None:
        pytest.skip(f"needs another file system than that of {tmp_path}")
    archive = elsewhere / f"dengine-sm-test-{os.getpid()}"
    metadata = make_snapshot(tmp_path / "source", LogId(5, 5))
    pack_archive(tmp_path / "source", archive, metadata)

    try:
        adopted = store.adopt(archive)

        assert not archive.exists()
    finally:
        archive.unlink(missing_ok=True)
    assert [adopted] == store.list()
    assert [adopted.path] == list(store.directory.iterdir())


def test_refuses_to_adopt_a_damaged_archive(store: SnapshotStore, tmp_path: Path) -> None:
    metadata = make_snapshot(tmp_path / "source", LogId(5, 5))
    archive = tmp_path / "archive"
    pack_archive(tmp_path / "source", archive, metadata)
    flip(archive, archive.stat().st_size - 1)

    with pytest.raises(SnapshotCorruptionError):
        store.adopt(archive)

    assert archive.exists()
    assert list(store.directory.iterdir()) == []


def test_a_failed_publish_leaves_nothing(store: SnapshotStore, tmp_path: Path) -> None:
    metadata = make_snapshot(tmp_path / "source", LogId(1, 1))

    with pytest.raises(StorageError):
        store.publish(tmp_path / "absent", attrs.evolve(metadata, last_included=LogId(1, 2)))

    assert list(store.directory.iterdir()) == []


def test_a_store_that_was_not_opened_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        SnapshotStore(tmp_path / "absent").list()


PUBLISHER = """if True:
    import sys
    from pathlib import Path
    from dengine_sm.model import LogId, SnapshotMetadata
    from dengine_sm.snapshot import SnapshotStore
    store = SnapshotStore(Path(sys.argv[1]))
    source, first = Path(sys.argv[2]), int(sys.argv[3])
    for index in range(first, first + 1000):
        # Every second one replaces the archive before it.
        metadata = SnapshotMetadata(LogId(1, index // 2), bytes([1] * 32), "test/1")
        store.publish(source, metadata)
        print(index // 2, flush=True)
"""


def test_a_killed_publisher_leaves_whole_archives_only(
    store: SnapshotStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(os.urandom(1 << 20))
    rng = random.Random(7)
    acknowledged: set[int] = set()
    leftovers = 0

    for storm in range(15):
        child = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, store.directory, source, str(storm * 1000)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        with child, child.stdout as lines:
            for _ in range(rng.randint(1, 6)):
                acknowledged.add(int(lines.readline()))
            # Spin a random while, so that the kill falls anywhere in a publish.
            for _ in range(rng.randint(0, 200_000)):
                pass
            os.kill(child.pid, signal.SIGKILL)
            acknowledged.update(int(line) for line in lines if line.endswith(b"\n"))

        leftovers += sum(path.name.startswith("tmp-") for path in store.directory.iterdir())
        assert store.damaged() == []
        store.open()

    assert leftovers > 0, "no kill fell into a publish"
    published = {one.metadata.last_included.index: one for one in store.list()}
    assert acknowledged <= published.keys()
    for one in published.values():
        with store.extract(one) as directory:
            assert (source / "data").read_bytes() == (directory / "data").read_bytes()
    assert not any(path.name.startswith("tmp-") for path in store.directory.iterdir())
