"""Two real histories, against what git says the state is after each of them.

The ground truth is not ours: `entries` and `sha256` come from `git ls-tree`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.backends.file import FileOptions, create_file
from dengine_sm.backends.memory import create_memory
from dengine_sm.client import Client
from dengine_sm.config import NodeConfig, NodeSection, SnapshotSection
from dengine_sm.kv import Delete, KeyValueStateMachine, Put, encode_command
from dengine_sm.model import Entry, Outcome
from dengine_sm.node import NodeBuilder
from dengine_sm.server import NodeServer

ROOT = Path(__file__).resolve().parent.parent
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


def memory_machine(_directory: Path) -> KeyValueStateMachine:
    return create_memory()


def file_machine(directory: Path) -> KeyValueStateMachine:
    return create_file(directory, FileOptions(segment_bytes=200_000, checkpoint_bytes=400_000))


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
@pytest.mark.parametrize("name", ["raft", "etcd"])
@pytest.mark.parametrize("create", [memory_machine, file_machine])
async def test_a_machine_meets_every_checkpoint(
    tmp_path: Path, create: Callable[[Path], KeyValueStateMachine], name: str, seed: int
) -> None:
    entries, checkpoints = history(name).entries, history(name).checkpoints
    wanted = {checkpoint.after_line: checkpoint for checkpoint in checkpoints}
    rng = random.Random(seed)
    machine = create(tmp_path / "machine")
    met = duplicates = 0

    machine.start()
    for first, last in chunks(len(entries), rng, wanted):
        start = max(1, first - rng.choice((0, 0, 1, 30)))
        results = await machine.apply_chunk(entries[start - 1 : last])
        duplicates += first - start
        outcomes = [Outcome.DUPLICATE] * (first - start) + [Outcome.APPLIED] * (last - first + 1)
        assert outcomes == [result.outcome for result in results]
        if last not in wanted:
            continue
        checkpoint = wanted[last]
        if create is file_machine and rng.random() < 0.5:
            machine.stop()
            machine = create(tmp_path / "machine")
            machine.start()
        observed = machine.scan_prefix(b"")
        assert (checkpoint.entries, checkpoint.sha256) == digest(observed.entries), f"line {last}"
        assert entries[last - 1].log_id == observed.last_applied
        assert checkpoint.entries == machine.len()
        met += 1
    machine.stop()

    assert len(checkpoints) == met
    assert duplicates > 0


async def scanned(client: Client) -> list[tuple[bytes, bytes]]:
    return [entry async for page in client.scan_pages() for entry in page.entries]


@pytest.mark.parametrize(("name", "batch"), [("raft", None), ("raft", 1), ("etcd", 1000)])
async def test_a_running_server_meets_every_checkpoint(
    tmp_path: Path, name: str, batch: int | None
) -> None:
    """By random batches, by single calls, and by batches of a thousand."""
    entries, checkpoints = history(name).entries, history(name).checkpoints
    rng = random.Random(SEED)
    config = NodeConfig(
        node=NodeSection(data_dir=tmp_path / "node"),
        snapshot=SnapshotSection(every_entries=500),
    )
    node = NodeBuilder(config).build()

    async with node, NodeServer(node) as server, Client(server.address) as client:
        line = 0
        for checkpoint in checkpoints:
            while line < checkpoint.after_line:
                size = batch or rng.choice((1, 5, 40, 300))
                commands = entries[line : min(line + size, checkpoint.after_line)]
                results = await client.apply([entry.data for entry in commands])
                assert all(result.succeeded for result in results)
                line += len(commands)
            observed = digest(await scanned(client))
            assert (checkpoint.entries, checkpoint.sha256) == observed, f"line {line}"
            status = await client.status()
            assert checkpoint.entries == status["entries"]
            assert line == status["last_applied"]["index"]


async def test_puts_and_deletes_of_the_client_meet_every_checkpoint(tmp_path: Path) -> None:
    """The same through d-engine's own service, one call a line."""
    directory = data_directory("raft")
    config = NodeConfig(node=NodeSection(data_dir=tmp_path / "node"))
    node = NodeBuilder(config).state_machine("memory").build()
    wanted = {checkpoint.after_line: checkpoint for checkpoint in history("raft").checkpoints}
    met = 0

    async with node, NodeServer(node) as server, Client(server.address) as client:
        with gzip.open(directory / "raft-history.ndjson.gz", "rt") as lines:
            for number, line in zip(itertools.count(1), map(json.loads, lines)):
                if line["op"] == "put":
                    await client.put(line["key"].encode(), line["value"].encode())
                else:
                    await client.delete(line["key"].encode())
                if number in wanted:
                    observed = digest(await scanned(client))
                    assert (wanted[number].entries, wanted[number].sha256) == observed
                    met += 1

    assert len(wanted) == met
