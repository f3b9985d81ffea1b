"""What is left after kills and power losses, laid out page by page."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import attrs
import pytest
from dengine_sm_lmdb import LMDBOptions
from dengine_sm_lmdb.store import LMDBStore

from dengine_sm import Durability
from dengine_sm.errors import CorruptionError, StorageError, StorageFormatError
from dengine_sm.kv import WriteBatch

PAGE = 4096
GENERATION = "data-00000001"


@attrs.define
class Worked:
    """A store at work, and what it should hold."""

    store: LMDBStore
    rng: random.Random
    model: dict[bytes, bytes] = attrs.field(factory=dict)

    @property
    def data(self) -> Path:
        return self.store.directory / GENERATION / "data.mdb"

    @property
    def root(self) -> Path:
        return self.store.directory / GENERATION / "ROOT"

    def write(self, count: int = 40) -> None:
        data: dict[bytes, bytes | None] = {}
        for _ in range(count):
            key = b"%04d" % self.rng.randrange(600)
            large = self.rng.random() < 0.05
            value = self.rng.randbytes(9000 if large else self.rng.randrange(200))
            data[key] = value if self.rng.random() < 0.75 else None
        self.store.write(WriteBatch(data))
        for key, new in data.items():
            self.model.pop(key, None) if new is None else self.model.update({key: new})


def working(directory: Path, seed: int, durability: Durability = Durability.ON_FLUSH) -> Worked:
    store = LMDBStore(directory, LMDBOptions(durability, map_size=1 << 28))
    store.open()
    return Worked(store, random.Random(seed))


def state_of(directory: Path) -> dict[bytes, bytes]:
    store = LMDBStore(directory)
    store.open()
    state = dict(store.scan(b"", None))
    assert len(state) == store.count()
    # It must be fit to be written to as well.
    store.write(WriteBatch({b"one more": b"1"}))
    store.close()
    store.open()
    assert state | {b"one more": b"1"} == dict(store.scan(b"", None))
    store.close()
    return state


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_unsynced_pages_leaves_the_state_of_the_last_flush(tmp_path, seed):
    worked = working(tmp_path / "data", seed)
    image = tmp_path / "image"

    for _ in range(6):
        for _ in range(worked.rng.randrange(1, 8)):
            worked.write()
        worked.store.flush()
        synced, flushed = worked.data.read_bytes(), dict(worked.model)
        versions = [synced]
        for _ in range(worked.rng.randrange(1, 12)):
            worked.write()
            versions.append(worked.data.read_bytes())
        shutil.rmtree(image, ignore_errors=True)
        shutil.copytree(worked.store.directory, image)
        (image / GENERATION / "data.mdb").write_bytes(mixed(versions, worked.rng))

        assert flushed == state_of(image)
    worked.store.close()


def mixed(versions: list[bytes], rng: random.Random) -> bytes:
    """Take each page from any version of a file, and its size from any that has the first."""
    size = rng.choice([len(version) for version in versions])
    pages = []
    for at in range(0, size, PAGE):
        # Beyond the end of an older version there are zeros.
        pages.append(rng.choice(versions)[at : at + PAGE].ljust(PAGE, b"\0"))
    return b"".join(pages)[: max(size, len(versions[0]))]


def test_a_kill_leaves_the_state_of_the_last_flush(tmp_path):
    worked = working(tmp_path / "data", 1)
    worked.write()
    worked.store.flush()
    flushed = dict(worked.model)
    worked.write()

    shutil.copytree(worked.store.directory, tmp_path / "image")
    worked.store.close()

    assert flushed == state_of(tmp_path / "image")
    assert worked.model == state_of(worked.store.directory)


TOOL = """
    import sys, lmdb
    env = lmdb.open(sys.argv[1], readonly=True, max_dbs=4)
    env.begin()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("unflushed", [1, 2])
def test_a_tool_that_looks_on_does_not_hinder_the_way_back(tmp_path, unflushed):
    worked = working(tmp_path / "data", 12)
    worked.write()
    worked.store.flush()
    flushed = dict(worked.model)
    for _ in range(unflushed):
        worked.write()
    shutil.copytree(worked.store.directory, tmp_path / "image")
    worked.store.close()
    command = [sys.executable, "-c", textwrap.dedent(TOOL), str(tmp_path / "image" / GENERATION)]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        assert tool.stdout is not None
        assert tool.stdin is not None
        assert tool.stdout.readline() == b"open\n"
        assert flushed == state_of(tmp_path / "image")
        tool.stdin.close()


