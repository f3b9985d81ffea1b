"""A real history, against what git says the state is after each checkpoint."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from dengine_sm_lmdb import LMDBOptions, create_lmdb

from dengine_sm import Entry
from dengine_sm.kv import Delete, Put, encode_command

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"


def entry(number: int, line: dict[str, str]) -> Entry:
    key = line["key"].encode()
    command = Delete(key) if line["op"] == "delete" else Put(key, line["value"].encode())
    return Entry(number, 1, int(line["t"]), encode_command(command))


async def test_the_machine_meets_every_checkpoint(tmp_path):
    name = os.environ.get("DENGINE_SM_HISTORY", "raft")
    directory = Path(os.environ.get("DENGINE_SM_DATA", EXAMPLES))
    if not (directory / f"{name}-history.ndjson.gz").exists():
        pytest.skip(f"{directory} has no {name} history")
    with gzip.open(directory / f"{name}-history.ndjson.gz", "rt") as lines:
        entries = [entry(number, json.loads(line)) for number, line in enumerate(lines, 1)]
    oracle = json.loads((directory / f"{name}-history.oracle.json").read_text())["checkpoints"]
    rng = random.Random(7)
    machine = create_lmdb(tmp_path / "machine", LMDBOptions(map_size=1 << 20))
    machine.start()

    done = 0
    for checkpoint in oracle:
        while done < checkpoint["after_line"]:
            size = rng.choice((1, 7, 60, 500))
            chunk = entries[done : min(done + size, checkpoint["after_line"])]
            await machine.apply_chunk(chunk)
            done += len(chunk)
        if rng.random() < 0.5:
            machine.stop()
            machine.start()
        found = machine.scan_prefix(b"").entries
        lines = b"".join(key + b"\t" + value + b"\n" for key, value in found)
        assert checkpoint["entries"] == len(found) == machine.len()
        assert checkpoint["sha256"] == hashlib.sha256(lines).hexdigest()
    machine.stop()

    assert len(entries) == done
