"""The stream's clock as a node knows it: what its messages say, carried on by this machine's."""

from __future__ import annotations

import time


class StreamClock:
    """Estimates the time that the stream's leader would stamp on a message now.

    A message that is read long after it was stored shows an older time than the leader's, never
    a newer one: the newest estimate is the best one.
    """

    def __init__(self) -> None:
        self._ahead_ms: float | None = None

    def observe(self, timestamp_ms: int) -> None:
        """Take the time of a message that was read just now."""
        ahead_ms = timestamp_ms - time.monotonic() * 1000
        if self._ahead_ms is None or ahead_ms > self._ahead_ms:
            self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        """Return the estimate; before anything was read, this machine's clock."""
        if self._ahead_ms is None:
            return time.time_ns() // 1_000_000
        return int(time.monotonic() * 1000 + self._ahead_ms)
