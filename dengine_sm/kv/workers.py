"""Threads for what would hold up the event loop, one for each kind of work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dengine_sm.errors import NotRunningError

T = TypeVar("T")


class Workers:
    """Runs work of one name in one thread, in the order in which it came."""

    def __init__(self) -> None:
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._handing_over = threading.Lock()
        self.closing = False
        """Whether no more work is taken; long work looks at it, and ends early."""

    def open(self) -> None:
        """Take work."""
        self.closing = False

    def close(self) -> None:
        """Take no more work, and wait for what there is; from any thread."""
        with self._handing_over:
            self.closing = True
        for thread in self._threads.values():
            thread.shutdown(wait=True)
        self._threads.clear()

    async def run(
        self, name: str, work: Callable[[], T], *, on_cancel: Callable[[], object] | None = None
    ) -> T:
        """Run work in the thread of a name; a cancelled caller waits for its end.

        Args:
            name: of the kind of work.
            work: what to do.
            on_cancel: called when the caller is cancelled, to have the work end early.

        Raises:
            NotRunningError: closed, or being closed; nothing was done.
        """
        with self._handing_over:
            if self.closing:
                # By a stop() in another thread: the workers finish what they have, no more.
                raise NotRunningError("the state machine is being stopped; nothing was done")
            if name not in self._threads:
                self._threads[name] = ThreadPoolExecutor(1, f"dengine-sm-{name}")
            future = asyncio.get_running_loop().run_in_executor(self._threads[name], work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel()
            while not future.done():
                await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise
