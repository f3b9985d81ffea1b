"""The store over each binding: exact, whole, and safe to close at any moment."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dengine_sm_rocksdb import Binding

from dengine_sm import NotRunningError, StorageError
from dengine_sm.files import OsFileSystem, replaced_file_system
from dengine_sm.kv import WriteBatch


def batch(*keys: int, value: bytes = b"v", **internal: bytes) -> WriteBatch:
    rows = {name.encode(): row for name, row in internal.items()}
    return WriteBatch({b"k%05d" % key: value for key in keys}, rows)


def deletion(*keys: int) -> WriteBatch:
    return WriteBatch({b"k%05d" % key: None for key in keys})


def test_counts_exactly_through_everything(make_store: Any, binding: Binding) -> None:
    store = make_store(binding=binding)
    store.open()
    assert store.count() == 0

    store.write(batch(1, 2, 3))
    store.write(batch(3, 4))
    assert store.count() == 4
    store.write(deletion(4, 5))
    store.write(WriteBatch(internal={b"row": b"x"}))
    assert store.count() == 3
    store.close()
    store.open()
    assert store.count() == 3
    store.replace_all([batch(5, 6), batch(1, 5), deletion(6, 9), batch(7)])

    assert store.count() == 3
    assert [key for key, _ in store.scan(b"", None)] == [b"k00001", b"k00005", b"k00007"]
    store.replace_all([WriteBatch()])
    assert store.count() == 0


def test_scans_of_any_range_are_right(make_store: Any, binding: Binding) -> None:
    rng = random.Random(5)
    store = make_store(binding=binding)
    store.open()
    model = {
        bytes(rng.choices(range(256), k=rng.randint(0, 3))): rng.randbytes(9) for _ in range(3000)
    }
    store.write(WriteBatch(dict(model), {b"a": b"1", b"b": b"2", b"c": b"3"}))

    for _ in range(40):
        start, stop = sorted(rng.choices(list(model), k=2))
        stop = rng.choice((stop, None))
        expected = sorted((k, v) for k, v in model.items() if k >= start and (not stop or k < stop))
        assert expected == list(store.scan(start, stop))
    assert list(store.scan(b"b", b"a")) == []
    assert list(store.scan_internal(b"b", b"c")) == [(b"b", b"2")]


def test_large_values_are_paged_by_their_size(make_store: Any) -> None:
    store = make_store()
    store.open()
    for key in range(40):
        store.write(batch(key, value=bytes(1 << 20)))
    sizes = []
    cursor = store.view()
    page = cursor._reader._data.page

    def watched(start: bytes, stop: bytes | None, size: int) -> Any:
        sizes.append(size)
        return page(start, stop, size)

    cursor._reader._data.page = watched

    assert len(list(cursor.scan(b"", None))) == 40
    assert max(sizes) <= 16
    assert sizes[1:] == [1] * len(sizes[1:])


def test_a_view_stays_while_everything_is_replaced(make_store: Any, binding: Binding) -> None:
    store = make_store(binding=binding)
    store.open()
    store.write(batch(1, 2, row=b"old"))
    view = store.view()
    old = store._engine.directory

    store.write(batch(2, 3, value=b"new", row=b"new"))
    store.replace_all([batch(9)])

    assert list(view.scan(b"", None)) == [(b"k00001", b"v"), (b"k00002", b"v")]
    assert view.count() == 2
    assert view.get(b"k00003") is None
    assert view.get_internal(b"row") == b"old"
    assert view.get_multi([b"k00002", b"k00009"]) == [b"v", None]
    assert store.get(b"k00009") == b"v"
    assert old.exists()
    view.close()
    view.close()
    assert not old.exists()


def test_what_is_left_open_at_a_close_says_so(make_store: Any, binding: Binding) -> None:
    store = make_store(binding=binding)
    store.open()
    store.write(batch(*range(200)))
    retired = store.view()
    store.replace_all([batch(*range(200))])
    view, scan = store.view(), store.scan(b"", None)
    next(scan)
    view_scan = view.scan(b"", None)
    next(view_scan)

    store.close()

    for call in (
        lambda: view.get(b"k00001"),
        lambda: view.count(),
        lambda: retired.get_internal(b"row"),
        lambda: list(scan),
        lambda: list(view_scan),
        lambda: store.get(b"k00001"),
        lambda: store.view(),
        lambda: store.write(batch(1)),
        lambda: store.flush(),
        lambda: store.replace_all([]),
    ):
        with pytest.raises(NotRunningError):
            call()
    store.open()
    assert store.count() == 200
    view.close()


def test_reads_race_a_close(make_store: Any, binding: Binding) -> None:
    store = make_store(binding=binding)
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                found = [store.get(b"k00001"), store.count(), len(list(store.scan(b"", None)))]
                view = store.view()
                found.append(len(list(view.scan(b"", None))))
                view.close()
                if found != [b"v", 50, 50, 50]:
                    wrong.append(found)
            except NotRunningError:
                pass
            except BaseException as exc:
                wrong.append(exc)

    store.open()
    store.write(batch(*range(50)))
    threads = [threading.Thread(target=read) for _ in range(3)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # so that the readers are met in the midst of things
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            store.close()
            store.open()
            store.replace_all([batch(*range(50))])
    finally:
        sys.setswitchinterval(interval_s)
        stop.set()
        for thread in threads:
            thread.join()

    assert wrong == []


class Slowly:
    """Lets one thread wait before it does something; `begun` tells when it is there."""

    def __init__(self) -> None:
        self.begun, self._goes_on = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        self._goes_on.wait(30)

    def go_on_soon(self) -> None:
        threading.Timer(0.2, self._goes_on.set).start()


@contextmanager
def elsewhere(function: Callable[[], object]) -> Iterator[None]:
    """Run a function in another thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(function)
        yield
        running.result()


def test_a_close_waits_for_who_ends_a_scan(make_store: Any, binding: Binding) -> None:
    store, slowly = make_store(binding=binding), Slowly()

    class Scans(set[Any]):
        def discard(self, scan: Any) -> None:
            super().discard(scan)
            slowly.wait()

    store.open()
    store.write(batch(*range(5)))
    store._engine._scans = Scans()
    with elsewhere(lambda: list(store.scan(b"", None))):
        slowly.begun.wait(30)
        slowly.go_on_soon()
        store.close()
        store.open()

    assert store.count() == 5


def test_a_close_waits_for_who_lets_a_view_go(make_store: Any, binding: Binding) -> None:
    store, slowly = make_store(binding=binding), Slowly()
    store.open()
    store.write(batch(*range(5)))
    view = store.view()
    let_go = view._pinned.close

    def close() -> None:
        slowly.wait()
        let_go()

    view._pinned.close = close
    with elsewhere(view.close):
        slowly.begun.wait(30)
        slowly.go_on_soon()
        store.close()
        store.open()

    assert store.count() == 5


class Failing:
    """A binding whose databases fail on demand, after the native call."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.fails: set[str] = set()

    def __call__(self, opening: Any) -> Any:
        database = self.binding(opening)
        for name in ("write", "sync", "finish"):
            setattr(database, name, self.failing(name, getattr(database, name)))
        return database

    def failing(self, name: str, call: Any) -> Any:
        def attempt(*args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            if name in self.fails:
                raise OSError(5, "IO error: it is said to have failed")

        return attempt


def failing_store(make_store: Any, **options: Any) -> tuple[Any, Failing]:
    made: list[Failing] = []

    def wrap(binding: Any) -> Failing:
        made.append(Failing(binding))
        return made[0]

    return make_store(wrap=wrap, **options), made[0]


def test_a_failed_sync_is_not_tried_again(make_store: Any) -> None:
    store, failing = failing_store(make_store)
    store.open()
    store.write(batch(1))

    failing.fails.add("sync")
    with pytest.raises(StorageError, match="what is durable is unknown"):
        store.flush()
    failing.fails.clear()
    with pytest.raises(StorageError, match="nothing was synced"):
        store.flush()
    store.close()
    store.open()

    store.write(batch(2))
    store.flush()
    assert store.count() == 2


def test_a_replacement_that_fails_leaves_the_old_state(make_store: Any, tmp_path: Path) -> None:
    store, failing = failing_store(make_store)
    store.open()
    store.write(batch(1))

    def broken() -> Any:
        yield batch(5)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        store.replace_all(broken())
    failing.fails.add("finish")
    with pytest.raises(StorageError, match="what is in force is unchanged"):
        store.replace_all([batch(6)])
    failing.fails.clear()

    assert [key for key, _ in store.scan(b"", None)] == [b"k00001"]
    assert len(list((tmp_path / "store").glob("data-*"))) == 1
    store.write(batch(2))
    store.replace_all([batch(7)])
    assert store.count() == 1
    assert len(list((tmp_path / "store").glob("data-*"))) == 1


class StubbornFileSystem(OsFileSystem):
    """Refuses to put a new FORMAT in place: not at all, or not durably."""

    refuses = ""

    def replace(self, source: Path, target: Path) -> None:
        if self.refuses == "rename":
            raise OSError(28, "No space left on device")
        super().replace(source, target)

    def sync_directory(self, path: Path) -> None:
        if self.refuses == "sync" and not path.name.startswith("data-"):
            raise OSError(5, "Input/output error")
        super().sync_directory(path)


@pytest.mark.parametrize("refuses", ["rename", "sync"])
def test_a_replacement_that_is_not_put_in_force_leaves_the_old_state(
    make_store: Any, tmp_path: Path, refuses: str
) -> None:
    with replaced_file_system(StubbornFileSystem()) as fs:
        store = make_store()
        store.open()
        store.write(batch(1))
        fs.refuses = refuses
        with pytest.raises(StorageError):
            store.replace_all([batch(2)])
        fs.refuses = ""

        assert [key for key, _ in store.scan(b"", None)] == [b"k00001"]
        assert len(list((tmp_path / "store").glob("data-*"))) == 1
        store.write(batch(3))
        store.close()
        store.open()
        assert [key for key, _ in store.scan(b"", None)] == [b"k00001", b"k00003"]


def test_an_unknown_switch_stops_the_store_until_it_is_opened_again(make_store: Any) -> None:
    class Forgetful(StubbornFileSystem):
        def replace(self, source: Path, target: Path) -> None:
            super().replace(source, target)
            self.refuses = "rename"
            raise OSError(5, "Input/output error")

    with replaced_file_system(StubbornFileSystem()):
        store = make_store()
        store.open()
        store.write(batch(1))
    store._files._fs = Forgetful()

    with pytest.raises(StorageError, match="which generation is in force is unknown"):
        store.replace_all([batch(2)])
    with pytest.raises(StorageError, match="expected to be closed and opened again"):
        store.write(batch(3))
    assert [key for key, _ in store.scan(b"", None)] == [b"k00001"]
    store.close()
    store._files._fs = OsFileSystem()
    store.open()

    assert [key for key, _ in store.scan(b"", None)] in ([b"k00001"], [b"k00002"])
