"""What tests with real servers share: connections, streams, commands that are acknowledged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import ConnectionClosedError, NoRespondersError, TimeoutError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

UNDER_ELECTION = (
    NoStreamResponseError,
    NoRespondersError,
    TimeoutError,
    ServiceUnavailableError,
    ConnectionClosedError,
)

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
    await js.add_stream(StreamConfig(**{**LOG, "num_replicas": replicas, **changes}))


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
