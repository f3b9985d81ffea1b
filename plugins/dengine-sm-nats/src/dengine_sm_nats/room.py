"""How much the stream holds, and the end of it: commands are refused before the servers do.

The last eighth is for what makes room again and lets nodes start and read: a mark that the
servers refuse would never be followed by a purge.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nats.js import JetStreamContext

from dengine_sm import CommitLogError, DEngineError
from dengine_sm_nats.connection import server_errors
from dengine_sm_nats.options import NatsLogOptions

_MESSAGE_BYTES = 120
"""About what the servers store with a message beside its data."""

logger = logging.getLogger("dengine_sm_nats")


class Room:
    """The size of one stream, counted as messages are read, and asked for when it matters.

    Args:
        js: of a connected client.
        options: of the log.
        size_bytes: of the stream now.
        request_snapshot: has all nodes take one.
    """

    def __init__(
        self,
        js: JetStreamContext,
        options: NatsLogOptions,
        size_bytes: int,
        request_snapshot: Callable[[], Awaitable[None]],
    ) -> None:
        self._js = js
        self._stream = options.stream
        self._most_bytes = options.max_bytes - options.max_bytes // 8
        self._size_bytes = size_bytes
        self._request_snapshot = request_snapshot
        self._asked_index = 0
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether commands are refused, as far as is known."""
        return self._size_bytes >= self._most_bytes

    def count(self, data: bytes) -> None:
        """Count a message that was read."""
        self._size_bytes += len(data) + _MESSAGE_BYTES

    async def measure(self) -> None:
        """Ask the servers.

        Raises:
            CommitLogError: they did not answer.
        """
        with server_errors("ask for the stream's size", "nothing was changed"):
            info = await self._js.stream_info(self._stream)
        self._size_bytes = info.state.bytes

    async def refuse_full(self, index: int) -> None:
        """Refuse commands unless a purge has made room; have the nodes take a snapshot.

        Args:
            index: of the last entry read; a snapshot is asked for once at each.

        Raises:
            CommitLogError: the stream is full.
        """
        await self.measure()
        if not self.is_full:
            return
        if index > self._asked_index and (self._asking is None or self._asking.done()):
            self._asked_index = index
            self._asking = asyncio.create_task(self._ask())
        raise CommitLogError(
            f"stream {self._stream!r} is full: {self._size_bytes} bytes, it takes commands up to "
            f"{self._most_bytes} (7/8 of log.options.max_bytes); nothing was appended; it takes "
            "them again once a snapshot lets it be purged"
        )

    async def _ask(self) -> None:
        try:
            await self._request_snapshot()
        except DEngineError as exc:
            logger.warning("stream %r is full, and no snapshot: %s", self._stream, exc)

    async def close(self) -> None:
        """Wait for what was asked."""
        if self._asking is not None:
            await asyncio.wait((self._asking,))
