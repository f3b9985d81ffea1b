"""Two real histories, and what git says the state is after each part of them.

The ground truth is not ours: `entries` and `sha256` come from `git ls-tree`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.kv import Delete, Put, encode_command
from dengine_sm.model import Entry

ROOT = Path(__file__).resolve().parent.parent.parent
RAFT = ROOT / "examples" / "data"
SEED = 7_031


@attrs.frozen
class Checkpoint:
    after_line: int
    entries: int
    sha256: str


@attrs.frozen
class History:
    """Entries, of which number N is line N, and where the oracle speaks."""

    entries: list[Entry]
    checkpoints: list[Checkpoint]


def data_directory(name: str) -> Path:
    """Return where a history is, or skip and say why."""
    if name == "raft":
        return RAFT
    places = [Path(os.environ.get("DENGINE_SM_DATA", ROOT.parent / "shared" / "data"))]
    for place in places:
        if (place / f"{name}-history.ndjson.gz").exists():
            return place
    pytest.skip(
        f"the {name} history is not in {str(places[0])!r}; it is not shipped for its size, "
        "DENGINE_SM_DATA names the directory that has it"
    )


@functools.cache
def history(name: str) -> History:
    directory = data_directory(name)
    with gzip.open(directory / f"{name}-history.ndjson.gz", "rt") as lines:
        entries = [_entry(number, json.loads(line)) for number, line in enumerate(lines, 1)]
    oracle = json.loads((directory / f"{name}-history.oracle.json").read_text())
    fields = attrs.fields_dict(Checkpoint)
    checkpoints = [Checkpoint(**{f: c[f] for f in fields}) for c in oracle["checkpoints"]]
    assert checkpoints[-1].after_line == len(entries)
    return History(entries, checkpoints)


def _entry(number: int, line: dict[str, Any]) -> Entry:
    key = line["key"].encode()
    command = Delete(key) if line["op"] == "delete" else Put(key, line["value"].encode())
    return Entry(number, 1 + number // 5000, line["t"], encode_command(command))


def digest(entries: Iterable[tuple[bytes, bytes]]) -> tuple[int, str]:
    lines = [key + b"\t" + value + b"\n" for key, value in entries]
    return len(lines), hashlib.sha256(b"".join(lines)).hexdigest()


def chunks(count: int, rng: random.Random, stops: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Cut `[1, count]` into chunks `(first, last)` that end at every stop."""
    first = 1
    for stop in sorted({*stops, count}):
        while first <= stop:
            size = rng.choice((1, 2, 7, 60, 500, 4000))
            last = min(first + size - 1, stop)
            yield first, last
            first = last + 1
