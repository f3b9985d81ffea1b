"""What is particular to a store over LMDB: the map, views, threads, options."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import pytest
from dengine_sm_lmdb import LMDBOptions
from dengine_sm_lmdb.store import LMDBStore

from dengine_sm import Durability
from dengine_sm.errors import NotRunningError, StorageError
from dengine_sm.kv import WriteBatch

SMALL_MAP = 1 << 20


def numbered(first: int, count: int, value: bytes = b"v" * 200) -> dict[bytes, bytes | None]:
    return {b"%08d" % number: value for number in range(first, first + count)}


def run_child(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def store(tmp_path):
    store = LMDBStore(tmp_path / "data", LMDBOptions(map_size=SMALL_MAP))
    store.open()
    yield store
    store.close()


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
def test_a_full_map_grows_and_loses_no_batch(tmp_path, durability):
    store = LMDBStore(tmp_path / "data", LMDBOptions(durability, map_size=SMALL_MAP))
    store.open()
    for batch in range(20):
        store.write(WriteBatch(numbered(batch * 1000, 1000), {b"batch": b"%d" % batch}))
        assert (batch + 1) * 1000 == store.count()
        assert b"%d" % batch == store.get_internal(b"batch")
    store.close()

    store.open()
    assert sorted(numbered(0, 20_000).items()) == list(store.scan(b"", None))
    store.close()


def test_a_batch_larger_than_the_map_is_written_whole(store):
    store.write(WriteBatch({b"large": bytes(30 << 20)}))

    assert len(store.get(b"large") or b"") == 30 << 20


def test_a_pinned_view_stays_whole_while_the_map_grows(store):
    store.write(WriteBatch(numbered(0, 1000)))
    views = []

    for batch in range(1, 15):
        views.append((batch * 1000, store.view()))
        store.write(WriteBatch(numbered(batch * 1000, 1000)))

    for count, view in views:
        assert count == view.count()
        assert sorted(numbered(0, count).items()) == list(view.scan(b"", None))
        view.close()
    assert store.count() == 15_000


def test_a_pinned_view_outlives_a_replacement_and_then_gives_the_space_back(store):
    store.write(WriteBatch(numbered(0, 3000)))
    view = store.view()

    store.replace_all([WriteBatch({b"new": b"1"})])

    assert list(store.scan(b"", None)) == [(b"new", b"1")]
    assert view.count() == 3000
    assert sorted(numbered(0, 3000).items()) == list(view.scan(b"", None))
    assert deleted_files_open()
    view.close()
    assert not deleted_files_open()


def deleted_files_open() -> list[str]:
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [link for link in links if "data.mdb" in link and link.endswith("(deleted)")]


def test_iterators_begun_before_a_replacement_go_on_in_the_new_state(store):
    store.write(WriteBatch(numbered(0, 5000)))
    scan = store.scan(b"", None)
    next(scan)

    store.replace_all([WriteBatch({b"9": b"new"})])

    assert list(scan)[-1] == (b"9", b"new")


def test_views_and_iterators_left_open_at_a_close_answer_that_it_is_closed(store):
    store.write(WriteBatch(numbered(0, 5000)))
    older = store.view()
    store.replace_all([WriteBatch(numbered(0, 5000))])
    view = store.view()
    scans = [store.scan(b"", None), view.scan(b"", None), older.scan(b"", None)]
    for scan in scans:
        next(scan)

    store.close()

    for scan in scans:
        with pytest.raises(NotRunningError):
            list(scan)
    for reader in (store, view, older):
        for read, *arguments in [(reader.count,), (reader.get, b"1"), (reader.get, b"")]:
            with pytest.raises(NotRunningError):
                read(*arguments)
        reader.close()


def test_forgotten_views_hold_nothing_back(store, tmp_path):
    for _ in range(5000):
        store.view()

    for batch in range(10):
        store.write(WriteBatch(numbered(batch * 1000, 1000)))

    # With a view to keep, growing would have gone on in a copy.
    assert (tmp_path / "data" / "data-00000001").exists()


def test_too_many_views_are_refused_by_name_of_the_option(tmp_path):
    store = LMDBStore(tmp_path / "data", LMDBOptions(max_readers=8))
    store.open()
    views = []

    with pytest.raises(StorageError, match="max_readers"):
        views += [store.view() for _ in range(500)]

    for view in views:
        view.close()
    store.close()


def test_replacing_by_unsorted_repeated_and_deleted_keys_is_the_sum_of_the_batches(store):
    rng = random.Random(1)
    model: dict[bytes, bytes] = {}
    batches = []
    for number in range(40):
        data: dict[bytes, bytes | None] = {}
        for _ in range(100):
            key, value = b"%03d" % rng.randrange(700), b"%d" % number
            data[key] = value if rng.random() < 0.8 else None
        batches.append(WriteBatch(data))
        for key, new in data.items():
            model.pop(key, None) if new is None else model.update({key: new})

    store.replace_all(batches)

    assert sorted(model.items()) == list(store.scan(b"", None))
    assert len(model) == store.count()


def test_a_failed_replacement_leaves_the_old_state_and_no_files(store, tmp_path):
    store.write(WriteBatch(numbered(0, 10)))
    before = {path.name for path in (tmp_path / "data").iterdir()}

    def batches():
        yield WriteBatch({b"new": b"1"})
        raise RuntimeError("the source is damaged")

    with pytest.raises(RuntimeError, match="the source is damaged"):
        store.replace_all(batches())

    assert before == {path.name for path in (tmp_path / "data").iterdir()}
    assert sorted(numbered(0, 10).items()) == list(store.scan(b"", None))


def test_when_lmdb_gives_up_the_state_before_can_be_read_and_an_install_heals(store, tmp_path):
    store.write(WriteBatch(numbered(0, 300)))
    generation = store._open_generation()
    begin = generation.begin

    def no_more(*arguments, **options):
        raise lmdb.PanicError("mdb_txn_begin", -30795)

    def fails(*arguments, write=False, **options):
        if not write:
            return begin(*arguments, **options)
        generation.begin = no_more
        raise lmdb.DiskError("mdb_txn_commit", 28)

    generation.begin = fails
    store._live = (no_more, None)

    with pytest.raises(StorageError, match="mdb_txn_commit"):
        store.write(WriteBatch(numbered(100, 300, b"new")))
    with pytest.raises(StorageError, match="closed and opened again"):
        store.write(WriteBatch({b"a": b"1"}))
    views = [store.view(), store.view()]
    for reader in (store, *views):
        assert sorted(numbered(0, 300).items()) == list(reader.scan(b"", None))
        assert reader.count() == 300
        assert reader.get(b"00000000") == b"v" * 200
    views[0].close()
    with pytest.raises(NotRunningError):
        views[0].count()

    store.replace_all([WriteBatch({b"new": b"1"})])

    assert views[1].count() == 300
    store.write(WriteBatch({b"newer": b"2"}))
    assert list(store.scan(b"", None)) == [(b"new", b"1"), (b"newer", b"2")]
    assert deleted_files_open()
    views[1].close()
    assert not deleted_files_open()


def test_many_environments_of_the_default_map_fit_into_one_process(tmp_path):
    stores = [LMDBStore(tmp_path / str(number)) for number in range(60)]
    for store in stores:
        store.open()
        store.write(WriteBatch({b"a": b"1"}))
    for store in stores:
        store.close()


LIMITED = """
    import resource, sys
    from pathlib import Path
    from dengine_sm.errors import StorageError
    from dengine_sm.kv import WriteBatch
    from dengine_sm_lmdb.store import LMDBStore

    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
    store = LMDBStore(Path(sys.argv[1]))
    store.open()
    done = 0
    try:
        while done < 1000:
            store.write(WriteBatch({b"%08d" % (1000 * done + n): bytes(1000) for n in range(1000)}))
            done += 1
    except StorageError as exc:
        assert "address space" in str(exc), exc
    assert 100 < done < 1000, done
    assert store.count() == 1000 * done
    store.close()
    store.open()
    assert store.count() == 1000 * done
    store.close()
    """


def test_in_a_limited_address_space_the_map_is_as_large_as_fits(tmp_path):
    run_child(LIMITED, tmp_path / "data")


RACE = """
    import random, sys, threading, time
    from pathlib import Path
    from dengine_sm.errors import NotRunningError
    from dengine_sm.kv import WriteBatch
    from dengine_sm_lmdb import LMDBOptions
    from dengine_sm_lmdb.store import LMDBStore

    sys.setswitchinterval(1e-5)
    store = LMDBStore(Path(sys.argv[1]), LMDBOptions(map_size=1 << 20))
    wrong, ended = [], threading.Event()
    keys = [b"%06d" % n for n in range(300)]

    def read(seed):
        rng = random.Random(seed)
        while not ended.is_set():
            try:
                match rng.randrange(6):
                    case 0:
                        assert len(set(store.get_multi(keys))) == 1
                    case 1:
                        assert len({value for _, value in store.scan(b"", b"0001")}) <= 50
                    case 2:
                        view = store.view()
                        seen = {value for _, value in view.scan(b"", None)}
                        assert len(seen) <= 1 and view.count() in (0, len(keys))
                        if rng.random() < 0.5:
                            view.close()
                    case 3:
                        assert store.count() in (0, len(keys))
                    case _:
                        store.get(rng.choice(keys))
            except NotRunningError:
                pass
            except BaseException as exc:
                wrong.append(repr(exc))
                raise

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 6
    rounds = 0
    while time.monotonic() < end and not wrong:
        store.open()
        for number in range(20):
            data = dict.fromkeys(keys, b"%d" % number * 400)
            if number % 7 == 6:
                store.replace_all([WriteBatch(data)])
            else:
                store.write(WriteBatch(data))
            if number % 5 == 0:
                store.flush()
        store.close()
        rounds += 1
    ended.set()
    for reader in readers:
        reader.join()
    assert not wrong, wrong
    assert rounds > 3, rounds
    """


def test_reads_that_race_with_everything_are_right_or_refused_and_never_crash(tmp_path):
    run_child(RACE, tmp_path / "data")


FORK = """
    import gc, os, sys
    from pathlib import Path
    from dengine_sm.errors import NotRunningError
    from dengine_sm.kv import WriteBatch
    from dengine_sm_lmdb.store import LMDBStore

    store = LMDBStore(Path(sys.argv[1]))
    store.open()
    data = {b"%06d" % n: b"0" * 200 for n in range(5000)}
    store.write(WriteBatch(dict(data)))
    view = store.view()
    scan = store.scan(b"", None)
    next(scan)
    assert store.get(b"000000") == b"0" * 200
    child = os.fork()
    if not child:
        for read in (store.count, view.count, lambda: store.get(b"a"), lambda: list(scan)):
            try:
                read()
            except NotRunningError:
                continue
            sys.exit(1)
        store.close()
        del read, view, scan, store
        gc.collect()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for number in range(1, 20):
        store.write(WriteBatch(dict.fromkeys(data, b"%d" % number * 150)))
        store.flush()
    assert dict(view.scan(b"", None)) == data
    view.close()
    store.close()
    store.open()
    assert store.count() == len(data)
    store.close()
    """


def test_a_forked_child_finds_all_closed_and_leaves_it_to_its_parent(tmp_path):
    run_child(FORK, tmp_path / "data")


def test_listing_the_backends_does_not_load_the_engine():
    code = """
    import sys
    from dengine_sm.loader import installed_backends
    assert "lmdb" in {item.name for item in installed_backends()}
    assert "lmdb" not in sys.modules
    """
    run_child(code)


def test_growth_since_the_last_sync_starts_one_in_the_background(tmp_path):
    store = LMDBStore(tmp_path / "data")
    store.open()
    for number in range(90):
        store.write(WriteBatch({b"%d" % number: bytes(1 << 20)}))
    syncing = store._syncing
    assert syncing is not None
    syncing.join()
    synced = (tmp_path / "data" / "data-00000001" / "ROOT").read_bytes()

    store.write(WriteBatch({b"more": b""}))
    store.flush()

    assert synced != (tmp_path / "data" / "data-00000001" / "ROOT").read_bytes()
    store.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durability": Durability.TRANSIENT}, "durability: expected 'on_flush' or 'per_apply'"),
        ({"map_size": 4096}, "map_size: expected at least 1048576 bytes, observed 4096"),
        ({"max_readers": 1}, "max_readers: expected 4 to 100000, observed 1"),
    ],
)
def test_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        LMDBOptions(**options)