def test_a_start_makes_the_root_durable_that_it_goes_by(tmp_path, monkeypatch):
    """A process may have been killed just before it synced the entry of a new one."""
    worked = working(tmp_path / "data", 13)
    worked.write()
    worked.store.flush()
    shutil.copytree(worked.store.directory, tmp_path / "image")
    worked.store.close()
    synced: list[Path] = []
    monkeypatch.setattr("dengine_sm_lmdb.generation.sync_directory", synced.append)

    store = LMDBStore(tmp_path / "image")
    store.open()
    store.close()

    assert synced == [tmp_path / "image" / GENERATION]


def test_synced_commits_are_there_after_a_kill(tmp_path):
    worked = working(tmp_path / "data", 2, Durability.PER_APPLY)
    for number in range(12):
        worked.write(20)
        shutil.copytree(worked.store.directory, tmp_path / f"image-{number}")

        assert worked.model == state_of(tmp_path / f"image-{number}")
    worked.store.close()


def test_a_change_of_durability_keeps_the_state(tmp_path):
    for number in range(6):
        durability = (Durability.ON_FLUSH, Durability.PER_APPLY)[number % 2]
        worked = working(tmp_path / "data", number, durability)
        worked.store.write(WriteBatch({b"%d" % number: b"v"}))
        if number % 3:
            worked.store.flush()
            shutil.copytree(tmp_path / "data", tmp_path / "image")
            worked.store.close()
            shutil.rmtree(tmp_path / "data")
            (tmp_path / "image").rename(tmp_path / "data")
        else:
            worked.store.close()

    store = LMDBStore(tmp_path / "data")
    store.open()
    assert [b"%d" % number for number in range(6)] == [key for key, _ in store.scan(b"", None)]
    store.close()


