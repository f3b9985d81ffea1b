"""Sessions: commands that are executed once, however often they have to be sent.

Source: Ongaro's dissertation §6.3.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from dengine_sm.errors import (
    CommitLogError,
    DEngineError,
    NotRunningError,
    ProposalOutcomeUnknown,
    SessionBusyError,
    SessionExpiredError,
)
from dengine_sm.kv import (
    SEQUENCE_PASSED,
    SESSION_UNKNOWN,
    Change,
    InSession,
    OpenSession,
    encode_command,
)
from dengine_sm.kv.sessions import unpack_session_id
from dengine_sm.model import ApplyResult, Outcome

Propose: TypeAlias = Callable[[bytes], Awaitable[ApplyResult]]
"""Commits and applies an encoded command, such as `Node.propose`.

Raises `ProposalOutcomeUnknown` when that may or may not have happened, and any other
`DEngineError` when it has not.
"""

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0


async def open_session(propose: Propose, *, timeout_s: float = 30.0) -> Session:
    """Open a session in the state of a key-value machine.

    Args:
        propose: how commands are sent.
        timeout_s: for this call, and for the session's calls unless they say otherwise.

    Raises:
        ProposalOutcomeUnknown: no answer in time; the session may be open, unused.
        CommitLogError: the state machine has no sessions.
        DEngineError: refused; nothing was opened.
    """
    # Nobody knows a session that an unanswered attempt opened, so one more does no harm.
    attempts = _Attempts(propose, "opening a session")
    result = await attempts.until_known(encode_command(OpenSession()), timeout_s)
    if not result.succeeded or result.value is None or len(result.value) != 8:
        raise CommitLogError(
            "cannot open a session: expected the session's id from the state machine, observed "
            f"{result}; it does not know sessions"
        )
    return Session(unpack_session_id(result.value), propose, timeout_s=timeout_s)


class Session:
    """One client's commands, one at a time; made by `open_session`.

    Args:
        session_id: of a session that nobody else uses and that has executed nothing yet.
        propose: how commands are sent.
        timeout_s: for each call that does not say otherwise.
    """

    def __init__(self, session_id: int, propose: Propose, *, timeout_s: float = 30.0) -> None:
        self.session_id = session_id
        self._propose = propose
        self._timeout_s = timeout_s
        self._sequence = 0
        self._unsettled: bytes | None = None
        self._expired = False
        self._is_busy = False

    def __repr__(self) -> str:
        return f"Session({self.session_id})"

    @property
    def is_settled(self) -> bool:
        """Whether the outcome of every command so far is known."""
        return self._unsettled is None

    async def propose(self, command: Change, *, timeout_s: float | None = None) -> ApplyResult:
        """Execute a command once and return what that gave.

        While the outcome is unknown the command is sent again. Cancelling leaves it unsettled.

        Raises:
            SessionBusyError: an earlier command is under way or unsettled; nothing was done.
            ProposalOutcomeUnknown: not known in time; `settle` goes on asking.
            SessionExpiredError: the session is gone; see its `outcome_known`.
            DEngineError: refused; the command was not executed.
        """
        data = encode_command(InSession(self.session_id, self._sequence + 1, command))
        with self._alone():
            if self._unsettled is not None:
                raise SessionBusyError(
                    f"session {self.session_id}: the outcome of the command with sequence "
                    f"{self._sequence} is unknown: expected a call of settle() first; nothing "
                    "was proposed"
                )
            # Never used for another command, even if this one is refused.
            self._sequence += 1
            self._unsettled = data
            return await self._send(data, timeout_s, in_doubt=False)

    async def settle(self, *, timeout_s: float | None = None) -> ApplyResult | None:
        """Find out what became of the command whose outcome is unknown; it is executed once.

        Returns:
            Its result, or None when there is no such command.

        Raises:
            SessionBusyError, ProposalOutcomeUnknown, SessionExpiredError: as for `propose`.
        """
        with self._alone():
            if self._unsettled is None:
                return None
            return await self._send(self._unsettled, timeout_s, in_doubt=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._expired:
            raise self._gone("it has expired", outcome_known=True)
        if self._is_busy:
            raise SessionBusyError(
                f"session {self.session_id}: the command with sequence {self._sequence} is under "
                "way: expected one command at a time; nothing was proposed"
            )
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    async def _send(self, data: bytes, timeout_s: float | None, *, in_doubt: bool) -> ApplyResult:
        what = f"session {self.session_id}: the command with sequence {self._sequence}"
        attempts = _Attempts(self._propose, what, in_doubt)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            result = await attempts.until_known(data, limit_s)
        except DEngineError:
            if not attempts.in_doubt:
                self._unsettled = None
            raise
        self._unsettled = None
        if result.outcome is Outcome.REJECTED and result.value is not None:
            self._refuse(result.value, outcome_known=not attempts.in_doubt)
        return result

    def _refuse(self, value: bytes, *, outcome_known: bool) -> None:
        """Raise for a command that the state machine did not execute now."""
        if value == SESSION_UNKNOWN:
            self._expired = True
            raise self._gone("the state does not know it any more", outcome_known=outcome_known)
        if value == SEQUENCE_PASSED:
            self._expired = True
            raise self._gone("somebody else uses it", outcome_known=outcome_known)

    def _gone(self, why: str, *, outcome_known: bool) -> SessionExpiredError:
        outcome = "was not executed" if outcome_known else "may or may not have been executed"
        return SessionExpiredError(
            f"session {self.session_id}: {why}; the command {outcome}; open a new session",
            session_id=self.session_id,
            outcome_known=outcome_known,
        )


class _Attempts:
    """Sends one command again and again until its outcome is known."""

    def __init__(self, propose: Propose, what: str, in_doubt: bool = False) -> None:
        self.in_doubt = in_doubt
        """Whether an attempt may have been executed without an answer."""
        self._propose = propose
        self._what = what
        self._cause: BaseException | None = None

    async def until_known(self, data: bytes, timeout_s: float) -> ApplyResult:
        pause_s = _FIRST_PAUSE_S
        try:
            async with asyncio.timeout(timeout_s):
                while (result := await self._attempt(data)) is None:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                return result
        except TimeoutError as exc:
            self.in_doubt = True
            raise self._unknown(f"no answer within {timeout_s:g} s") from self._cause or exc

    async def _attempt(self, data: bytes) -> ApplyResult | None:
        """Return the result, or None when it is still unknown."""
        try:
            result = await self._propose(data)
        except ProposalOutcomeUnknown as exc:
            self._cause = exc
        except NotRunningError as exc:
            if self.in_doubt:
                raise self._unknown(str(exc)) from exc
            raise
        except DEngineError as exc:
            # This attempt was refused; what became of an earlier one is still not known.
            if not self.in_doubt:
                raise
            self._cause = exc
        else:
            # A duplicate was applied by an installed snapshot, which has no results.
            if result.outcome is not Outcome.DUPLICATE:
                return result
        self.in_doubt = True
        return None

    def _unknown(self, why: str) -> ProposalOutcomeUnknown:
        return ProposalOutcomeUnknown(f"{self._what}: {why}; it may or may not be executed")
