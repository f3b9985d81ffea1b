"""When a node takes snapshots: as its policy says, when asked, and at the marks of a shared log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from dengine_sm.errors import (
    CommitLogError,
    DEngineError,
    NotRunningError,
    SnapshotError,
    StorageError,
)
from dengine_sm.futures import settle
from dengine_sm.handler import StateMachineHandler
from dengine_sm.log.contract import SharedCommitLog

_POLL_S = 0.5
_LOG_IS_KEPT = (StorageError, SnapshotError, CommitLogError)

logger = logging.getLogger("dengine_sm.node")


class SnapshotTaker:
    """Takes the snapshots of one node.

    Args:
        handler: of the node.
        shared: the node's log, if others follow it: all take their snapshots at its marks.
        spawn: runs work that ends with the node.
        fail: stops the node.
        refusal: returns what is raised when the node stops meanwhile.
    """

    def __init__(
        self,
        handler: StateMachineHandler,
        shared: SharedCommitLog | None,
        spawn: Callable[[Coroutine[object, object, None], str], asyncio.Task[None]],
        fail: Callable[[BaseException], None],
        refusal: Callable[[], NotRunningError],
    ) -> None:
        self._handler = handler
        self._shared = shared
        self._spawn = spawn
        self._fail = fail
        self._refusal = refusal
        self._asked: list[asyncio.Future[bool]] = []
        """Those who wait for the snapshot of the next mark."""

    async def run(self) -> None:
        """Take a snapshot whenever the policy says so; what fails is tried again."""
        while True:
            await asyncio.sleep(_POLL_S)
            if not self._handler.should_snapshot():
                continue
            try:
                await self.take()
            except _LOG_IS_KEPT as exc:
                logger.warning("snapshot failed, the log is kept: %s", exc)
            except DEngineError as exc:
                self._fail(exc)
                return

    async def take(self) -> None:
        """Take a snapshot: of a shared log's next mark, so that all nodes take the same.

        Raises:
            StorageError, SnapshotError, CommitLogError: nothing was published.
        """
        if self._shared is None:
            await self._handler.create_snapshot()
            return
        while not await self._of_next_mark(self._shared):
            # The mark came while one was being written; the state has moved on since.
            await self._handler.wait_snapshot_written()

    async def _of_next_mark(self, log: SharedCommitLog) -> bool:
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.append(taken)
        try:
            await log.request_snapshot()
            return await taken
        finally:
            if taken in self._asked:
                self._asked.remove(taken)

    async def at_mark(self) -> None:
        """Begin a snapshot of exactly this state; goes on once its view is pinned."""
        pinned = asyncio.Event()
        writing = self._spawn(self._write(pinned), "marked-snapshot")
        waiting = asyncio.create_task(pinned.wait())
        await asyncio.wait((writing, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def _write(self, pinned: asyncio.Event) -> None:
        asked, self._asked = self._asked, []
        busy = self._handler.is_writing_snapshot
        error: BaseException | None = None
        try:
            if not busy:
                await self._handler.create_snapshot(pinned)
        except _LOG_IS_KEPT as exc:
            if not asked:
                logger.warning("snapshot failed, the log is kept: %s", exc)
            error = exc
        except asyncio.CancelledError:
            error = self._refusal()
            raise
        except Exception as exc:
            self._fail(exc)
            error = exc
        finally:
            settle(asked, not busy, error)
