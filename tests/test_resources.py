"""LIFE-8: fifty cycles of use, failures included, leave nothing behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dengine_sm import Entry, LogGapError, NodeBuilder, NodeConfig, StorageLockedError
from dengine_sm.backends import create_file
from dengine_sm.backends.file import FileOptions
from dengine_sm.config import NodeSection, StateMachineSection
from dengine_sm.kv import Put, encode_command


def held() -> tuple[list[str], list[str]]:
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            fds.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    ours = [thread.name for thread in threading.enumerate() if "dengine-sm" in thread.name]
    return sorted(fds), ours


async def cycle(directory: Path, number: int) -> None:
    machine = create_file(directory, FileOptions(segment_bytes=4096, checkpoint_bytes=4096))
    machine.start()
    first = machine.last_applied().index + 1
    chunk = [
        Entry(first + i, 1, 1, encode_command(Put(b"%d" % (i % 7), bytes(300)))) for i in range(20)
    ]
    await machine.apply_chunk(chunk)
    with pytest.raises(LogGapError):
        await machine.apply_chunk([Entry(first + 50, 1, 1, b"")])
    with pytest.raises(StorageLockedError):
        create_file(directory).start()
    await machine.flush_async()
    snapshot = directory.parent / f"snapshot-{number}"
    await machine.generate_snapshot_data(snapshot, machine.last_applied())
    metadata = machine.snapshot_metadata()
    assert metadata is not None
    if number % 5 == 0:
        await machine.apply_snapshot_from_file(metadata, snapshot)
    machine.stop()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count descriptors")
async def test_a_machine_leaks_nothing_in_fifty_cycles(tmp_path):
    await cycle(tmp_path / "m", 0)
    before = held()
    for number in range(1, 51):
        await cycle(tmp_path / "m", number)
    assert held() == before
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert len([name for name in names if name.startswith("checkpoint-")]) <= 1
    assert not [name for name in names if "tmp" in name]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count descriptors")
async def test_a_node_leaks_nothing_when_restarted(tmp_path):
    config = NodeConfig(
        node=NodeSection(data_dir=tmp_path / "n"),
        state_machine=StateMachineSection(validate="structure"),
    )

    async def run() -> None:
        async with NodeBuilder(config).build() as node:
            await node.propose(encode_command(Put(b"k", b"v")))
            await node.take_snapshot()
            with pytest.raises(StorageLockedError):
                await NodeBuilder(config).build().start()

    await run()
    before = held()
    for _ in range(10):
        await run()
    assert held() == before
    assert not [path for path in (tmp_path / "n" / "snapshots").iterdir() if "tmp" in path.name]
