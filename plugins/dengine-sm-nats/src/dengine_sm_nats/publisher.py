"""Publish messages, many at once, each sent again under its id until its fate is known.

The client library's own pipelined publish never tells an error of the servers to its
caller; this one has one subscription for all answers, and a time-out for each.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from dengine_sm import CommitLogError, NotRunningError, ProposalOutcomeUnknown

_RETRY_PAUSE_S = 0.05
_STREAM_FULL = (10077, 10047)
"""More than the stream, or the account's storage, may hold."""
_TOO_LARGE = (10054,)


class _AnswerError(Exception):
    """A server answered with an error.

    `stored_nothing` is whether this attempt cannot have reached a stream's log; `final`,
    whether another attempt would be answered the same.
    """

    def __init__(self, text: str, *, stored_nothing: bool, final: bool) -> None:
        super().__init__(text)
        self.stored_nothing = stored_nothing
        self.final = final


class Publisher:
    """Publishes to one subject.

    Args:
        client: connected.
        subject: of the stream.
        attempt_s: seconds until an attempt without an answer is repeated.
        outcome_s: seconds after which the outcome is unknown.
    """

    def __init__(self, client: Client, subject: str, *, attempt_s: float, outcome_s: float) -> None:
        self._client = client
        self._subject = subject
        self._attempt_s = attempt_s
        self._outcome_s = outcome_s
        self._inbox = client.new_inbox()
        self._answers: dict[str, asyncio.Future[int]] = {}
        self._next_token = 0
        self._subscription: Subscription | None = None
        self._closed = False

    async def open(self) -> None:
        """Begin to listen for answers."""
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)

    def close(self) -> None:
        """Fail what is under way: its outcome is not known."""
        self._closed = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(NotRunningError("the commit log was closed"))
        self._answers.clear()

    async def publish(self, message: bytes, message_id: str) -> int:
        """Publish a message once, however often it has to be sent.

        Returns:
            Its sequence in the stream: it is on a quorum's disks.

        Raises:
            CommitLogError: it is not in the stream.
            ProposalOutcomeUnknown: it may or may not be in the stream.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._outcome_s
        maybe_stored = False
        while True:
            try:
                return await self._attempt(message, message_id)
            except _AnswerError as exc:
                error: Exception = exc
                maybe_stored = maybe_stored or not exc.stored_nothing
                if exc.final:
                    raise self._verdict(exc, maybe_stored) from exc
            except (TimeoutError, OSError, nats.errors.Error) as exc:
                error, maybe_stored = exc, True
            except NotRunningError as exc:
                raise self._verdict(exc, True) from exc
            if self._closed or loop.time() >= deadline_s:
                raise self._verdict(error, maybe_stored) from error
            await asyncio.sleep(_RETRY_PAUSE_S)

    def _verdict(self, error: Exception, maybe_stored: bool) -> CommitLogError:
        why = str(error) or type(error).__name__
        if maybe_stored:
            return ProposalOutcomeUnknown(
                f"the servers did not say what became of a message to {self._subject!r} ({why}); "
                "it may or may not be committed"
            )
        return CommitLogError(
            f"a message to {self._subject!r} was refused: {why}; nothing was committed"
        )

    async def _attempt(self, message: bytes, message_id: str) -> int:
        self._next_token += 1
        token = str(self._next_token)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self._answers[token] = answer
        timer = loop.call_later(self._attempt_s, _time_out, answer)
        try:
            await self._client.publish(
                self._subject,
                message,
                reply=f"{self._inbox}.{token}",
                headers={"Nats-Msg-Id": message_id},
            )
            return await answer
        finally:
            timer.cancel()
            self._answers.pop(token, None)

    async def _on_answer(self, msg: Msg) -> None:
        answer = self._answers.get(msg.subject.rpartition(".")[2])
        if answer is None or answer.done():
            return
        try:
            answer.set_result(_sequence_of(msg))
        except _AnswerError as exc:
            answer.set_exception(exc)


def _time_out(answer: asyncio.Future[int]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError("no answer in time"))


def _sequence_of(msg: Msg) -> int:
    if msg.headers and msg.headers.get("Status"):
        # Nobody listens to the subject: the stream has no leader now, or does not exist.
        status = msg.headers["Status"]
        raise _AnswerError(
            f"status {status}, no stream answers", stored_nothing=status == "503", final=False
        )
    body: dict[str, Any] = json.loads(msg.data)
    error = body.get("error")
    if error is None:
        return int(body["seq"])
    code = error.get("err_code")
    text = f"{error.get('description')} (code {code})"
    if code in _STREAM_FULL:
        text = (
            f"the stream is full: {text}; it takes commands again once a snapshot lets it be purged"
        )
    final = code in (*_STREAM_FULL, *_TOO_LARGE)
    # All others may come from a leader that had handed the message on before it lost its place.
    raise _AnswerError(text, stored_nothing=final, final=final)
