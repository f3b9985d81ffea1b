"""Count messages: the entries that each comes to, the same on every node."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import attrs

from dengine_sm import CommitLogError, Entry, EntryBlock, LogId, LogIdRange, SnapshotMark
from dengine_sm_nats.frames import Commands, Frame, Mark, UnreadableMessageError, decode_frame
from dengine_sm_nats.options import LATEST_ARRIVAL_S
from dengine_sm_nats.outbox import Outbox, OwnFrame
from dengine_sm_nats.positions import Position, Positions
from dengine_sm_nats.reader import Message, Reader

UNREADABLE_COMMAND = b"\xff"
"""Stands for a message that is no frame: no CBOR item, so that `kv/1` rejects it (APPLY-7)."""

logger = logging.getLogger("dengine_sm_nats")


@attrs.define
class Items:
    """What messages come to: entries, cut where a snapshot is to be taken."""

    term: int
    first_index: int
    """Of the first entry that is wanted; what is before it was applied earlier."""
    _items: list[Sequence[Entry] | SnapshotMark] = attrs.field(factory=list)
    _entries: EntryBlock | None = None

    def add(self, first_index: int, timestamp_ms: int, payloads: Sequence[bytes]) -> None:
        """Add the entries of one message."""
        applied = self.first_index - first_index
        if applied > 0:
            payloads, first_index = payloads[applied:], self.first_index
        if self._entries is None:
            self._entries = EntryBlock(first_index, self.term)
        self._entries.add(timestamp_ms, payloads)

    def mark(self, index: int) -> None:
        """Add a mark behind an index."""
        if index >= self.first_index - 1:
            self.take()
            self._items.append(SnapshotMark(index))

    def take(self) -> list[Sequence[Entry] | SnapshotMark]:
        """Return what came together, in order."""
        if self._entries is not None:
            self._items.append(self._entries)
            self._entries = None
        return self._items


class Counting:
    """Where a node is in the stream, and what it makes of the next message.

    Args:
        stream: its name.
        term: of every entry.
        start: up to where everything was read.
        positions: of the stream; is given those that are worth keeping.
        outbox: of this node, which is told what came back.
    """

    def __init__(
        self, stream: str, term: int, start: Position, positions: Positions, outbox: Outbox
    ) -> None:
        self._stream = stream
        self._term = term
        self._positions = positions
        self._outbox = outbox
        self._since_number = 0
        self.position = start
        """Up to where everything was read."""
        self.own_mark = 0
        """Index of the last mark that this node has sent."""

    def begin(self, start: Position) -> None:
        """Go on from a position."""
        self.position = start
        self._outbox.pass_over()
        self._since_number = self._outbox.last_number

    def last_log_id(self) -> LogId:
        """Return the id of the newest entry that was read."""
        index = self.position.index
        return LogId(self._term, index) if index else LogId.ZERO

    def take(self, message: Message, frame: Frame | None, items: Items) -> None:
        """Move on by one message.

        Args:
            message: the next one.
            frame: of the message; None counts as one entry that is rejected.
            items: takes the entries and marks that it comes to.

        Raises:
            CommitLogError: the log ends below what was applied.
        """
        before = self.position
        late = isinstance(frame, Commands) and self._refuse_late(frame, message)
        payloads: Sequence[bytes] = ()
        if frame is None or late:
            payloads = (UNREADABLE_COMMAND,)
        elif isinstance(frame, Commands):
            payloads = frame.payloads
        marks = isinstance(frame, Mark) and frame.after == before.mark
        now = self.position = Position(
            message.sequence,
            before.index + len(payloads),
            max(before.timestamp_ms, message.timestamp_ms),
            message.sequence if marks else before.mark,
        )
        if payloads and now.index >= items.first_index:
            items.add(before.index + 1, now.timestamp_ms, payloads)
        if isinstance(frame, Mark) and marks:
            items.mark(now.index)
            self._note_mark(frame)
        if isinstance(frame, OwnFrame) and self._outbox.owns(frame):
            if not payloads:
                self._refuse_short_log(frame.number, now.index, items.first_index)
            ids = LogIdRange(self._term, before.index + 1, len(payloads))
            self._outbox.came_back(frame.number, ids)

    def _note_mark(self, mark: Mark) -> None:
        # A snapshot is published with its position.
        self._positions.add(self.position)
        if self._outbox.owns(mark):
            self.own_mark = self.position.index

    def _refuse_late(self, frame: Commands, message: Message) -> bool:
        """Tell whether a message may be a second copy of one that the servers have forgotten.

        Only from what is in the stream, so that all nodes say the same.
        """
        age_s = (message.timestamp_ms - frame.sent_ms) / 1000
        if age_s <= LATEST_ARRIVAL_S:
            return False
        logger.warning(
            "message %d of stream %r arrived %.0f s after it was sent: it counts as one rejected "
            "command",
            message.sequence,
            self._stream,
            age_s,
        )
        if self._outbox.owns(frame):
            self._outbox.refused(
                frame.number,
                CommitLogError(
                    f"{len(frame.payloads)} commands reached the log {age_s:.0f} s after they were "
                    f"sent, expected at most {LATEST_ARRIVAL_S} s: they are rejected, nothing was "
                    "applied"
                ),
            )
        return True

    def _refuse_short_log(self, number: int, index: int, first_index: int) -> None:
        """Refuse to go on when the log has ended below what this node has applied.

        A message that was sent since `follow` was called lies behind all that was committed
        before; older ones are read again when it begins earlier.
        """
        if index < first_index - 1 and number > self._since_number:
            raise CommitLogError(
                f"the state machine is at index {first_index - 1}, but stream "
                f"{self._stream!r} ends at {index}: it has lost what was acknowledged, or "
                "is another one; nothing was applied"
            )


async def frame_of(message: Message, reader: Reader, stream: str) -> Frame | None:
    """Return a message's frame; None when it is none on any server.

    Raises:
        LogGapError: only this copy can be seen, and it cannot be read.
    """
    try:
        return decode_frame(message.data)
    except UnreadableMessageError as exc:
        why = exc
    # It may have been sound when it was published, and be damaged on one replica.
    async for copy in reader.other_copies(message.sequence):
        with contextlib.suppress(UnreadableMessageError):
            frame = decode_frame(copy)
            logger.error(
                "message %d of stream %r is damaged on one server: %s; see "
                "'dengine-sm cluster check'",
                message.sequence,
                stream,
                why,
            )
            return frame
    logger.warning(
        "message %d of stream %r is none of dengine-sm's (%s): it counts as one rejected command",
        message.sequence,
        stream,
        why,
    )
    return None
