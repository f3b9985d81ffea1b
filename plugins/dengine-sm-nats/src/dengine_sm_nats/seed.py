"""Begin a new log with a state from elsewhere: a snapshot archive, such as a backup."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

import attrs
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from dengine_sm import CommitLogError, LogId
from dengine_sm.snapshot import (
    PORTABLE_FORMAT,
    ArchiveHeader,
    read_portable,
    unpack_archive,
    verify_archive,
)
from dengine_sm_nats.checks import refuse_lazy_servers
from dengine_sm_nats.connection import connect, patiently, server_errors
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.positions import Position
from dengine_sm_nats.published import SnapshotBoard
from dengine_sm_nats.stream import LogStream, ask_for_stream, log_stream, stream_config

_NODE = "seed"

TERMS_APART = 1 << 20
"""How far the term of a new stream lies above its seed's. The log that the seed comes from may go
on and raise its own term, at every restart: its entries must not be taken for the stream's."""


@attrs.frozen
class Seeded:
    """A stream that was begun with a state."""

    stream: str
    term: int
    """Of the entries to come."""
    last_included: LogId
    """What the state holds; the first entry has the next index."""
    clock_ms: int
    """Log time goes on from here."""


async def seed_stream(options: NatsLogOptions, archive: Path) -> Seeded:
    """Make a new stream that begins behind a snapshot, for nodes that have nothing yet.

    Args:
        options: of the nodes' logs; `node` is not looked at.
        archive: of any log; it stays where it is.

    Raises:
        SnapshotError: the archive is damaged; nothing was changed.
        CommitLogError: the stream exists, or the servers refused; nothing is left of it.
        StorageError: the disk refused; nothing was changed.
    """
    header = await asyncio.to_thread(verify_archive, archive)
    clock_ms = await asyncio.to_thread(_clock_of, archive, header)
    client = await connect(options, _NODE)
    try:
        if options.sync == "verified":
            await refuse_lazy_servers(options)
        js = client.jetstream()
        stream = await _make_new(js, options, header.metadata.last_included, clock_ms)
        try:
            await _publish(js, options, stream, header, archive)
        except BaseException:
            # A node that joined would wait for a snapshot that never comes.
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await js.delete_stream(options.stream)
            raise
    finally:
        await client.close()
    return Seeded(options.stream, stream.term, header.metadata.last_included, clock_ms)


def _clock_of(archive: Path, header: ArchiveHeader) -> int:
    """Return the log's clock in a state; now, when only its own backend could tell."""
    if header.metadata.format != PORTABLE_FORMAT:
        return time.time_ns() // 1_000_000
    with tempfile.TemporaryDirectory(
        prefix="dengine-sm-seed-", ignore_cleanup_errors=True
    ) as directory:
        snapshot = Path(directory) / "snapshot"
        unpack_archive(archive, snapshot)
        return read_portable(snapshot).clock_ms


async def _make_new(
    js: JetStreamContext, options: NatsLogOptions, last: LogId, clock_ms: int
) -> LogStream:
    name = options.stream
    config = stream_config(
        options, term=last.term + TERMS_APART, base_index=last.index, base_timestamp_ms=clock_ms
    )
    with server_errors(f"make the stream {name!r}", "nothing was changed"):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            info = await ask_for_stream(js, options)
            raise CommitLogError(
                f"stream {name!r} exists and holds {info.state.messages} messages: expected a name "
                "that is free, since a state from elsewhere begins a log of its own; nothing was "
                "changed"
            )
        # Asked twice, servers tell of the one with this id in its metadata, and refuse another.
        return log_stream(await patiently(lambda: js.add_stream(config), options.outcome_timeout_s))


async def _publish(
    js: JetStreamContext,
    options: NatsLogOptions,
    stream: LogStream,
    header: ArchiveHeader,
    archive: Path,
) -> None:
    board = SnapshotBoard(js, options, stream.stream_id)
    await board.open()
    position = Position(0, stream.base_index, stream.base_timestamp_ms)
    await board.publish(header.metadata, archive, position, _NODE)
