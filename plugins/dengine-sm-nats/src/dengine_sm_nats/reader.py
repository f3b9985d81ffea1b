"""Read the stream's messages in order, each exactly once, whatever becomes of the servers.

A consumer lives on one server, reads that server's replica, and dies with it. It speaks
every second, with messages or a heartbeat. Silence, a lost delivery or a missing message
have it made anew, on a server that the cluster draws; a message that no server has ends
the reading. Nothing is ever skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import attrs
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from dengine_sm import LogGapError
from dengine_sm_nats.consumers import drop_consumer, is_status, make_consumer, question_of

_HEARTBEAT_S = 1.0
_RETRY_PAUSE_S = 0.1
_MOST_HOLES = 12
"""Consumers that may show the same hole; with one bad replica of three, all of them landing
there has a chance of one in half a million."""
_COPIES = 16
"""Copies of an unreadable message to look at; with one bad replica of three, all of them being
that one has a chance of one in forty million."""
_MOST_COPIES_ASKED = 100
_SERVER_ERRORS = (nats.errors.Error, TimeoutError, OSError)

logger = logging.getLogger("dengine_sm_nats")


@attrs.frozen
class Message:
    """A message of the stream."""

    sequence: int
    timestamp_ms: int
    """When the stream's leader took it; the same on every replica."""
    data: bytes


@attrs.frozen
class _Question:
    """The server asks whether what it sent before has been taken."""

    reply: str


class _RestartError(Exception):
    """This consumer is of no more use."""


