"""A node in a process of its own; says on its output what it is told to wait for.

`python -m benchmarks.cluster_node CONFIG`, the options of the log as JSON. A number on its
input is answered once that index is applied; it stops at the end of its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import attrs

from benchmarks.workload import node_config
from dengine_sm import NodeBuilder
from dengine_sm.config import LogSection, NodeConfig, StateMachineSection


def nats_node_config(directory: Path, options: dict[str, Any], backend: str = "file") -> NodeConfig:
    """Return the config of a node on a stream."""
    return attrs.evolve(
        node_config(directory),
        state_machine=StateMachineSection(backend=backend, validate="structure"),
        log=LogSection(engine="nats", options=options),
    )


async def _serve(directory: Path, options: dict[str, Any]) -> None:
    async with NodeBuilder(nats_node_config(directory, options)).build() as node:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await node.handler.wait_applied(int(line))
            print(line.strip(), flush=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asyncio.run(_serve(Path(asked["directory"]), asked["options"]))