def test_a_failed_sync_is_not_tried_again_until_a_restart_which_finds_the_last_one(
    tmp_path, monkeypatch
):
    worked = working(tmp_path / "data", 3)
    worked.write()
    worked.store.flush()
    flushed = dict(worked.model)
    worked.write()

    def no_space(*_: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("dengine_sm_lmdb.generation.write_checked_file", no_space)
        with pytest.raises(StorageError, match="no space left"):
            worked.store.flush()
    with pytest.raises(StorageError, match="closed and opened again"):
        worked.store.flush()
    with pytest.raises(StorageError, match="closed and opened again"):
        worked.store.write(WriteBatch({b"a": b"1"}))
    assert worked.model == dict(worked.store.scan(b"", None))
    worked.store.close()

    assert flushed == state_of(tmp_path / "data")


def test_an_installed_state_heals_a_store_whose_sync_failed(tmp_path, monkeypatch):
    worked = working(tmp_path / "data", 4)
    worked.write()
    with monkeypatch.context() as patch:
        patch.setattr(
            "dengine_sm_lmdb.generation.Generation._sync",
            lambda *_: (_ for _ in ()).throw(OSError("bad disk")),
        )
        with pytest.raises(StorageError, match="bad disk"):
            worked.store.flush()

    worked.store.replace_all([WriteBatch({b"new": b"1"})])

    worked.store.write(WriteBatch({b"newer": b"2"}))
    worked.store.close()
    assert state_of(tmp_path / "data") == {b"new": b"1", b"newer": b"2"}


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("cut", [0, 1, PAGE, PAGE + 1, 2 * PAGE, -1, -PAGE])
def test_a_file_that_was_cut_is_refused_and_left_alone(tmp_path, clean, cut):
    worked = working(tmp_path / "data", 5)
    worked.write(300)
    worked.store.flush()
    image = tmp_path / "image"
    if clean:
        worked.store.close()
    shutil.copytree(worked.store.directory, image)
    worked.store.close()
    data = image / GENERATION / "data.mdb"
    os.truncate(data, cut if cut >= 0 else data.stat().st_size + cut)

    with pytest.raises(CorruptionError) as raised:
        LMDBStore(image).open()

    assert raised.value.path == data


def test_a_cut_last_commit_is_refused_at_the_start_where_commits_are_synced(tmp_path):
    worked = working(tmp_path / "data", 6, Durability.PER_APPLY)
    worked.store.write(WriteBatch({b"%04d" % number: bytes(300) for number in range(500)}))
    for _ in range(6):
        # Roots go back to pages near the begin of the file; at its end are leaves.
        worked.store.write(WriteBatch({b"0000": b""}))
    expected = dict(worked.store.scan(b"", None))
    shutil.copytree(worked.store.directory, tmp_path / "image")
    worked.store.close()
    data = tmp_path / "image" / GENERATION / "data.mdb"
    content = data.read_bytes()
    refused = 0

    for pages in range(2, len(content) // PAGE):
        data.write_bytes(content[: pages * PAGE])
        cut = LMDBStore(tmp_path / "image")
        try:
            cut.open()
        except CorruptionError:
            refused += 1
        else:
            assert expected == dict(cut.scan(b"", None))
            cut.close()

    assert refused > 20


def test_what_a_root_leads_to_is_synced_before_the_root(tmp_path, monkeypatch):
    from dengine_sm_lmdb import generation as module

    calls: list[str] = []

    class Recording:
        def __init__(self, env):
            self.env = env

        def __getattr__(self, name):
            return getattr(self.env, name)

        def sync(self, force):
            calls.append("sync")
            self.env.sync(force)

    def write_root(*arguments):
        calls.append("root")
        write_checked_file(*arguments)

    write_checked_file = module.write_checked_file
    monkeypatch.setattr(module, "write_checked_file", write_root)
    worked = working(tmp_path / "data", 11)
    generation = worked.store._open_generation()
    generation.env = Recording(generation.env)  # type: ignore[assignment]
    calls.clear()

    worked.write()
    assert calls == ["root"]
    worked.store.flush()
    assert calls == ["root", "sync", "root"]
    worked.store.flush()
    assert calls == ["root", "sync", "root"]
    worked.write()
    worked.store.close()
    assert calls == ["root", "sync", "root", "sync", "root"]


@pytest.mark.parametrize("name", ["data.mdb", "ROOT"])
def test_a_missing_file_is_no_empty_state(tmp_path, name):
    worked = working(tmp_path / "data", 7)
    worked.write()
    worked.store.close()
    (tmp_path / "data" / GENERATION / name).unlink()

    with pytest.raises(CorruptionError, match="is missing or empty"):
        worked.store.open()


def test_a_missing_lock_file_is_made_again(tmp_path):
    worked = working(tmp_path / "data", 8)
    worked.write()
    worked.store.close()
    (tmp_path / "data" / GENERATION / "lock.mdb").unlink()

    assert worked.model == state_of(tmp_path / "data")


def test_a_newer_format_is_refused_and_left_alone(tmp_path):
    from dengine_sm.files import DataDirectory

    newer = DataDirectory(tmp_path / "data", format="dengine-sm-lmdb", version=2)
    newer.open()
    newer.close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}

    with pytest.raises(StorageFormatError):
        LMDBStore(tmp_path / "data").open()

    assert before == {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}


def shortened(directory: Path, durability: Durability) -> Worked:
    """Commit puts and deletes by turns until LMDB leaves the end of its file unwritten.

    It does so with a last page that a commit took and gave back.
    """
    for seed in range(100):
        worked = working(directory / str(seed), seed, durability)
        generation = worked.store._open_generation()
        for _ in range(12):
            generation.before_commit()
            with generation.begin(generation.data.short, write=True) as txn:
                for _ in range(worked.rng.randrange(1, 400)):
                    key = b"%05d" % worked.rng.randrange(800)
                    if worked.rng.random() < 0.5:
                        txn.delete(key)
                    else:
                        txn.put(key, bytes(worked.rng.choice((10, 300, 900, 5000))))
            if worked.data.stat().st_size < generation._needed_bytes():
                return worked
            worked.store.flush()
        worked.store.close()
    raise AssertionError("LMDB wrote all pages every time")


def test_a_file_short_of_unused_pages_is_filled_up_by_a_flush(tmp_path):
    worked = shortened(tmp_path, Durability.ON_FLUSH)

    worked.store.flush()

    shutil.copytree(worked.store.directory, tmp_path / "image")
    assert state_of(tmp_path / "image") == dict(worked.store.scan(b"", None))
    worked.store.close()


def test_a_file_short_of_unused_pages_is_filled_up_after_a_kill(tmp_path):
    worked = shortened(tmp_path, Durability.PER_APPLY)

    shutil.copytree(worked.store.directory, tmp_path / "image")

    assert state_of(tmp_path / "image") == dict(worked.store.scan(b"", None))
    worked.store.close()
