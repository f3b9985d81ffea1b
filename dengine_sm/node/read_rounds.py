"""Linearizable reads of a shared log: one barrier for all who wait when it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dengine_sm.futures import look_at_error, settle


class ReadRounds:
    """Rounds of reading, one after the other.

    Args:
        reach: publishes a barrier, and returns when everything before it was applied.
        refusal: returns what readers are told when a round is cancelled: the node stops.
    """

    def __init__(
        self, reach: Callable[[], Awaitable[None]], refusal: Callable[[], Exception]
    ) -> None:
        self._reach = reach
        self._refusal = refusal
        self._current: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._readers: list[asyncio.Future[None]] = []
        """Those whom the next round will serve."""

    async def wait(self) -> None:
        """Wait for a round that begins after this call.

        Raises:
            DEngineError: what the round ended with.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._round())
            self._next.add_done_callback(look_at_error)
        # A future for each, not a shield of the task: half the work of the event loop.
        reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        await reader

    async def _round(self) -> None:
        if self._current is not None:
            await asyncio.wait((self._current,))
        self._current, self._next = self._next, None
        readers, self._readers = self._readers, []
        try:
            await self._reach()
        except BaseException as exc:
            # Cancelled is this round, when the node stops, not those who read.
            stopped = isinstance(exc, asyncio.CancelledError)
            settle(readers, None, self._refusal() if stopped else exc)
            raise
        settle(readers, None, None)
