"""The key-value machine in use: refusals, limits, expiry, readers, snapshots, lifecycle."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading

import pytest
from kv_machines import open_machine

from dengine_sm import (
    ConcurrentApplyError,
    Entry,
    Limits,
    LogGapError,
    LogId,
    LogOrderError,
    NotRunningError,
    SnapshotCorruptionError,
    SnapshotLabelError,
    SnapshotMetadata,
    StorageLockedError,
)
from dengine_sm.backends import create_file, create_memory
from dengine_sm.backends.file import FileOptions
from dengine_sm.kv import (
    CompareAndSwap,
    Delete,
    KeyValueStateMachine,
    Put,
    RamStore,
    encode_command,
)


async def test_refuses_gaps_and_falling_terms_without_a_trace(tmp_path):
    machine = open_machine("file", tmp_path)
    put = encode_command(Put(b"k", b"v"))
    await machine.apply_chunk([Entry(1, 3, 1, put)])

    for chunk, error in (
        ([Entry(3, 3, 1, put)], LogGapError),
        ([Entry(2, 3, 1, put), Entry(4, 3, 1, put)], LogGapError),
        ([Entry(2, 2, 1, put)], LogOrderError),
        ([Entry(2, 4, 1, put), Entry(3, 3, 1, put)], LogOrderError),
    ):
        with pytest.raises(error):
            await machine.apply_chunk(chunk)
        assert machine.last_applied() == LogId(3, 1)
        assert machine.len() == 1

    assert await machine.apply_chunk([]) == []
    machine.stop()


async def test_limits_are_enforced_as_rejected():
    machine = KeyValueStateMachine(RamStore(), limits=Limits(max_key_bytes=3, max_value_bytes=300))
    machine.start()
    commands = [
        Put(b"abcd", b""),
        Put(b"abc", b"x" * 301),
        Put(b"abc", b"x" * 300),
        Delete(b"abcd"),
        CompareAndSwap(b"k", None, b"x" * 301),
    ]
    entries = [Entry(i, 1, 1, encode_command(c)) for i, c in enumerate(commands, 1)]

    results = await machine.apply_chunk(entries)

    assert [r.succeeded for r in results] == [False, False, True, False, False]
    assert machine.len() == 1


async def test_mass_expiry_and_a_moved_deadline():
    machine = create_memory()
    machine.start()
    puts = [encode_command(Put(b"%d" % i, b"v", 100 + i % 3)) for i in range(500)]
    await machine.apply_chunk([Entry(i, 1, 1000, data) for i, data in enumerate(puts, 1)])
    keep = [
        Entry(501, 1, 1099, encode_command(Put(b"0", b"kept"))),
        Entry(502, 1, 1099, encode_command(Put(b"1", b"later", 500))),
        Entry(503, 1, 1099, encode_command(CompareAndSwap(b"2", b"v", b"swapped"))),
        Entry(504, 1, 50, b""),
    ]
    await machine.apply_chunk(keep)
    assert machine.len() == 500

    await machine.apply_chunk([Entry(505, 1, 1102, b"")])

    live = dict(machine.scan_prefix(b"").entries)
    assert live == {b"0": b"kept", b"1": b"later", b"2": b"swapped"}
    await machine.apply_chunk([Entry(506, 1, 1599, b"")])
    assert machine.get(b"1") is None


async def test_readers_see_whole_chunks_and_the_exact_id(tmp_path):
    machine = open_machine("file", tmp_path)
    keys = [b"k%d" % i for i in range(8)]
    failures: list[str] = []
    done = threading.Event()

    def reader() -> None:
        newest = 0
        while not done.is_set():
            before = machine.last_applied().index
            values = set(machine.get_multi(keys))
            scan = machine.scan_prefix(b"k")
            if len(values) != 1 or len({v for _, v in scan.entries}) > 1:
                failures.append(f"torn: {values} {scan}")
            if scan.entries and int(scan.entries[0][1]) != scan.last_applied.index:
                failures.append(f"label: {scan}")
            one = machine.get(b"k3")
            after = machine.last_applied().index
            if one is not None and not before <= int(one) <= after:
                failures.append(f"id: {before} {one!r} {after}")
            if before < newest:
                failures.append("went back")
            newest = before

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    index = 0
    for _ in range(300):
        stop = index + len(keys)
        chunk = [
            Entry(index + n, 1, 1, encode_command(Put(key, b"%d" % stop)))
            for n, key in enumerate(keys, 1)
        ]
        await machine.apply_chunk(chunk)
        index = stop
        await asyncio.sleep(0)
    done.set()
    for thread in threads:
        thread.join()
    machine.stop()
    assert failures == []


async def test_applies_go_on_during_a_snapshot_which_keeps_its_state(tmp_path):
    machine = open_machine("file", tmp_path / "m")
    count = 30_000
    await machine.apply_chunk(
        [Entry(i, 1, 1, encode_command(Put(b"%06d" % i, b"v" * 50))) for i in range(1, count + 1)]
    )
    last = machine.last_applied()
    task = asyncio.create_task(machine.generate_snapshot_data(tmp_path / "s", last))
    applied = 0
    await asyncio.sleep(0)
    while not task.done():
        index = last.index + applied + 1
        await machine.apply_chunk([Entry(index, 1, 1, encode_command(Delete(b"%06d" % index)))])
        await machine.apply_chunk(
            [Entry(index + 1, 1, 1, encode_command(Put(b"%06d" % (applied + 1), b"new")))]
        )
        applied += 2
        await asyncio.sleep(0)
    checksum = await task

    assert applied > 0
    other = create_memory()
    other.start()
    metadata = SnapshotMetadata(last, checksum, "kv-portable/1")
    await other.apply_snapshot_from_file(metadata, tmp_path / "s")
    assert other.len() == count
    assert {value for _, value in other.scan_prefix(b"").entries} == {b"v" * 50}
    machine.stop()


async def test_snapshot_label_stale_and_damage(tmp_path):
    machine = open_machine("file", tmp_path / "m")
    await machine.apply_chunk([Entry(1, 1, 1, encode_command(Put(b"k", b"v")))])
    with pytest.raises(SnapshotLabelError):
        await machine.generate_snapshot_data(tmp_path / "x", LogId(1, 2))
    assert not (tmp_path / "x").exists()
    await machine.generate_snapshot_data(tmp_path / "s", LogId(1, 1))
    metadata = machine.snapshot_metadata()
    assert metadata is not None
    victim = next(path for path in (tmp_path / "s").iterdir() if path.name != "manifest.cbor")
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x99")

    with pytest.raises(SnapshotCorruptionError):
        await machine.apply_snapshot_from_file(metadata, tmp_path / "s")

    assert machine.get(b"k") == b"v"
    machine.stop()


async def test_stopped_machine_refuses_and_reset_forgets(tmp_path):
    machine = create_file(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    for call in (
        lambda: machine.get(b"k"),
        machine.len,
        machine.last_applied,
        machine.flush,
        machine.save_hard_state,
        lambda: machine.entry_term(1),
        lambda: machine.scan_prefix(b""),
        lambda: machine.get_multi([b"k"]),
        machine.snapshot_metadata,
        lambda: machine.persist_last_applied(LogId(1, 1)),
    ):
        with pytest.raises(NotRunningError):
            call()
    machine.start()
    machine.start()
    await machine.apply_chunk([Entry(1, 2, 1, encode_command(Put(b"k", b"v", 5)))])
    await machine.generate_snapshot_data(tmp_path / "s", LogId(2, 1))
    await machine.reset()
    for _ in range(2):
        assert machine.is_empty()
        assert machine.last_applied() == LogId.ZERO
        assert machine.snapshot_metadata() is None
        assert machine.entry_term(1) is None
        machine.stop()
        machine.start()
    await machine.apply_chunk([Entry(1, 1, 1, encode_command(Put(b"k", b"v")))])
    assert machine.get(b"k") == b"v"
    machine.stop()
    machine.stop()


async def test_applied_id_moves_forward_only(tmp_path):
    machine = open_machine("file", tmp_path)
    machine.persist_last_applied(LogId(2, 5))
    machine.persist_last_applied(LogId(2, 5))
    for lower in (LogId(2, 4), LogId(1, 9), LogId(3, 5), LogId(3, 4)):
        with pytest.raises(LogOrderError):
            machine.update_last_applied(lower)
    assert machine.last_applied() == LogId(2, 5)
    assert machine.entry_term(5) == 2
    assert machine.entry_term(4) is None
    machine.stop()


async def test_second_opener_is_refused(tmp_path):
    machine = open_machine("file", tmp_path)
    with pytest.raises(StorageLockedError):
        create_file(tmp_path).start()
    machine.stop()
    other = create_file(tmp_path)
    other.start()
    other.stop()


async def test_overlapping_applies_are_refused(tmp_path):
    machine = create_file(tmp_path, FileOptions(durability="per_apply"))  # type: ignore[arg-type]
    machine._store.writes_block = True
    machine.start()
    first = asyncio.create_task(machine.apply_chunk([Entry(1, 1, 1, b"")]))
    await asyncio.sleep(0)
    with pytest.raises(ConcurrentApplyError):
        await machine.apply_chunk([Entry(1, 1, 1, b"")])
    await first
    assert machine.last_applied() == LogId(1, 1)
    machine.stop()


def test_layers_fold_while_views_stay(tmp_path):
    store = RamStore()
    store.open()
    from dengine_sm.kv import WriteBatch

    rng = random.Random(1)
    model: dict[bytes, bytes] = {}
    views: list[tuple[object, dict[bytes, bytes]]] = []
    for step in itertools.count():
        if step == 400:
            break
        changes = {
            b"%d" % rng.randrange(20_000): rng.choice([None, b"%d" % step])
            for _ in range(rng.choice([1, 10, 3000]))
        }
        store.write(WriteBatch(dict(changes)))
        for key, value in changes.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        if rng.random() < 0.1:
            views.append((store.view(), dict(model)))
        if views and rng.random() < 0.12:
            view, expected = views.pop(rng.randrange(len(views)))
            assert dict(view.scan(b"", None)) == expected
            assert view.count() == len(expected)
            low = b"%d" % rng.randrange(20_000)
            assert [k for k, _ in view.scan(low, b"5")] == sorted(
                k for k in expected if low <= k < b"5"
            )
            view.close()
        if step % 20 == 0:
            assert store.count() == len(model)
            assert [k for k, _ in store.scan(b"", None)] == sorted(model)
            key = b"%d" % rng.randrange(20_000)
            assert store.get(key) == model.get(key)
    for view, _ in views:
        view.close()
    for _ in range(40):
        store.write(WriteBatch({b"x": b"y"}))
    assert len(store._data.layers) == 1
