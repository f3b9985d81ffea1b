"""What this node has sent, until it reads it back from the stream.

The servers' answer tells a message's sequence, not the index of its first command: that is
known when it comes back. A message that comes back is in the log, whatever became of the
answer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import attrs

from dengine_sm import CommitLogError, LogIdRange, ProposalOutcomeUnknown
from dengine_sm_nats.frames import Frame, encode_frame
from dengine_sm_nats.publisher import Publisher


@attrs.define(eq=False)
class _Sent:
    """A message that was not read back yet."""

    read_back: asyncio.Future[LogIdRange]
    length: int
    """Number of commands in it."""
    sequence: int | None = None
    """In the stream, once the servers have told."""

    def fail(self, error: CommitLogError) -> None:
        if not self.read_back.done():
            self.read_back.set_exception(error)
            # A caller that was cancelled leaves nobody to look at it.
            self.read_back.exception()


class Outbox:
    """The messages of one start of a node.

    Args:
        sender: drawn for this start.
        publisher: open.
        on_stored: told the sequence of every message that the servers have.
    """

    def __init__(
        self, sender: bytes, publisher: Publisher, on_stored: Callable[[int], None]
    ) -> None:
        self.sender = sender
        self._publisher = publisher
        self._on_stored = on_stored
        self._numbers = itertools.count(1)
        self._sent: dict[int, _Sent] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._read_to = 0

    async def send(self, make: Callable[[int], Frame], length: int = 0) -> LogIdRange:
        """Send a message; return once it was read back.

        Args:
            make: returns the message with its number.
            length: commands in it.

        Returns:
            The ids of its commands; of a message without any, `last_index` is the index that
            was reached with it.

        Raises:
            CommitLogError: it is not in the log.
            ProposalOutcomeUnknown: it may or may not be.
        """
        number = next(self._numbers)
        message = encode_frame(make(number))
        sent = _Sent(asyncio.get_running_loop().create_future(), length)
        self._sent[number] = sent
        task = asyncio.create_task(self._publish(message, number, sent))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return await asyncio.shield(sent.read_back)

    async def store(self, make: Callable[[int], Frame]) -> None:
        """Send a message; return once the servers have it.

        Raises:
            CommitLogError: as for `send`.
        """
        number = next(self._numbers)
        await self._publisher.publish(encode_frame(make(number)), self._id_of(number))

    def _id_of(self, number: int) -> str:
        return f"{self.sender.hex()}:{number}"

    async def _publish(self, message: bytes, number: int, sent: _Sent) -> None:
        try:
            sent.sequence = await self._publisher.publish(message, self._id_of(number))
        except CommitLogError as exc:
            sent.fail(exc)
            self._sent.pop(number, None)
            return
        self._on_stored(sent.sequence)
        if sent.sequence <= self._read_to:
            self._fail_passed(number, sent)

    @property
    def stored(self) -> int:
        """Greatest sequence that the servers have told and that was not read back."""
        return max((sent.sequence or 0 for sent in self._sent.values()), default=0)

    def came_back(self, number: int, ids: LogIdRange) -> None:
        """Note that a message of this sender was read."""
        sent = self._sent.pop(number, None)
        if sent is not None and not sent.read_back.done():
            sent.read_back.set_result(ids)

    def refused(self, number: int, error: CommitLogError) -> None:
        """Note that a message of this sender was read, and counts as rejected."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            sent.fail(error)

    def passed(self, sequence: int) -> None:
        """Note that everything up to a sequence was read, or is in an installed snapshot."""
        self._read_to = sequence

    def pass_over(self, sequence: int) -> None:
        """Fail what is in the part of the log that a snapshot was installed over."""
        self._read_to = sequence
        for number, sent in list(self._sent.items()):
            if sent.sequence is not None and sent.sequence <= sequence:
                self._fail_passed(number, sent)

    def _fail_passed(self, number: int, sent: _Sent) -> None:
        self._sent.pop(number, None)
        sent.fail(
            ProposalOutcomeUnknown(
                f"{sent.length} commands are committed as message {sent.sequence}, but this node "
                "installed a snapshot over it and does not know their results"
            )
        )

    def fail_all(self, why: str) -> None:
        """Fail what was not read back."""
        sent, self._sent = self._sent, {}
        for one in sent.values():
            one.fail(
                ProposalOutcomeUnknown(
                    f"{why} before {one.length} commands were read back; they may be committed"
                )
            )

    async def close(self) -> None:
        """Stop sending; what was not answered has an unknown outcome."""
        self._publisher.close()
        if self._sending:
            await asyncio.wait(self._sending)
        self.fail_all("the commit log was closed")
