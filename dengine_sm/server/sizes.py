"""How much fits into one message, reckoned before the message is built."""

from __future__ import annotations

from collections.abc import Iterable

# Tags and length prefixes of an entry with two byte strings: at most 18 bytes.
_ENTRY_OVERHEAD_BYTES = 18


def entries_that_fit(entries: Iterable[tuple[bytes, bytes]], budget_bytes: int) -> int:
    """Return how many leading `(key, value)` pairs a message of this size can hold."""
    count = size_bytes = 0
    for key, value in entries:
        size_bytes += len(key) + len(value) + _ENTRY_OVERHEAD_BYTES
        if size_bytes > budget_bytes:
            break
        count += 1
    return count
