"""What tests of the log share: node configurations, logs that are followed, raw messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from dengine_sm_nats import NatsLogOptions
from dengine_sm_nats.log import NatsLog
from dengine_sm_nats.servers import LocalServers
from dengine_sm_nats.stream import subject_of
from nats.aio.client import Client
from nats_tools import connected

from dengine_sm import Entry, NodeConfig
from dengine_sm.config import LogSection, NodeSection, SnapshotSection, StateMachineSection
from dengine_sm.kv import Put, encode_command
from dengine_sm.log.contract import SnapshotMark


@contextlib.contextmanager
def single_server(directory: Path, **settings: Any) -> Iterator[LocalServers]:
    """One server alone, which is up in a moment; streams on it have one replica."""
    with LocalServers(directory, 1, **settings) as servers:
        yield servers


def log_options(
    servers: LocalServers, stream: str, node: str = "", **changes: Any
) -> dict[str, Any]:
    return {
        "servers": list(servers.urls),
        "monitoring": list(servers.monitoring),
        "stream": stream,
        "node": node,
        "replicas": servers.count,
        # Servers put it aside for each stream at once.
        "max_bytes": 64 << 20,
        **changes,
    }


def node_config(
    directory: Path,
    servers: LocalServers,
    stream: str,
    *,
    node: str = "n0",
    backend: str = "file",
    keep_log_entries: int = 0,
    node_section: dict[str, Any] | None = None,
    **options: Any,
) -> NodeConfig:
    """A node that takes snapshots only when it is told, in `directory / node`."""
    return NodeConfig(
        node=NodeSection(node, directory / node, **(node_section or {})),
        state_machine=StateMachineSection(backend, validate="structure"),
        log=LogSection("nats", log_options(servers, stream, node, **options)),
        snapshot=SnapshotSection(
            every_entries=None, every_bytes=None, keep_log_entries=keep_log_entries
        ),
    )


def put(key: bytes, value: bytes = b"v") -> bytes:
    return encode_command(Put(key, value))


class Followed:
    """An open log with a follower that keeps everything it is given."""

    def __init__(self, log: NatsLog, first_index: int = 1) -> None:
        self.log = log
        self.entries: list[Entry] = []
        self.marks: list[int] = []
        self.failure: BaseException | None = None
        self._grown = asyncio.Event()
        self.task = asyncio.create_task(self._follow(first_index))

    async def _follow(self, first_index: int) -> None:
        try:
            async with contextlib.aclosing(self.log.follow(first_index)) as items:
                async for item in items:
                    if isinstance(item, SnapshotMark):
                        self.marks.append(item.index)
                    else:
                        self.entries += item
                    self._grown.set()
        except Exception as exc:
            self.failure = exc
            self._grown.set()

    async def until(self, index: int) -> list[Entry]:
        """Return the entries, once the one of an index is among them."""
        async with asyncio.timeout(30):
            while not self.entries or self.entries[-1].index < index:
                if self.failure is not None:
                    raise self.failure
                self._grown.clear()
                await self._grown.wait()
        return self.entries

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


@contextlib.asynccontextmanager
async def followed_log(
    directory: Path,
    servers: LocalServers,
    stream: str,
    node: str = "n0",
    *,
    first_index: int = 1,
    **options: Any,
) -> AsyncIterator[Followed]:
    log = NatsLog(directory / node, NatsLogOptions(**log_options(servers, stream, node, **options)))
    await log.open()
    followed = Followed(log, first_index)
    try:
        yield followed
    finally:
        await followed.end()
        await log.close()


@contextlib.asynccontextmanager
async def client_of(servers: LocalServers) -> AsyncIterator[Client]:
    async with connected(list(servers.urls)) as client:
        yield client


async def publish_raw(servers: LocalServers, stream: str, messages: Sequence[bytes]) -> None:
    """Publish as somebody else who knows the subject."""
    async with client_of(servers) as client:
        for message in messages:
            await client.jetstream().publish(subject_of(stream), message)


def shape(entries: Sequence[Entry]) -> list[tuple[int, bytes]]:
    return [(entry.index, entry.data) for entry in entries]
