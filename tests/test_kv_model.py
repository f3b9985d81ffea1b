"""The key-value machine against a model and an oracle: commands, results, state, snapshots."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_machines import open_machine

from dengine_sm import ApplyResult, Entry, Limits, Outcome, StaleSnapshotError
from dengine_sm.backends import create_memory
from dengine_sm.kv import CompareAndSwap, Delete, Put, decode_command, encode_command

DATA = Path(__file__).parent.parent / "examples" / "data"


class Model:
    """What CONTRACT §4 says, in the plainest way."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.state: dict[bytes, tuple[bytes, int | None]] = {}
        self.clock = 0
        self.limits = limits or Limits()

    def apply(self, entry: Entry) -> Outcome:
        self.clock = max(self.clock, entry.timestamp_ms)
        self.state = {
            key: (value, deadline)
            for key, (value, deadline) in self.state.items()
            if deadline is None or deadline > self.clock
        }
        if not entry.data:
            return Outcome.APPLIED
        try:
            command = decode_command(entry.data)
        except ValueError:
            return Outcome.REJECTED
        return Outcome.APPLIED if self._execute(command) else Outcome.REJECTED

    def _execute(self, command: object) -> bool:
        match command:
            case Put(key, value, ttl_ms):
                if (ttl_ms is not None and ttl_ms < 1) or self._too_large(key, value):
                    return False
                self.state[key] = (value, None if ttl_ms is None else self.clock + ttl_ms)
            case Delete(key):
                if self._too_large(key, b""):
                    return False
                self.state.pop(key, None)
            case CompareAndSwap(key, expected, new):
                if self._too_large(key, new or b""):
                    return False
                if self.state.get(key, (None, None))[0] != expected:
                    return False
                if new is None:
                    self.state.pop(key, None)
                else:
                    self.state[key] = (new, None)
        return True

    def _too_large(self, key: bytes, value: bytes) -> bool:
        return len(key) > self.limits.max_key_bytes or len(value) > self.limits.max_value_bytes

    def live(self) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for key, (value, _) in self.state.items())


KEYS = st.sampled_from([b"", b"a", b"b", b"a\x00", b"\xff", b"\xff\xff", b"m/applied", b"d/a"])
VALUES = st.sampled_from([b"", b"1", b"2", b"x" * 30, b"y" * 300])
COMMANDS = st.one_of(
    st.builds(Put, KEYS, VALUES, st.one_of(st.none(), st.integers(-1, 50))),
    st.builds(Delete, KEYS),
    st.builds(CompareAndSwap, KEYS, st.one_of(st.none(), VALUES), st.one_of(st.none(), VALUES)),
).map(encode_command)
PAYLOADS = st.one_of(COMMANDS, COMMANDS, COMMANDS, st.just(b""), st.binary(max_size=12))
HISTORIES = st.lists(st.tuples(PAYLOADS, st.integers(-5, 30), st.booleans()), max_size=40)


def entries_of(history: list[tuple[bytes, int, bool]]) -> list[Entry]:
    entries, stamp, term = [], 1000, 1
    for index, (payload, step, new_term) in enumerate(history, 1):
        stamp += step
        term += new_term
        entries.append(Entry(index, term, stamp, payload))
    return entries


def chunks(entries: list[Entry], seed: int) -> list[list[Entry]]:
    rng, parts, start = random.Random(seed), [], 0
    while start < len(entries):
        size = rng.randint(1, 9)
        parts.append(entries[start : start + size])
        start += size
    return parts


@pytest.mark.parametrize("kind", ["memory", "file"])
@settings(deadline=None, max_examples=60)
@given(history=HISTORIES, seed=st.integers(0, 5))
def test_agrees_with_the_model(tmp_path_factory, kind, history, seed):
    entries = entries_of(history)
    machine = open_machine(kind, tmp_path_factory.mktemp("sm"))
    model = Model()
    rng = random.Random(seed)

    async def run() -> None:
        nonlocal machine
        for chunk in chunks(entries, seed):
            expected = [ApplyResult(entry.index, model.apply(entry)) for entry in chunk]
            again = rng.randint(0, 3)
            old = entries[max(0, chunk[0].index - 1 - again) : chunk[0].index - 1]
            observed = await machine.apply_chunk([*old, *chunk])
            duplicates = [ApplyResult(entry.index, Outcome.DUPLICATE) for entry in old]
            assert list(observed) == duplicates + expected
            assert machine.last_applied() == chunk[-1].log_id
            assert list(machine.scan_prefix(b"").entries) == model.live()
            assert machine.len() == len(model.live())
            if kind == "file" and rng.random() < 0.3:
                machine.stop()
                machine.start()
        for entry in entries:
            assert machine.entry_term(entry.index) == entry.term
        assert machine.entry_term(len(entries) + 1) is None
        assert machine.entry_term(0) is None

    try:
        asyncio.run(run())
    finally:
        machine.stop()


