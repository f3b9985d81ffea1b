"""The commit log `nats`: a JetStream stream that every node follows by itself.

The servers order and store messages; a node counts the commands in them. Whatever a
consumer delivers is committed. No node leads: any may propose, each applies everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nats.js import JetStreamContext

from dengine_sm import (
    CommitLogError,
    Entry,
    LogGapError,
    LogId,
    LogIdRange,
    NotRunningError,
    SnapshotMark,
    SnapshotMetadata,
    StateDivergenceError,
)
from dengine_sm.files import DirectoryLock, make_directories, write_checked_file
from dengine_sm_nats.checks import refuse_lazy_servers
from dengine_sm_nats.clock import StreamClock
from dengine_sm_nats.connection import connect, server_errors
from dengine_sm_nats.counting import Counting, Items, frame_of
from dengine_sm_nats.divergence import StateComparison
from dengine_sm_nats.frames import (
    OVERHEAD_BYTES,
    PER_COMMAND_BYTES,
    Digest,
    added_bytes,
)
from dengine_sm_nats.identity import (
    keep_alarm,
    own_identity,
    refuse_alarm,
    refuse_foreign_directory,
)
from dengine_sm_nats.neighbours import Neighbour, Neighbours, describe_nodes, this_process
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.outbox import Outbox
from dengine_sm_nats.positions import Position, Positions, load_positions
from dengine_sm_nats.published import SnapshotBoard
from dengine_sm_nats.publisher import Publisher
from dengine_sm_nats.reader import Message, Reader
from dengine_sm_nats.room import Room
from dengine_sm_nats.stream import describe_stream, open_stream, subject_of

POSITIONS = "POSITIONS"
_SAVE_EVERY = 1024
"""Messages between two writes of the positions: what a restart may have to count again."""

_CLOSE_S = _DESCRIBE_S = 2.0
_FETCH_PAUSE_S = 0.5

logger = logging.getLogger("dengine_sm_nats")


class NatsLog:
    """A `SharedCommitLog` on a JetStream stream.

    Args:
        directory: owned by this node; holds what was counted, no entries.
        options: see `NatsLogOptions`.
    """

    is_shared = True

    def __init__(self, directory: Path, options: NatsLogOptions | None = None) -> None:
        self.directory = directory
        self.options = options or NatsLogOptions()
        self.appends_in_flight = self.options.appends_in_flight
        self.max_append_bytes = 1 << 20
        self._lock = DirectoryLock(directory)
        self._is_open = False
        self._counting_or_none: Counting | None = None
        self._reader: Reader | None = None
        self._first_index = 1
        self._clock = StreamClock()
        self._saving = asyncio.Lock()
        self._is_behind = False
        self._snapshot_index = 0

    # Life

    async def open(self) -> None:
        """Connect, find or make the stream, and read what was counted earlier."""
        if self._is_open:
            return
        await asyncio.to_thread(self._open_directory)
        try:
            self._client = await connect(self.options, self.options.node or self.directory.name)
            try:
                await self._open_stream()
            except BaseException:
                await self._client.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._is_open = True

    def _open_directory(self) -> None:
        refuse_foreign_directory(self.directory)
        make_directories(self.directory)
        self._lock.acquire()
        try:
            refuse_alarm(self.directory)
            self._identity = own_identity(self.directory)
            self._positions = load_positions(self.directory / POSITIONS)
        except BaseException:
            self._lock.release()
            raise
        self.name = self.options.node or f"{this_process()[0]}-{self._identity.hex()[:6]}"

    async def _open_stream(self) -> None:
        self._js: JetStreamContext = self._client.jetstream()
        # The encoding of a short command takes as much again as the command.
        self.max_append_bytes = (self._client.max_payload - OVERHEAD_BYTES) // 2
        if self.options.sync == "verified":
            await refuse_lazy_servers(self.options)
        self._stream = await open_stream(self._js, self.options)
        self._board = SnapshotBoard(self._js, self.options, self._stream.stream_id)
        await self._board.open()
        self._room = Room(self._js, self.options, self._stream.size_bytes, self.request_snapshot)
        start = self._take_up_counting()
        await self._learn_published()
        self._comparison = StateComparison(self.name, self._identity)
        publisher = Publisher(
            self._client,
            subject_of(self.options.stream),
            attempt_s=self.options.publish_timeout_s,
            outcome_s=self.options.outcome_timeout_s,
        )
        await publisher.open()
        self._outbox = Outbox(
            self._stream.term,
            publisher,
            held=self._counted.newest.sequence,
            position=lambda: self._counting.position,
            on_stored=self._on_stored,
            silence_s=lambda: self._reader.waiting_s if self._reader else 0.0,
            patience_s=self.options.outcome_timeout_s,
        )
        self._counting_or_none = Counting(
            self.options.stream, self._stream.term, start, self._counted, self._outbox
        )
        self._neighbours = Neighbours(self._client, self.options.stream, self._describe_self)
        await self._neighbours.join()

    def _take_up_counting(self) -> Position:
        """Return up to where this node has read the stream."""
        stream = self._stream
        if self._positions is None:
            start = Position(0, stream.base_index, stream.base_timestamp_ms)
            self._positions = Positions(stream.stream_id, [start])
        elif self._positions.stream_id != stream.stream_id:
            raise CommitLogError(
                f"log directory {str(self.directory)!r} has counted another stream "
                f"({self._positions.stream_id}) than {self.options.stream!r} is now "
                f"({stream.stream_id}): it was deleted and made anew, or the servers are others; "
                "remove the node's data directory to have it join the new one; nothing was changed"
            )
        return self._positions.newest

    async def _learn_published(self) -> None:
        """Learn from where the published snapshots let a node count on, with or without them."""
        for one in await self._board.published():
            self._counted.add(one.position)
        self._note_first(self._stream.first_sequence)

    def _note_first(self, first_sequence: int) -> None:
        """Learn where the stream begins."""
        begin = self._counted.at_or_after_sequence(first_sequence - 1)
        # Without a position there, this node cannot count from there: it is beyond all it knows.
        self._first_index = (begin.index if begin else self._counted.newest.index + 1) + 1

    @property
    def _counted(self) -> Positions:
        assert self._positions is not None
        return self._positions

    @property
    def _counting(self) -> Counting:
        assert self._counting_or_none is not None
        return self._counting_or_none

    async def close(self) -> None:
        """Leave the servers; idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        if self._reader is not None:
            self._reader.close()
        await self._neighbours.leave()
        await self._outbox.close()
        await self._room.close()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_S):
                await self._client.close()
        self._counted.add(self._counting.position)
        try:
            await self._save_positions()
        finally:
            self._lock.release()

    async def _save_positions(self) -> None:
        # A thread goes on when who waits for it is cancelled; two must not write at once.
        await asyncio.shield(self._save_in_turn())

    async def _save_in_turn(self) -> None:
        async with self._saving:
            packed = self._counted.pack()
            await asyncio.to_thread(write_checked_file, self.directory / POSITIONS, packed)

    def _require_open(self) -> None:
        if not self._is_open:
            raise NotRunningError(
                f"commit log {self.options.stream!r} is closed; nothing was changed"
            )

    # Appending

    async def append(self, payloads: Sequence[bytes]) -> LogIdRange:
        """Publish commands in one message; return once they were read back."""
        self._require_open()
        if not payloads:
            raise ValueError("append: expected at least one payload")
        self._refuse_too_large(payloads)
        if self._room.is_full:
            await self._room.refuse_full(self._counting.position.index)
        return await self._outbox.send_commands(payloads, self._clock.now_ms())

    def _refuse_too_large(self, payloads: Sequence[bytes]) -> None:
        size_bytes, limit = sum(map(len, payloads)), self._client.max_payload
        room_bytes = limit - OVERHEAD_BYTES - size_bytes
        # The exact sum only when it matters.
        if PER_COMMAND_BYTES * len(payloads) > room_bytes and added_bytes(payloads) > room_bytes:
            raise CommitLogError(
                f"append of {len(payloads)} commands, {size_bytes} bytes: the servers take "
                f"messages of at most {limit} bytes with what goes around the commands "
                "(max_payload in their configuration); nothing was appended"
            )

    async def read_barrier(self) -> int:
        """Publish a message without commands; return the index that was reached with it."""
        self._require_open()
        return await self._outbox.send_barrier()

    async def request_snapshot(self) -> None:
        """Publish a mark."""
        self._require_open()
        await self._outbox.send_mark()

    def _on_stored(self, sequence: int) -> None:
        if self._reader is not None:
            self._reader.expect(sequence)

    # Reading

    def first_index(self) -> int:
        """Return the oldest index from which this node can read on."""
        return self._first_index

    def last_log_id(self) -> LogId:
        """Return the id of the newest entry that this node has read."""
        return self._counting_or_none.last_log_id() if self._counting_or_none else LogId.ZERO

    async def follow(self, first_index: int) -> AsyncIterator[Sequence[Entry] | SnapshotMark]:
        """Yield entries from an index on, and marks between them, until the log is closed."""
        self._require_open()
        start = self._counted.at_or_before_index(first_index - 1)
        if start is None:
            raise LogGapError(
                f"entries from index {first_index} on cannot be counted: this node knows the "
                f"stream {self.options.stream!r} from index {self._first_index} on",
                expected_index=first_index,
                observed_index=self._first_index,
            )
        self._counting.begin(start)
        reader = self._reader = Reader(
            self._client,
            self._js,
            self.options.stream,
            start.sequence + 1,
            self.options.silence_s,
        )
        reader.expect(self._outbox.stored)
        batches = reader.batches()
        try:
            async for batch in batches:
                for item in await self._read(batch, reader, first_index):
                    yield item
                self._refuse_conflict()
        except LogGapError:
            # A snapshot may help, and what is behind it comes back then.
            self._is_behind = True
            raise
        except Exception as exc:
            self._outbox.fail_all(f"reading the log ended ({exc!r})", exc)
            raise
        finally:
            # One that was only forgotten may end after the next one has begun.
            if self._reader is reader:
                self._reader = None
            await batches.aclose()

    def _refuse_conflict(self) -> None:
        other = self._neighbours.conflict
        if other is not None:
            raise CommitLogError(
                f"log.options.node: {self.name!r} is also the id of a node that runs on "
                f"{other.host} as process {other.pid}; expected an id of its own for every node"
            )

    async def _read(
        self, batch: Sequence[Message], reader: Reader, first_index: int
    ) -> list[Sequence[Entry] | SnapshotMark]:
        self._clock.observe(batch[-1].timestamp_ms)
        items = Items(self._stream.term, first_index)
        for message in batch:
            frame = await frame_of(message, reader, self.options.stream)
            self._room.count(message.data)
            self._counting.take(message, frame, items)
            if isinstance(frame, Digest):
                await self._compare(frame)
            if message.sequence % _SAVE_EVERY == 0:
                self._counted.add(self._counting.position)
                await self._save_positions()
        return items.take()

    # Comparing

    async def _compare(self, digest: Digest) -> None:
        try:
            self._comparison.take(digest, nodes=self._neighbours.count())
        except StateDivergenceError as exc:
            await asyncio.to_thread(keep_alarm, self.directory, exc)
            raise

    # Snapshots and purging

    async def purge(self, up_to: LogId) -> None:
        """Drop messages that no node and no published snapshot needs.

        Kept is what the older published snapshot needs, and what any node needs that was
        heard within `forget_node_s`; also when the caller needs less. Of a full stream only
        what the newest published snapshot needs: the others install it.
        """
        self._require_open()
        if up_to.index > self._counting.position.index:
            raise CommitLogError(
                f"purge up to {up_to}: this node has read the log up to {self.last_log_id()}; "
                "nothing was dropped"
            )
        published = await self._board.published()
        await self._room.measure()
        is_full = self._room.is_full
        if len(published) < (1 if is_full else 2):
            return
        for one in published:
            if one.position <= self._counting.position:
                self._counted.add(one.position)
        needed = published[0 if is_full else -1].position
        needs = [up_to.index, needed.index]
        if not is_full:
            neighbours = self._neighbours.heard_within(self.options.forget_node_s)
            needs += [neighbour.index for neighbour in neighbours]
        before = self._counted.at_or_before_index(min(needs))
        # Not beyond that snapshot's position: others count on from there.
        last = min(before.sequence, needed.sequence) if before else 0
        if not last:
            return
        sequence = last + 1
        with server_errors("purge the stream", "nothing was dropped"):
            await self._js.purge_stream(self.options.stream, seq=sequence)
        self._counted.forget_before(sequence)
        await self._save_positions()
        self._note_first(sequence)
        if is_full:
            await self._room.measure()

    async def advance_to(self, log_id: LogId) -> None:
        """Refuse a snapshot that this node cannot place in the stream; else do nothing."""
        self._require_open()
        start, stream = self._counted.at_or_before_index(log_id.index), self._stream
        is_ours = log_id.term == stream.term
        is_seed = log_id.term < stream.term and log_id.index == stream.base_index
        if start is None or not (is_ours or is_seed):
            raise CommitLogError(
                f"{log_id} is not a place in stream {self.options.stream!r} that this node knows; "
                "a state from elsewhere begins a stream of its own: see 'dengine-sm cluster seed'"
            )

    async def publish_snapshot(self, metadata: SnapshotMetadata, archive: Path) -> None:
        """Tell the checksum to all nodes; upload the archive unless another node has."""
        self._require_open()
        last = metadata.last_included
        position = self._counted.at_or_before_index(last.index)
        digest = Digest(
            self.name, self._identity, last.term, last.index, metadata.format, metadata.checksum
        )
        await self._outbox.store(digest)
        before, self._snapshot_index = self._snapshot_index, last.index
        if position is None:
            return
        # One upload for all: by the node that asked; by any, if the one before is missing.
        published = await self._board.published()
        newest = published[0].last_included.index if published else 0
        if last.index == self._counting.own_mark or newest < before:
            await self._board.publish(metadata, archive, position, self.name)

    async def fetch_snapshot(self, newer_than: LogId, directory: Path) -> Path | None:
        """Download the newest published archive, and learn its position."""
        self._require_open()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.options.outcome_timeout_s
        # What was purged is in a snapshot: if none can be had, the servers are in trouble.
        needed = self._is_behind or newer_than.index + 1 < self._first_index
        while True:
            path = await self._fetch_newest(newer_than, directory)
            if path is not None or not needed or loop.time() >= deadline_s:
                return path
            await asyncio.sleep(_FETCH_PAUSE_S)

    async def _fetch_newest(self, newer_than: LogId, directory: Path) -> Path | None:
        for published in await self._board.published():
            if published.last_included <= newer_than:
                return None
            try:
                path = await self._board.fetch(published, directory)
            except CommitLogError as exc:
                # It may just have been replaced, or be damaged; the older one may do.
                logger.warning("%s; trying another one", exc)
                continue
            self._counted.add(published.position)
            self._note_first(self._stream.first_sequence)
            self._is_behind = False
            return path
        return None

    # Health

    def _describe_self(self) -> Neighbour:
        host, pid = this_process()
        position = self._counting.position
        return Neighbour(
            self.name, self._outbox.sender, position.index, position.sequence, host, pid
        )

    async def describe(self) -> Mapping[str, Any]:
        """Return the stream, its replicas, and the nodes that follow it."""
        self._require_open()
        with server_errors("ask the servers", "nothing was changed"):
            async with asyncio.timeout(_DESCRIBE_S):
                info = await self._js.stream_info(self.options.stream)
        nodes = {
            self._describe_self(): 0.0,
            **self._neighbours.heard_within(self.options.forget_node_s),
        }
        return {
            **describe_stream(info),
            "consumer_restarts": self._reader.restarts if self._reader else 0,
            "nodes": describe_nodes(nodes, info.state.last_seq),
        }
