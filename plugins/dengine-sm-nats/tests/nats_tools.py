"""What tests with real servers share: connections, streams, commands that are acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import nats
from dengine_sm_nats.connection import patiently
from dengine_sm_nats.servers import LocalServers
from nats.aio.client import Client
from nats.errors import ConnectionClosedError, NoRespondersError, TimeoutError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig, StreamInfo
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

UNDER_ELECTION = (
    NoStreamResponseError,
    NoRespondersError,
    TimeoutError,
    ServiceUnavailableError,
    ConnectionClosedError,
)

# How long servers may take for what they do at once where nothing else runs.
PATIENCE_S = 60.0

LOG = {
    "name": "dengine",
    "subjects": ["log"],
    "num_replicas": 3,
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_bytes": 64 << 20,
    "deny_delete": True,
    "duplicate_window": 120,
}


async def quiet(_: Exception) -> None:
    """Errors of a connection to a killed server are what these tests are about."""


@contextlib.asynccontextmanager
async def connected(urls: list[str], **options: Any) -> AsyncIterator[Client]:
    client = await nats.connect(
        urls, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=quiet, **options
    )
    try:
        yield client
    finally:
        await client.close()


async def make_stream(js: JetStreamContext, replicas: int = 3, **changes: Any) -> None:
    await add_stream(js, StreamConfig(**{**LOG, "num_replicas": replicas, **changes}))


async def add_stream(js: JetStreamContext, config: StreamConfig) -> None:
    """Make a stream, or find the one that an unanswered request has made."""
    await patiently(lambda: js.add_stream(config), PATIENCE_S)


async def stream_info(client: Client, stream: str = "dengine") -> StreamInfo:
    return await patiently(lambda: client.jetstream().stream_info(stream), PATIENCE_S)


@contextlib.asynccontextmanager
async def without_a_leader(servers: LocalServers) -> AsyncIterator[None]:
    """Kill all but the last of three servers; what is begun inside is refused at first."""
    for index in (0, 1):
        servers.kill(index)
    yield
    await asyncio.sleep(1)
    for index in (0, 1):
        servers.start_one(index)


async def publish(js: JetStreamContext, count: int, data: bytes = b"x") -> int:
    """Publish until that many are acknowledged; return the last sequence."""
    sequence = 0
    for _ in range(count):
        headers = {"Nats-Msg-Id": os.urandom(8).hex()}
        while True:
            try:
                sequence = (await js.publish("log", data, timeout=1, headers=headers)).seq
                break
            except UNDER_ELECTION:
                continue
    return sequence