@settings(deadline=None, max_examples=40)
@given(history=HISTORIES, cut=st.integers(0, 40))
def test_snapshot_then_tail_equals_everything(tmp_path_factory, history, cut):
    entries = entries_of(history)
    root = tmp_path_factory.mktemp("snap")
    head, tail = entries[:cut], entries[cut:]

    async def run() -> None:
        straight = open_machine("memory", root)
        writer = open_machine("file", root / "writer")
        installer = open_machine("file", root / "installer")
        await installer.apply_chunk(
            [Entry(1, 0, 5, encode_command(Put(b"old", b"x", 9)))][: not head]
        )
        await straight.apply_chunk(head)
        for chunk in chunks(head, 3):
            await writer.apply_chunk(chunk)
        last = writer.last_applied()
        checksums = {
            await straight.generate_snapshot_data(root / "s1", last),
            await writer.generate_snapshot_data(root / "s2", last),
        }
        assert len(checksums) == 1
        metadata = writer.snapshot_metadata()
        assert metadata is not None
        if not head:
            with pytest.raises(StaleSnapshotError):
                await installer.apply_snapshot_from_file(metadata, root / "s2")
            return
        await installer.apply_snapshot_from_file(metadata, root / "s2")
        shutil.rmtree(root / "s2")
        assert installer.last_applied() == last
        assert installer.entry_term(last.index) == last.term
        assert installer.entry_term(last.index - 1) is None
        assert list(await installer.apply_chunk(tail)) == list(await straight.apply_chunk(tail))
        assert installer.scan_prefix(b"").entries == straight.scan_prefix(b"").entries
        installer.stop()
        installer.start()
        assert installer.scan_prefix(b"").entries == straight.scan_prefix(b"").entries
        assert installer.snapshot_metadata() == metadata
        for machine in (straight, writer, installer):
            machine.stop()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_real_history_meets_the_oracle(tmp_path, kind):
    with gzip.open(DATA / "raft-history.ndjson.gz", "rt") as lines:
        history = [json.loads(line) for line in lines]
    oracle = json.loads((DATA / "raft-history.oracle.json").read_text())["checkpoints"]
    entries = [
        Entry(
            index,
            1,
            line["t"],
            encode_command(
                Put(line["key"].encode(), line["value"].encode())
                if line["op"] == "put"
                else Delete(line["key"].encode())
            ),
        )
        for index, line in enumerate(history, 1)
    ]
    for seed in range(3):
        machine = open_machine(kind, tmp_path / str(seed))
        rng, start = random.Random(seed), 0
        for checkpoint in oracle:
            while start < checkpoint["after_line"]:
                stop = min(start + rng.randint(1, 200), checkpoint["after_line"])
                await machine.apply_chunk(entries[max(0, start - rng.randint(0, 20)) : stop])
                start = stop
            live = machine.scan_prefix(b"").entries
            text = b"".join(key + b"\t" + value + b"\n" for key, value in live)
            assert len(live) == checkpoint["entries"] == machine.len()
            assert hashlib.sha256(text).hexdigest() == checkpoint["sha256"]
        machine.stop()


@settings(deadline=None, max_examples=300)
@given(
    key=st.sampled_from([0, 1, 23, 24, 255, 256, 70_000]),
    value=st.sampled_from([0, 1, 23, 24, 255, 256, 65_535, 65_536]),
    wreck=st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(-2, 2)),
)
def test_the_short_cut_for_puts_agrees_with_the_decoder(key, value, wreck):
    from dengine_sm.kv.execution import _plain_put

    data = bytearray(encode_command(Put(b"k" * key, b"v" * value)))
    where, byte, cut = wreck
    for wrecked in (bytes(data), bytes(data[:cut]) if cut < 0 else bytes(data) + b"\xf6" * cut):
        for at in (where, len(wrecked) - 1 - where, key + 2 + where):
            candidate = bytearray(wrecked)
            if 2 <= at < len(candidate):
                candidate[at] = byte
            put = _plain_put(bytes(candidate))
            if put is not None:
                assert decode_command(bytes(candidate)) == Put(*put)
    if key < 256 and value < 65_536:
        assert _plain_put(bytes(data)) == (b"k" * key, b"v" * value)


async def test_a_shared_reference_is_no_put():
    # Tags 28 and 29: the value "refers" to the key, so the lengths could be made to agree.
    machine = create_memory()
    machine.start()
    sneaky = b"\x84\x01\xd8\x1c\x58\x18" + b"k" * 24 + b"\xd8\x1d\x00\xf6"
    results = await machine.apply_chunk([Entry(1, 1, 1, sneaky)])
    assert results[0].outcome is Outcome.REJECTED
    assert machine.is_empty()


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([5, 30, 200]), st.sampled_from([5, 30, 300]), st.data())
def test_a_command_shaped_like_its_predecessors_is_still_checked(key, value, data):
    good = encode_command(Put(b"k" * key, b"v" * value))
    heads = [1, 2, 3, 2 + key, 3 + key, 4 + key, 5 + key, 6 + key, len(good) - 1]
    odd = bytearray(good)
    odd[data.draw(st.sampled_from([i for i in heads if i < len(good)]))] = data.draw(
        st.integers(0, 255)
    )
    machine = create_memory()
    machine.start()
    chunk = [Entry(i, 1, 1, c) for i, c in enumerate([good, good, good, bytes(odd)], 1)]
    expected = Model()
    outcomes = [expected.apply(entry) for entry in chunk]

    results = asyncio.run(machine.apply_chunk(chunk))

    assert [r.outcome for r in results] == outcomes
    assert list(machine.scan_prefix(b"").entries) == expected.live()
