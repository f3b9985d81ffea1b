"""Work for other threads that surely comes late: held back until a check lets it go."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WATCHDOG_S = 1.0
"""Work held back is let go by then: a machine may wait for it in its own first step."""


class HeldBack:
    """Work that was handed to thread pools and has not been let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] | None = []
        self._thread = threading.get_ident()
        self._is_holding = True

    def stop_holding(self) -> None:
        """Hold back nothing more."""
        self._is_holding = False

    def release(self) -> None:
        """Let go what is held back; idempotent, from any thread."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        for begin in waiting or ():
            begin()

    def submit(
        self, original: Callable[..., Future[Any]], pool: ThreadPoolExecutor, *args: Any, **kw: Any
    ) -> Future[Any]:
        """Stand in for `ThreadPoolExecutor.submit`."""
        if threading.get_ident() != self._thread or not self._is_holding:
            return original(pool, *args, **kw)
        promised: Future[Any] = Future()
        with self._lock:
            if self._waiting is None:
                return original(pool, *args, **kw)
            self._waiting.append(lambda: _begin(lambda: original(pool, *args, **kw), promised))
        return promised


def _begin(submit: Callable[[], Future[Any]], promised: Future[Any]) -> None:
    def settle(done: Future[Any]) -> None:
        if not promised.set_running_or_notify_cancel():
            return
        exc = done.exception()
        if exc is None:
            promised.set_result(done.result())
        else:
            promised.set_exception(exc)

    try:
        submit().add_done_callback(settle)
    except RuntimeError as exc:  # the pool was shut down meanwhile
        promised.set_exception(exc)


@contextlib.contextmanager
def threads_held_back() -> Iterator[HeldBack]:
    """Hold back what this thread hands to thread pools, so that it surely comes later."""
    held = HeldBack()
    original = ThreadPoolExecutor.submit

    def submit(pool: ThreadPoolExecutor, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return held.submit(original, pool, *args, **kwargs)

    watchdog = threading.Timer(WATCHDOG_S, held.release)
    watchdog.start()
    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign, assignment]  # put back below
    try:
        yield held
    finally:
        ThreadPoolExecutor.submit = original  # type: ignore[method-assign]  # as it was
        watchdog.cancel()
        watchdog.join()
        held.release()
