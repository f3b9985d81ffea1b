"""Threads that read as often as they can while a check writes."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from types import TracebackType

READERS = 3
SWITCH_INTERVAL_S = 2e-5
"""How soon the interpreter lets another thread run; 5 ms is the default."""


class Readers:
    """Runs one function in several threads, again and again; a context manager.

    Args:
        look: reads once and compares; gets the number of its thread. What it raises ends
            the thread and is raised again by `keep_up` and at the end.
    """

    def __init__(self, look: Callable[[int], None]) -> None:
        self._look = look
        self._looked = threading.Condition()
        self._counts = [0] * READERS
        self._failure: BaseException | None = None
        self._ending = False
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"reader-{number}", daemon=True)
            for number in range(READERS)
        ]
        self._switch_interval_s = 0.0

    @property
    def looks(self) -> int:
        """How often all threads together have read."""
        return sum(self._counts)

    def __enter__(self) -> Readers:
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        self._ending = True
        sys.setswitchinterval(self._switch_interval_s)
        for thread in self._threads:
            thread.join()
        if exc_type is None:
            self._raise_failure()

    async def keep_up(self) -> None:
        """Wait until every thread has read once more from beginning to end."""
        __tracebackhide__ = True
        await asyncio.to_thread(self._wait_for_looks)
        self._raise_failure()

    def _wait_for_looks(self) -> None:
        # The look under way may have begun before the wait.
        targets = [count + 2 for count in self._counts]
        with self._looked:
            self._looked.wait_for(
                lambda: (
                    self._failure is not None
                    or all(c >= t for c, t in zip(self._counts, targets, strict=True))
                )
            )

    def _raise_failure(self) -> None:
        __tracebackhide__ = True
        if self._failure is not None:
            raise self._failure

    def _run(self, number: int) -> None:
        try:
            while not self._ending:
                self._look(number)
                with self._looked:
                    self._counts[number] += 1
                    self._looked.notify_all()
        except BaseException as exc:  # a native library's panic is no Exception
            with self._looked:
                self._failure = self._failure or exc
                self._looked.notify_all()
