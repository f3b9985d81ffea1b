"""Read every server's own copy of the stream, and compare them message by message.

A server tells what it lost only when it has noticed, and it notices a damaged byte when it
reads it. A consumer without replicas reads the copy of the server it lives on; which one that
is, the servers draw, so consumers are made until each has been drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import google_crc32c
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, StreamInfo

from dengine_sm_nats.checks import Finding, damaged_copy
from dengine_sm_nats.connection import connect, server_errors
from dengine_sm_nats.consumers import drop_consumer, is_status, make_consumer, question_of
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.reader import place_of
from dengine_sm_nats.stream import ask_for_stream

Progress = Callable[[str, int, int], None]
"""Told a server's name, how many messages of its copy were read, and how many there are."""

_MISSING = -1
_MOST_REFUSALS = 5
_SILENCE_S = 5.0
_HEARTBEAT_S = 0.5
_MOST_CONSUMERS_PER_COPY = 12
"""With three copies, the chance that one is not drawn by then is one in two millions."""


@attrs.define
class Copy:
    """What one server holds: a checksum for every sequence."""

    first_sequence: int
    checksums: array[int]
    """CRC32C of each message from `first_sequence` on; -1 where the server gave none."""
    is_complete: bool = False
    """Whether the server gave everything it has."""

    @classmethod
    def empty(cls, first_sequence: int, last_sequence: int) -> Copy:
        """Return a copy of which nothing was read."""
        count = last_sequence - first_sequence + 1
        return cls(first_sequence, array("q", [_MISSING]) * count)

    @property
    def last_sequence(self) -> int:
        """Of the last message that there is to be."""
        return self.first_sequence + len(self.checksums) - 1

    def at(self, sequence: int) -> int:
        """Return the checksum of a message."""
        return self.checksums[sequence - self.first_sequence]


async def survey_copies(
    options: NatsLogOptions, on_progress: Progress = lambda _name, _read, _all: None
) -> list[Finding]:
    """Read and compare all copies; nothing is changed, nodes may go on.

    Raises:
        CommitLogError: the servers do not answer.
    """
    client = await connect(options, "cluster check")
    try:
        with server_errors("read the copies of the stream", "nothing was changed"):
            js = client.jetstream()
            info = await ask_for_stream(js, options)
            copies = await _read_all(client, js, info, on_progress)
            # What was purged meanwhile is missing from those that were read last.
            first = max(1, (await ask_for_stream(js, options)).state.first_seq)
    finally:
        await client.close()
    unread = [
        Finding(
            f"copy of stream {options.stream!r} on {name}",
            "could not be read to its end",
            "a server that answers",
            "What was not read is not checked: try again, or see why it is down.",
        )
        for name, copy in copies.items()
        if not copy.is_complete
    ]
    complete = {name: copy for name, copy in copies.items() if copy.is_complete}
    return unread + compare_copies(complete, options.stream, first, info.state.last_seq)


def compare_copies(
    copies: Mapping[str, Copy], stream: str, first_sequence: int, last_sequence: int
) -> list[Finding]:
    """Tell which servers lack messages that others have, or have another content.

    Args:
        copies: by the server's name.
        stream: which stream.
        first_sequence: of the first message to compare.
        last_sequence: of the last one.
    """
    missing: dict[str, list[int]] = {name: [] for name in copies}
    differing: dict[str, list[int]] = {name: [] for name in copies}
    for sequence in range(first_sequence, last_sequence + 1) if copies else ():
        found = {name: copy.at(sequence) for name, copy in copies.items()}
        if len(set(found.values())) == 1:
            continue
        have = Counter(checksum for checksum in found.values() if checksum != _MISSING)
        (right, votes), *_ = have.most_common(1)
        for name, checksum in found.items():
            if checksum == _MISSING:
                missing[name].append(sequence)
            elif checksum != right or 2 * votes <= have.total():
                differing[name].append(sequence)
    expected = "the messages that the other copies have"
    return [
        damaged_copy(
            name, stream, f"{len(sequences)} {what}, the first is {sequences[0]}", expected
        )
        for what, by_name in (("are missing", missing), ("differ", differing))
        for name, sequences in by_name.items()
        if sequences
    ]


async def _read_all(
    client: Client, js: JetStreamContext, info: StreamInfo, on_progress: Progress
) -> dict[str, Copy]:
    # An empty stream may begin at 0.
    first, last = max(1, info.state.first_seq), info.state.last_seq
    copies = {name: Copy.empty(first, last) for name in _servers_of(info)}
    if info.state.messages == 0:
        return {name: attrs.evolve(copy, is_complete=True) for name, copy in copies.items()}
    refusals = 0
    for _ in range(_MOST_CONSUMERS_PER_COPY * len(copies)):
        if all(copy.is_complete for copy in copies.values()):
            break
        try:
            await _read_drawn(client, js, str(info.config.name), copies, on_progress)
        except (nats.errors.Error, TimeoutError):
            # Such as a consumer that was to live on a server which has just gone.
            refusals += 1
            if refusals == _MOST_REFUSALS:
                raise
    return copies


def _servers_of(info: StreamInfo) -> list[str]:
    """Return which servers have a copy."""
    cluster = info.cluster
    peers = [cluster.leader, *(peer.name for peer in cluster.replicas or ())] if cluster else []
    return [name for name in peers if name]


async def _read_drawn(
    client: Client,
    js: JetStreamContext,
    stream: str,
    copies: dict[str, Copy],
    on_progress: Progress,
) -> None:
    """Read the copy of whichever server is drawn, unless it was read already."""
    any_name, any_copy = next(iter(copies.items()))
    first, last = any_copy.first_sequence, any_copy.last_sequence
    async with _consumer(client, js, stream, first) as (arrived, consumer):
        # A server alone does not say which it is.
        drawn = str(consumer.cluster.leader) if consumer.cluster else any_name
        if drawn in copies and not copies[drawn].is_complete:
            copies[drawn] = copy = Copy.empty(first, last)
            async for read in _read(client, arrived, copy):
                on_progress(drawn, read, len(copy.checksums))


@asynccontextmanager
async def _consumer(
    client: Client, js: JetStreamContext, stream: str, first_sequence: int
) -> AsyncIterator[tuple[asyncio.Queue[Msg], ConsumerInfo]]:
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    subscription = await client.subscribe(
        inbox, cb=arrived.put, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    try:
        info = await make_consumer(js, stream, inbox, first_sequence, heartbeat_s=_HEARTBEAT_S)
        try:
            yield arrived, info
        finally:
            await drop_consumer(client, stream, info.name)
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()


async def _read(client: Client, arrived: asyncio.Queue[Msg], copy: Copy) -> AsyncIterator[int]:
    """Note what a consumer gives; yield how many messages that were.

    The copy stays incomplete when the server falls silent. One that speaks, but has given no
    message for a while, has no more of them: they were all committed before this began.
    """
    last = copy.last_sequence
    loop = asyncio.get_running_loop()
    read, given_s = 0, loop.time()
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                msg = await arrived.get()
        except TimeoutError:
            return
        if is_status(msg):
            if question := question_of(msg):
                await client.publish(question)
            elif loop.time() - given_s > _SILENCE_S:
                break
            continue
        sequence, _ = place_of(msg.reply)
        if sequence <= last:
            copy.checksums[sequence - copy.first_sequence] = google_crc32c.value(msg.data)
            read += 1
            given_s = loop.time()
            yield read
        if sequence >= last:
            break
    copy.is_complete = True
