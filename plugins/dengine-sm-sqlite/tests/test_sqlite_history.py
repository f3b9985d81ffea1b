"""A real history, against what git says the state is after each of its checkpoints."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest
from dengine_sm_sqlite import SQLiteOptions, create_sqlite

from dengine_sm import Durability, Entry
from dengine_sm.kv import Delete, Put, encode_command

DATA = Path(__file__).resolve().parents[3] / "examples" / "data"


def history(path: Path) -> list[Entry]:
    entries = []
    with gzip.open(path, "rt") as lines:
        for number, text in enumerate(lines, 1):
            line = json.loads(text)
            key = line["key"].encode()
            put = line["op"] != "delete"
            command = Put(key, line["value"].encode()) if put else Delete(key)
            entries.append(Entry(number, 1 + number // 5000, line["t"], encode_command(command)))
    return entries


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
async def test_meets_every_checkpoint_of_a_real_history(tmp_path: Path, durability: Durability):
    if not DATA.is_dir():
        pytest.skip(f"the history is not in {str(DATA)!r}: it belongs to the source tree")
    entries = history(DATA / "raft-history.ndjson.gz")
    oracle = json.loads((DATA / "raft-history.oracle.json").read_text())
    # A log so short that it is started over many times.
    options = SQLiteOptions(durability=durability, checkpoint_bytes=1 << 16)
    rng = random.Random(7)
    machine = create_sqlite(tmp_path / "machine", options)
    machine.start()
    applied = 0
    for checkpoint in oracle["checkpoints"]:
        while applied < checkpoint["after_line"]:
            last = min(applied + rng.choice((1, 7, 60, 500)), checkpoint["after_line"])
            await machine.apply_chunk(entries[applied:last])
            applied = last
        if rng.random() < 0.2:
            machine.stop()
            machine.start()

        observed = machine.scan_prefix(b"")

        lines = b"".join(key + b"\t" + value + b"\n" for key, value in observed.entries)
        assert checkpoint["sha256"] == hashlib.sha256(lines).hexdigest()
        assert checkpoint["entries"] == len(observed.entries) == machine.len()
        assert entries[applied - 1].log_id == observed.last_applied
    machine.stop()

    assert len(entries) == applied
