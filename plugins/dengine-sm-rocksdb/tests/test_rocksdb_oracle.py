"""The machine meets a real history: what git says the state is at each checkpoint."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from dengine_sm_rocksdb import RocksDBOptions, create_rocksdb

from dengine_sm import Entry
from dengine_sm.kv import Delete, Put, encode_command

ROOT = Path(__file__).resolve().parents[3]
PLACES = {
    "raft": ROOT / "examples" / "data",
    "etcd": Path(os.environ.get("DENGINE_SM_DATA", ROOT.parent / "shared" / "data")),
}


@pytest.mark.parametrize("name", ["raft", "etcd"])
async def test_the_machine_meets_every_checkpoint(tmp_path: Path, name: str) -> None:
    history = PLACES[name] / f"{name}-history.ndjson.gz"
    if not history.exists() or (name == "etcd" and "DENGINE_SM_DATA" not in os.environ):
        pytest.skip(f"runs when DENGINE_SM_DATA names the directory of {history.name}")
    oracle = json.loads((PLACES[name] / f"{name}-history.oracle.json").read_text())
    with gzip.open(history, "rt") as lines:
        entries = [entry(number, json.loads(line)) for number, line in enumerate(lines, 1)]
    rng = random.Random(7)
    machine = create_rocksdb(tmp_path / "machine", RocksDBOptions(write_buffer_bytes=1 << 20))
    applied = 0

    machine.start()
    for checkpoint in oracle["checkpoints"]:
        while applied < checkpoint["after_line"]:
            size = min(rng.choice((1, 7, 60, 500)), checkpoint["after_line"] - applied)
            await machine.apply_chunk(entries[applied : applied + size])
            applied += size
        if rng.random() < 0.3:
            machine.stop()
            machine.start()
        found = machine.scan_prefix(b"").entries
        content = b"".join(key + b"\t" + value + b"\n" for key, value in found)
        assert checkpoint["entries"] == len(found) == machine.len()
        assert checkpoint["sha256"] == hashlib.sha256(content).hexdigest()
    machine.stop()

    assert applied == len(entries)


def entry(number: int, line: dict[str, str]) -> Entry:
    key = line["key"].encode()
    command = Delete(key) if line["op"] == "delete" else Put(key, line["value"].encode())
    return Entry(number, 1 + number // 5000, int(line["t"]), encode_command(command))
