"""Whether disks stay bounded: millions of commands on few keys, and what every directory holds.

python plugins/dengine-sm-nats/tests/nats_disk.py --commands 10000000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path

from dengine_sm_nats.servers import LocalServers
from nats_nodes import NodeProcess, bytes_on_disk

from dengine_sm.kv import Put, encode_command

KEYS = 10_000
REQUEST = 2_000
BACKENDS = ("file", "rocksdb", "sqlite")


async def run(directory: Path, commands: int) -> list[dict[str, float]]:
    """Apply commands through the first node; return disk use every tenth of them."""
    rows: list[dict[str, float]] = []
    with LocalServers(directory / "servers", 3) as servers:
        nodes = [
            NodeProcess(
                directory / backend,
                backend,
                backend,
                servers,
                snapshot_entries=commands // 25,
                keep_log_entries=1000,
            )
            for backend in BACKENDS
        ]
        try:
            await asyncio.gather(*(node.start() for node in nodes))
            began_s = time.monotonic()
            for done in range(0, commands, commands // 10):
                await load(nodes[0], done, commands // 10)
                # The stream keeps what the slowest node has still to read; that is measured too.
                lag = {
                    f"{n.name} lag": await entries_behind(n, done + commands // 10) for n in nodes
                }
                for node in nodes:
                    await caught_up(node)
                row = {"commands": done + commands // 10, **lag}
                row["seconds"] = round(time.monotonic() - began_s, 1)
                for number in range(3):
                    row[f"server {number} MiB"] = bytes_on_disk(servers.store(number)) >> 20
                for node in nodes:
                    row[f"{node.name} MiB"] = bytes_on_disk(node.directory) >> 20
                rows.append(row)
                print(json.dumps(row), flush=True)
        finally:
            for node in nodes:
                await node.kill()
    return rows


async def entries_behind(node: NodeProcess, index: int) -> int:
    async with node.client() as client:
        return index - (await client.status())["last_applied"]["index"]


async def caught_up(node: NodeProcess) -> None:
    async with node.client(timeout_s=600) as client:
        await client.get(b"key-000000")


async def load(node: NodeProcess, first: int, count: int) -> None:
    """Write `count` values of 100 bytes, 8 requests at a time."""
    starts = iter(range(first, first + count, REQUEST))
    async with node.client(timeout_s=60) as client:

        async def work() -> None:
            for start in starts:
                await client.apply(
                    [
                        encode_command(Put(b"key-%06d" % (n * 7919 % KEYS), b"%0100d" % n))
                        for n in range(start, min(start + REQUEST, first + count))
                    ]
                )

        await asyncio.gather(*(work() for _ in range(8)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=10_000_000)
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="nats-disk-"))
    try:
        asyncio.run(run(directory, given.commands))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
