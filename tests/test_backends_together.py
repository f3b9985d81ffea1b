"""All backends on one log: the same states, the same snapshots, byte for byte, each for each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from histories import SEED, chunks, digest, history

from dengine_sm import StateMachine, create_state_machine
from dengine_sm.kv import CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import Entry, SnapshotMetadata

BACKENDS = ("memory", "file", "rocksdb", "lmdb", "sqlite")
SMALL = {"file": {"segment_bytes": 200_000, "checkpoint_bytes": 400_000}}
"""Options that make files roll over in a short history."""


@contextmanager
def machines(root: Path) -> Iterator[dict[str, StateMachine]]:
    """Yield one running machine of every backend."""
    with ExitStack() as stack:
        found = {}
        for name in BACKENDS:
            options = SMALL.get(name)
            machine = create_state_machine(name, root / name, options, validate="structure")
            machine.start()
            stack.callback(machine.stop)
            found[name] = machine
        yield found


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def snapshots(
    running: Mapping[str, StateMachine], root: Path
) -> dict[str, tuple[SnapshotMetadata, Path]]:
    """Let every machine write a snapshot of its state."""
    written = {}
    for name, machine in running.items():
        directory = root / name
        directory.parent.mkdir(parents=True, exist_ok=True)
        await machine.generate_snapshot_data(directory, machine.last_applied())
        metadata = machine.snapshot_metadata()
        assert metadata is not None
        written[name] = metadata, directory
    return written


@pytest.mark.parametrize("name", ["raft", "etcd"])
async def test_every_backend_meets_every_checkpoint_with_the_same_snapshot(
    tmp_path: Path, name: str
) -> None:
    entries, checkpoints = history(name).entries, history(name).checkpoints
    with machines(tmp_path) as running:
        line = 0
        for checkpoint in checkpoints:
            for backend, machine in running.items():
                rng = random.Random(f"{SEED}/{backend}/{line}")
                for first, last in chunks(checkpoint.after_line, rng, ()):
                    if last > line:
                        await machine.apply_chunk(entries[max(first - 1, line - 5, 0) : last])
                observed = digest(machine.scan_prefix(b"").entries)  # type: ignore[attr-defined]
                assert (checkpoint.entries, checkpoint.sha256) == observed, backend
            line = checkpoint.after_line
            written = await snapshots(running, tmp_path / f"snapshots-{line}")
            expected = contents(written["memory"][1])
            for backend, (metadata, directory) in written.items():
                assert expected == contents(directory), f"{backend} after line {line}"
                assert written["memory"][0] == metadata, f"{backend} after line {line}"


def log_with_deadlines(count: int) -> list[Entry]:
    """Return a log of few keys with expiries, swaps and odd bytes."""
    rng = random.Random(SEED)
    keys = [b"", b"\0", b"\xff" * 3, b"m/applied", b"k" * 400, *(b"key-%d" % n for n in range(30))]
    now_ms, log = 1_000, []
    for index in range(1, count + 1):
        now_ms += rng.choice((0, 1, 7, 40, -30))
        key, value = rng.choice(keys), rng.choice((b"", b"v", rng.randbytes(50)))
        command = rng.choice(
            (
                Put(key, value),
                Put(key, value, ttl_ms=rng.randint(1, 400)),
                Delete(key),
                CompareAndSwap(key, rng.choice((None, b"", b"v")), rng.choice((None, value))),
            )
        )
        log.append(Entry(index, 1 + index // 50, now_ms, encode_command(command)))
    return log


async def test_every_snapshot_installs_in_every_backend(tmp_path: Path) -> None:
    log = log_with_deadlines(600)
    head, tail = log[:400], log[400:]
    with machines(tmp_path / "writers") as writers:
        for machine in writers.values():
            await machine.apply_chunk(head)
        written = await snapshots(writers, tmp_path / "written")
        straight = {name: await machine.apply_chunk(tail) for name, machine in writers.items()}
        ends = await snapshots(writers, tmp_path / "ends")
    expected = contents(ends["memory"][1])
    results = list(straight["memory"])
    assert all(results == list(others) for others in straight.values())

    pairs = 0
    for writer in BACKENDS:
        with machines(tmp_path / f"installers-{writer}") as installers:
            for installer, machine in installers.items():
                where = f"written by {writer}, installed in {installer}"
                await machine.apply_chunk([Entry(1, 1, 5, encode_command(Put(b"old", b"1")))])
                await machine.apply_snapshot_from_file(*written[writer])
                assert head[-1].log_id == machine.last_applied(), where
                assert results == list(await machine.apply_chunk(tail)), where
                pairs += 1
            again = await snapshots(installers, tmp_path / f"again-{writer}")
            for installer, (_, directory) in again.items():
                assert expected == contents(directory), f"from {writer} in {installer}"

    assert pairs == len(list(itertools.product(BACKENDS, BACKENDS)))
