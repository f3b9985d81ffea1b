"""Two real histories, against what git says the state is after each of them.

The ground truth is not ours: `entries` and `sha256` come from `git ls-tree`.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from histories import SEED, chunks, data_directory, digest, history

from dengine_sm.backends.file import FileOptions, create_file
from dengine_sm.backends.memory import create_memory
from dengine_sm.client import Client
from dengine_sm.config import NodeConfig, NodeSection, SnapshotSection
from dengine_sm.kv import KeyValueStateMachine
from dengine_sm.model import Outcome
from dengine_sm.node import NodeBuilder
from dengine_sm.server import NodeServer


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
