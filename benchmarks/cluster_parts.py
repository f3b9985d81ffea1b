"""Three servers and the nodes on them, and what publishes to them without a node."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs

from benchmarks.cluster_node import nats_node_config
from dengine_sm import ConfigError, Node, NodeBuilder

STREAM = "bench"
IN_FLIGHT = 16
"""Messages on their way at once, of a node and of the bare program."""
_READY_S = 60.0


def missing() -> str:
    """Return why there can be no cluster here; empty when there can."""
    if importlib.util.find_spec("dengine_sm_nats") is None:
        return "dengine-sm-nats is not installed"
    from dengine_sm_nats.servers import find_server

    try:
        find_server()
    except ConfigError as exc:
        return str(exc)
    return ""


@contextmanager
def three_servers(directory: Path) -> Iterator[Any]:
    """Run three servers that sync before they acknowledge."""
    from dengine_sm_nats.servers import LocalServers

    try:
        # Room for the node's stream and the bare program's, both of the default size.
        with LocalServers(directory, sync_always=True, max_store_bytes=32 << 30) as servers:
            yield servers
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def log_options(servers: Any, name: str) -> dict[str, Any]:
    """Return the options of a node's log."""
    return {
        "servers": servers.urls,
        "monitoring": servers.monitoring,
        "stream": STREAM,
        "node": name,
    }


def make_node(
    servers: Any, directory: Path, name: str, backend: str = "file", **section: Any
) -> Node:
    """Return a node in this process; `section` changes its `[node]`."""
    config = nats_node_config(directory, log_options(servers, name), backend)
    config = attrs.evolve(config, node=attrs.evolve(config.node, **section))
    return NodeBuilder(config).build()


class Replica:
    """A node in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, servers: Any, directory: Path, name: str) -> Replica:
        asked = {"directory": str(directory), "options": log_options(servers, name)}
        replica = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "benchmarks.cluster_node", json.dumps(asked)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
        await replica._hear("ready")
        return replica

    async def _hear(self, expected: str) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(_READY_S):
            line = (await self._process.stdout.readline()).decode().strip()
        if line != expected:
            raise RuntimeError(f"benchmarks.cluster_node: expected {expected!r}, observed {line!r}")

    async def wait_applied(self, index: int) -> None:
        """Return when the replica has applied an index."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % index)
        await self._hear(str(index))

    async def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_READY_S):
                await self._process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def replicas(servers: Any, directory: Path, count: int) -> AsyncIterator[list[Replica]]:
    """Run nodes in processes of their own."""
    running: list[Replica] = []
    try:
        for number in range(count):
            name = f"replica-{number}"
            running.append(await Replica.start(servers, directory / name, name))
        yield running
    finally:
        for replica in running:
            await replica.stop()


@attrs.frozen
class Traffic:
    """How many commands and messages a stream held at two moments."""

    commands: int
    messages: int

    @classmethod
    async def of(cls, node: Node) -> Traffic:
        log: Any = node._log  # what `describe` tells is public, the way to it is not
        return cls(node.handler.last_applied.index, (await log.describe())["last_sequence"])

    def mean_since(self, before: Traffic) -> int:
        """Return the mean number of commands per message, at least 1."""
        messages = max(1, self.messages - before.messages)
        return max(1, round((self.commands - before.commands) / messages))


class BarePublisher:
    """nats-py with one subscription for all answers: what nobody can do without.

    Publishes to a stream of its own, of the same shape, so that no node applies what it sends.
    """

    def __init__(self, servers: Any) -> None:
        self._servers = servers

    async def __aenter__(self) -> BarePublisher:
        import nats
        from dengine_sm_nats.options import NatsLogOptions
        from dengine_sm_nats.stream import stream_config, subject_of

        self._client = await nats.connect(self._servers.urls)
        options = NatsLogOptions(servers=self._servers.urls, stream="bare")
        await self._client.jetstream().add_stream(stream_config(options))
        self._subject = subject_of(options.stream)
        self._inbox = self._client.new_inbox()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._sent = 0
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def _on_answer(self, message: Any) -> None:
        self._waiting.pop(message.subject.rpartition(".")[2]).set_result(message.data)

    async def _publish(self, data: bytes) -> int:
        self._sent += 1
        token = str(self._sent)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        await self._client.publish(
            self._subject,
            data,
            reply=f"{self._inbox}.{token}",
            headers={"Nats-Msg-Id": f"bare:{token}"},
        )
        return int(json.loads(await answer)["seq"])

    async def rate(self, payloads: Sequence[bytes], size: int, in_flight: int = IN_FLIGHT) -> float:
        """Publish the frames of batches of a size; return commands per second."""
        frames = iter(_frames(payloads, size))

        async def work() -> None:
            for frame in frames:
                await self._publish(frame)

        start = perf_counter()
        await asyncio.gather(*[work() for _ in range(in_flight)])
        return len(payloads) / (perf_counter() - start)


def _frames(payloads: Sequence[bytes], size: int) -> list[bytes]:
    from dengine_sm_nats.frames import Commands, encode_frame

    now_ms = time.time_ns() // 1_000_000
    return [
        encode_frame(Commands(bytes(8), number, now_ms, payloads[first : first + size]))
        for number, first in enumerate(range(0, len(payloads), size))
    ]
