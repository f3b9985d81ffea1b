"""What this node has sent, until it reads it back from the stream.

The servers' answer tells a message's sequence, not the index of its first command: that is
known when it comes back. A message that comes back is in the log, whatever became of the
answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs

from dengine_sm import CommitLogError, LogIdRange, ProposalOutcomeUnknown
from dengine_sm_nats.frames import Barrier, Commands, Digest, Mark, encode_frame
from dengine_sm_nats.positions import Position
from dengine_sm_nats.publisher import Publisher

OwnFrame: TypeAlias = Commands | Barrier | Mark


@attrs.define(eq=False)
class _Sent:
    """A message that was not read back yet."""

    read_back: asyncio.Future[LogIdRange]
    length: int
    """Number of commands in it."""
    is_barrier: bool
    sequence: int | None = None
    """In the stream, once the servers have told."""

    def fail(self, error: Exception) -> None:
        if not self.read_back.done():
            self.read_back.set_exception(error)
            # A caller that was cancelled leaves nobody to look at it.
            self.read_back.exception()


class Outbox:
    """The messages of one start of a node.

    Args:
        term: of the stream.
        publisher: open.
        held: a sequence that the stream has held before.
        position: returns up to where everything was read.
        on_stored: told the sequence of every message that the servers have.
        silence_s: returns for how long nothing has been delivered to a reader that waits.
        patience_s: such a silence after which nothing is waited for.
    """

    def __init__(
        self,
        term: int,
        publisher: Publisher,
        *,
        held: int,
        position: Callable[[], Position],
        on_stored: Callable[[int], None],
        silence_s: Callable[[], float],
        patience_s: float,
    ) -> None:
        self.sender = secrets.token_bytes(8)
        """Drawn for this start."""
        self._term = term
        self._publisher = publisher
        self._held = held
        self._position = position
        self._on_stored = on_stored
        self._silence_s = silence_s
        self._patience_s = patience_s
        self._check: asyncio.TimerHandle | None = None
        self.last_number = 0
        """Of the last message that was begun."""
        self._sent: dict[int, _Sent] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def send_commands(self, payloads: Sequence[bytes], sent_ms: int) -> LogIdRange:
        """Send commands in one message; return their ids once it was read back.

        Args:
            payloads: the commands.
            sent_ms: now, by the stream's clock.

        Raises:
            CommitLogError: it is not in the log.
            ProposalOutcomeUnknown: it may or may not be.
        """
        return await self._send(Commands(self.sender, self._next(), sent_ms, payloads))

    async def send_barrier(self) -> int:
        """Send a barrier; return the index that was reached with it.

        Raises:
            CommitLogError: as for commands.
        """
        return (await self._send(Barrier(self.sender, self._next()))).last_index

    async def send_mark(self) -> None:
        """Send a mark behind the last one that counted.

        Raises:
            CommitLogError: as for commands.
        """
        await self._send(Mark(self.sender, self._next(), after=self._position().mark))

    def _next(self) -> int:
        self.last_number += 1
        return self.last_number

    def owns(self, frame: OwnFrame) -> bool:
        """Tell whether a message was sent from here, since this start."""
        return frame.sender == self.sender

    async def _send(self, frame: OwnFrame) -> LogIdRange:
        """Return the ids of the commands; without any, `last_index` is what was reached."""
        number, message = frame.number, encode_frame(frame)
        read_back: asyncio.Future[LogIdRange] = asyncio.get_running_loop().create_future()
        length = len(frame.payloads) if isinstance(frame, Commands) else 0
        self._sent[number] = sent = _Sent(read_back, length, isinstance(frame, Barrier))
        task = asyncio.create_task(self._publish(message, number, sent))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return await asyncio.shield(sent.read_back)

    async def store(self, digest: Digest) -> None:
        """Send a digest; return once the servers have it.

        Raises:
            CommitLogError: as for commands.
        """
        await self._publisher.publish(encode_frame(digest), self._id_of(self._next()))

    def _id_of(self, number: int) -> str:
        return f"{self.sender.hex()}:{number}"

    async def _publish(self, message: bytes, number: int, sent: _Sent) -> None:
        try:
            sent.sequence = await self._publisher.publish(message, self._id_of(number))
        except CommitLogError as exc:
            sent.fail(exc)
            self._sent.pop(number, None)
            return
        if sent.sequence <= self._held:
            self._fail_lost(number, sent)
            return
        self._on_stored(sent.sequence)
        if sent.sequence <= self._position().sequence:
            self._end_passed(number, sent)
        self._check_silence_later()

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

    def pass_over(self) -> None:
        """End what lies before the position from which reading goes on.

        An installed snapshot may hold it.
        """
        last = self._position().sequence
        for number, sent in list(self._sent.items()):
            if sent.sequence is not None and sent.sequence <= last:
                self._end_passed(number, sent)

    def _end_passed(self, number: int, sent: _Sent) -> None:
        self._sent.pop(number, None)
        if not sent.is_barrier:
            sent.fail(
                ProposalOutcomeUnknown(
                    f"{sent.length} commands are committed as message {sent.sequence}, but this "
                    "node installed a snapshot over it and does not know their results"
                )
            )
        elif not sent.read_back.done():
            # The snapshot holds everything that was committed before it.
            sent.read_back.set_result(LogIdRange(self._term, self._position().index + 1, 0))

    def _fail_lost(self, number: int, sent: _Sent) -> None:
        self._sent.pop(number, None)
        sent.fail(
            CommitLogError(
                f"the stream stores a new message as {sent.sequence}, but held message "
                f"{self._held} before: it has lost what was acknowledged, such as by an older copy "
                "of the servers' stores; expected a stream that only grows; this node must not go "
                "on with it"
            )
        )

    def _check_silence_later(self) -> None:
        if self._check is None:
            loop = asyncio.get_running_loop()
            self._check = loop.call_later(self._patience_s, self._check_silence)

    def _check_silence(self) -> None:
        """Fail what is committed when nothing comes from the servers to be read back."""
        self._check = None
        stored = {number: one for number, one in self._sent.items() if one.sequence is not None}
        silence_s = self._silence_s()
        if stored and silence_s < self._patience_s:
            self._check_silence_later()
            return
        for number, sent in stored.items():
            del self._sent[number]
            sent.fail(
                ProposalOutcomeUnknown(
                    f"{sent.length} commands are committed as message {sent.sequence}, but no "
                    f"server has delivered anything for {silence_s:.1f} s; their results are not "
                    "known"
                )
            )

    def fail_all(self, why: str, error: Exception | None = None) -> None:
        """Fail what was not read back; read barriers with the error itself, if there is one."""
        sent, self._sent = self._sent, {}
        for one in sent.values():
            if one.is_barrier and error is not None:
                # Nothing is in doubt: who asked wants to know what is wrong.
                one.fail(error)
                continue
            one.fail(
                ProposalOutcomeUnknown(
                    f"{why} before {one.length} commands were read back; they may be committed"
                )
            )

    async def close(self) -> None:
        """Stop sending; what was not answered has an unknown outcome."""
        if self._check is not None:
            self._check.cancel()
            self._check = None
        self._publisher.close()
        if self._sending:
            await asyncio.wait(self._sending)
        self.fail_all("the commit log was closed")
