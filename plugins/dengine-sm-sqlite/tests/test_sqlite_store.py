"""The store: counts, views, threads, failures, the write-ahead log."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dengine_sm_sqlite import checkpoints
from dengine_sm_sqlite.store import SQLiteStore

from dengine_sm.errors import NotRunningError, StorageError, StorageLockedError
from dengine_sm.files import DirectoryLock, OsFileSystem
from dengine_sm.kv import WriteBatch

KIB = 1 << 10


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(directory, checkpoint_bytes=64 * KIB)
    store.open()
    yield store
    store.close()


def rows(first: int, count: int, size: int = 100) -> dict[bytes, bytes | None]:
    return {b"%06d" % number: bytes(size) for number in range(first, first + count)}


def reopened(directory: Path) -> dict[bytes, bytes]:
    store = SQLiteStore(directory)
    store.open()
    try:
        return dict(store.scan(b"", None))
    finally:
        store.close()


def test_counts_and_keeps_what_a_dict_does(store):
    model: dict[bytes, bytes] = {}
    rng = random.Random(3)
    for _ in range(60):
        keys = [b"%d" % rng.randrange(700) for _ in range(rng.choice((1, 2, 5, 20, 90, 400)))]
        batch = {key: rng.choice((None, b"", b"x", bytes(6000))) for key in keys}
        store.write(WriteBatch(dict(batch), dict(batch)))
        for key, value in batch.items():
            model.pop(key, None)
            if value is not None:
                model[key] = value

        assert len(model) == store.count()
    assert sorted(model.items()) == list(store.scan(b"", None))
    assert sorted(model.items()) == list(store.scan_internal(b"", b"\xff"))
    keys = [b"%d" % number for number in range(700)]
    assert [model.get(key) for key in keys] == store.get_multi(keys)
    store.replace_all([WriteBatch(rows(0, 300)), WriteBatch(rows(200, 300))])
    assert store.count() == 500


@pytest.mark.parametrize("key", [b"", b"\0", b"a\0b", b"\xff" * 300])
@pytest.mark.parametrize("value", [b"", b"\0"])
def test_keeps_keys_and_values_of_any_bytes(store, directory, key, value):
    store.write(WriteBatch({key: value}, {key: value}))

    assert value == store.get(key) == store.get_internal(key)
    assert [value] == store.get_multi([key])
    assert [(key, value)] == list(store.scan(key, None))
    store.close()
    assert {key: value} == reopened(directory)


def test_scans_pages_of_large_values_without_holding_many(store, monkeypatch):
    big = {b"%03d" % number: bytes(1 << 20) for number in range(40)}
    store.write(WriteBatch({**rows(0, 2000, 1), **big}))
    expected = sorted([*rows(0, 2000, 1), *big])

    assert expected == [key for key, _ in store.scan(b"", None)]
    assert expected[5:9] == [key for key, _ in store.scan(expected[5], expected[9])]
    page, is_last = store._reader._page(
        "SELECT key, value FROM data WHERE key >= ? ORDER BY key LIMIT ?", b"", None, 9999
    )
    assert sum(len(value) for _, value in page) < 3 << 20
    assert not is_last


def test_a_view_shows_the_state_that_it_pinned(store):
    store.write(WriteBatch({b"a": b"1"}))
    view = store.view()
    store.write(WriteBatch({b"a": b"2", b"b": b"2"}))
    store.replace_all([WriteBatch({b"c": b"3"})])

    assert (view.get(b"a"), view.count()) == (b"1", 1)
    assert list(view.scan(b"", None)) == [(b"a", b"1")]
    assert view.get_multi([b"a", b"b"]) == [b"1", None]
    view.close()
    with pytest.raises(NotRunningError, match="the view is closed"):
        view.get(b"a")
    assert dict(store.scan(b"", None)) == {b"c": b"3"}


def test_a_view_that_is_left_open_ends_with_the_store(store):
    store.write(WriteBatch(rows(0, 100)))
    view = store.view()
    scan = view.scan(b"", None)
    next(scan)
    store.close()

    for read in (view.count, lambda: view.get(b""), lambda: list(scan), store.count, store.view):
        with pytest.raises(NotRunningError):
            read()
    view.close()


def test_idle_connections_are_few(store):
    views = [store.view() for _ in range(20)]
    for view in views:
        view.close()

    assert store._connections._made <= 5


def test_reads_race_a_close(store):
    store.write(WriteBatch(rows(0, 500)))
    wrong: list[object] = []
    begun = threading.Barrier(5)

    def read() -> None:
        begun.wait()
        try:
            while True:
                view = store.view()
                if store.get(b"000007") != bytes(100) or len(list(view.scan(b"", None))) != 500:
                    wrong.append("a wrong answer")
                view.close()
        except NotRunningError:
            pass
        except BaseException as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    store.close()
    for thread in threads:
        thread.join()

    assert not wrong


def test_a_replaced_state_gives_its_space_back(store, directory):
    store.write(WriteBatch(rows(0, 20_000)))
    store.close()
    full = (directory / "state.sqlite").stat().st_size
    store.open()

    store.replace_all([WriteBatch({b"a": b"1"})])

    assert (directory / "state.sqlite").stat().st_size < full // 20
    assert (directory / "state.sqlite-wal").stat().st_size == 0


def test_deleted_keys_give_their_space_back(store, directory):
    store.write(WriteBatch(rows(0, 20_000)))
    store.close()
    full = (directory / "state.sqlite").stat().st_size
    store.open()

    store.write(WriteBatch(dict.fromkeys(rows(0, 19_000))))
    store.close()

    assert (directory / "state.sqlite").stat().st_size < full // 10


def test_a_failing_replacement_leaves_the_old_state(store, directory):
    store.write(WriteBatch({b"a": b"1"}))

    def batches() -> Iterator[WriteBatch]:
        yield WriteBatch(rows(0, 5000))
        raise StorageError("torn off")

    with pytest.raises(StorageError, match="torn off"):
        store.replace_all(batches())

    assert dict(store.scan(b"", None)) == {b"a": b"1"}
    store.write(WriteBatch({b"b": b"2"}))
    assert store.count() == 2
    store.close()
    assert reopened(directory) == {b"a": b"1", b"b": b"2"}


def test_the_log_stays_short_beside_writes(store, directory):
    sizes = []
    for number in range(300):
        store.write(WriteBatch(rows(number * 50 % 5000, 50)))
        sizes.append((directory / "state.sqlite-wal").stat().st_size)

    assert max(sizes) < 6 * 64 * KIB


def test_a_log_that_is_pinned_is_started_over_once_it_is_not(store, directory):
    store.write(WriteBatch(rows(0, 10)))
    view = store.view()
    for number in range(200):
        store.write(WriteBatch(rows(number * 50 % 2000, 50)))
    pinned = (directory / "state.sqlite-wal").stat().st_size
    view.close()
    for number in range(200):
        store.write(WriteBatch(rows(number * 50 % 2000, 50)))

    assert pinned > 8 * 64 * KIB
    assert (directory / "state.sqlite-wal").stat().st_size < 6 * 64 * KIB


class FailingSyncs(OsFileSystem):
    def __init__(self) -> None:
        self.fails = False

    def fdatasync(self, fd: int) -> None:
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")
        super().fdatasync(fd)


def test_a_failed_flush_is_not_tried_again(directory):
    fs = FailingSyncs()
    store = SQLiteStore(directory, fs=fs)
    store.open()
    store.write(WriteBatch({b"a": b"1"}))
    fs.fails = True
    with pytest.raises(StorageError, match="cannot sync the file: Input/output error"):
        store.flush()
    fs.fails = False

    for call in (store.flush, lambda: store.write(WriteBatch({b"b": b"2"}))):
        with pytest.raises(StorageError, match="closed and opened again"):
            call()
    assert store.get(b"a") == b"1"
    store.close()
    assert reopened(directory) == {b"a": b"1"}


def test_a_checkpoint_whose_sync_fails_breaks_the_store(store, monkeypatch):
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "connect", failing)
    store.write(WriteBatch(rows(0, 2000)))
    store._checkpoints.join()

    with pytest.raises(StorageError, match="closed and opened again"):
        store.flush()


def test_a_forked_child_leaves_the_parent_alone(store, directory):
    store.write(WriteBatch({b"a": b"1"}))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_drop_and_collect, args=(store,))
    child.start()
    child.join()
    assert child.exitcode == 0

    with pytest.raises(StorageLockedError):
        DirectoryLock(directory).acquire()
    store.write(WriteBatch({b"b": b"2"}))
    assert (directory / "state.sqlite-wal").stat().st_size > 0
    copy = shutil.copytree(directory, directory.with_name("copy"))
    assert reopened(copy) == {b"a": b"1", b"b": b"2"}


def _drop_and_collect(store: SQLiteStore) -> None:
    store.__del__()
    for name in list(vars(store)):
        delattr(store, name)
    gc.collect()


def test_a_store_that_is_dropped_lets_go_of_its_directory(directory):
    store = SQLiteStore(directory)
    store.open()
    store.write(WriteBatch({b"a": b"1"}))
    view = store.view()
    open_before = set(os.listdir("/proc/self/fd"))
    del store, view
    gc.collect()

    assert reopened(directory) == {b"a": b"1"}
    assert len(set(os.listdir("/proc/self/fd"))) < len(open_before)