class Reader:
    """Reads one stream from a sequence on.

    Args:
        client: connected.
        js: of the client.
        stream: name of the stream.
        next_sequence: of the first message wanted, from 1.
        silence_s: seconds without a word until the consumer is made anew.
    """

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        stream: str,
        next_sequence: int,
        silence_s: float,
    ) -> None:
        self._client = client
        self._js = js
        self._stream = stream
        self._next = next_sequence
        self._silence_s = silence_s
        self._subscription: Subscription | None = None
        self._consumer: str | None = None
        self._server: str | None = None
        self._arrived: deque[Message | _Question] = deque()
        self._wake = asyncio.Event()
        self._heard_s = self._progress_s = 0.0
        self._delivered = 0
        self._expected = 0
        self._holes = 0
        self._closed = False
        self._waiting_since_s: float | None = None
        self.restarts = 0
        """Consumers made after the first."""

    def expect(self, sequence: int) -> None:
        """Say that a message is known to be in the stream, so that its absence is noticed."""
        self._expected = max(self._expected, sequence)

    def close(self) -> None:
        """End the reading."""
        self._closed = True
        self._wake.set()

    @property
    def waiting_s(self) -> float:
        """For how long somebody has waited for the next message; 0 while nobody does."""
        if self._waiting_since_s is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._waiting_since_s

    async def batches(self) -> AsyncGenerator[Sequence[Message]]:
        """Yield messages as they come, in order and without a gap, until it is closed.

        Raises:
            LogGapError: the next message was purged, or no server has it.
        """
        loop = asyncio.get_running_loop()
        self._waiting_since_s = loop.time()
        try:
            while not self._closed:
                await self._begin()
                try:
                    while not self._closed:
                        await self._wait()
                        if batch := await self._take():
                            self._waiting_since_s = None
                            yield batch
                            self._waiting_since_s = loop.time()
                except _RestartError as exc:
                    self.restarts += 1
                    logger.warning(
                        "stream %r at sequence %d: %s; reading on from another consumer",
                        self._stream,
                        self._next,
                        exc,
                    )
        finally:
            await self._end()

    # The consumer's life

    async def _begin(self) -> None:
        while not self._closed:
            await self._end()
            try:
                await self._create()
            except _SERVER_ERRORS as exc:
                logger.debug("no consumer on stream %r yet: %s", self._stream, exc)
                await asyncio.sleep(_RETRY_PAUSE_S)
            else:
                return

    async def _create(self) -> None:
        self._arrived.clear()
        self._delivered = 0
        inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(
            inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        info = await make_consumer(
            self._js, self._stream, inbox, self._next, heartbeat_s=_HEARTBEAT_S
        )
        self._consumer = info.name
        self._server = info.cluster.leader if info.cluster else None
        self._heard_s = self._progress_s = asyncio.get_running_loop().time()

    async def _end(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, None
        with contextlib.suppress(*_SERVER_ERRORS):
            if subscription is not None:
                await subscription.unsubscribe()
        if consumer is not None and self._client.is_connected:
            # It would go away by itself, some seconds later.
            with contextlib.suppress(*_SERVER_ERRORS):
                await drop_consumer(self._client, self._stream, consumer)

    # What arrives

    async def _on_message(self, msg: Msg) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        if is_status(msg):
            self._on_status(msg)
        else:
            sequence, timestamp_ms = place_of(msg.reply)
            self._arrived.append(Message(sequence, timestamp_ms, msg.data))
        self._wake.set()

    def _on_status(self, msg: Msg) -> None:
        if question := question_of(msg):
            self._arrived.append(_Question(question))
        if not msg.reply:
            # A heartbeat.
            headers = msg.headers or {}
            self._delivered = int(headers.get("Nats-Last-Stream", "0"))

    async def _wait(self) -> None:
        """Wait until something arrived, or raise when this consumer says nothing more."""
        loop = asyncio.get_running_loop()
        while not self._arrived and not self._closed:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._silence_s):
                    await self._wake.wait()
            if self._arrived or self._closed:
                return
            now_s = loop.time()
            if now_s - self._heard_s >= self._silence_s:
                raise _RestartError(f"nothing was heard for {self._silence_s} s")
            if self._delivered >= self._next:
                raise _RestartError(f"deliveries up to {self._delivered} were lost")
            if self._expected >= self._next and now_s - self._progress_s >= self._silence_s:
                raise _RestartError(f"message {self._expected} is known, but not delivered")

    async def _take(self) -> Sequence[Message]:
        """Return what is next in order; answer the server's questions on the way."""
        batch: list[Message] = []
        while self._arrived:
            item = self._arrived[0]
            if isinstance(item, _Question):
                if batch:
                    # Its answer says that what came before has been taken.
                    break
                self._arrived.popleft()
                with contextlib.suppress(*_SERVER_ERRORS):
                    await self._client.publish(item.reply)
                continue
            if item.sequence > self._next:
                if not batch:
                    await self._on_jump(item.sequence)
                break
            self._arrived.popleft()
            if item.sequence == self._next:
                batch.append(item)
                self._next += 1
        if batch:
            self._holes = 0
            self._progress_s = asyncio.get_running_loop().time()
        return batch

    async def _on_jump(self, sequence: int) -> None:
        """Find out why messages are missing."""
        try:
            first = (await self._js.stream_info(self._stream)).state.first_seq
        except _SERVER_ERRORS as exc:
            raise _RestartError(f"messages before {sequence} are missing") from exc
        if first > self._next:
            raise LogGapError(
                f"messages {self._next} to {first - 1} of stream {self._stream!r} were purged",
                expected_index=self._next,
                observed_index=first,
            )
        self._holes += 1
        if self._holes > _MOST_HOLES:
            raise LogGapError(
                f"message {self._next} of stream {self._stream!r} is on none of the servers that "
                f"were asked {_MOST_HOLES} times (the last one: {self._server}); its replicas are "
                "damaged: see 'dengine-sm cluster check'",
                expected_index=self._next,
                observed_index=sequence,
            )
        await asyncio.sleep(_RETRY_PAUSE_S)
        raise _RestartError(
            f"server {self._server} delivers {sequence}: it has lost what is between, or the "
            "delivery was; 'dengine-sm cluster check' tells which"
        )

    async def other_copies(self, sequence: int) -> AsyncIterator[bytes]:
        """Yield a message as replicas that are drawn at random give it, until all have been asked.

        Raises:
            LogGapError: too few of them answered.
        """
        answers = 0
        for _ in range(_MOST_COPIES_ASKED):
            try:
                message = await self._js.get_msg(self._stream, sequence, direct=True)
            except _SERVER_ERRORS:
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            yield message.data or b""
            answers += 1
            if answers == _COPIES:
                return
        raise LogGapError(
            f"message {sequence} of stream {self._stream!r} is not readable, and {answers} of "
            f"{_COPIES} times a server answered that was asked for its copy; without them it is "
            "not known whether only this copy is damaged",
            expected_index=sequence,
        )


def place_of(reply: str) -> tuple[int, int]:
    """Return sequence and milliseconds from a delivery's reply subject.

    `$JS.ACK.STREAM.CONSUMER.DELIVERED.SEQ.CSEQ.NANOSECONDS.PENDING`; newer servers put domain
    and account behind ACK. Source: NATS ADR-15.
    """
    tokens = reply.split(".")
    at = 5 if len(tokens) < 11 else 7
    return int(tokens[at]), int(tokens[at + 2]) // 1_000_000
