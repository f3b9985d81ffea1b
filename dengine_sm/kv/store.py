"""What a storage must offer to become a key-value backend.

A `KeyValueStore` keeps two ordered maps of bytes to bytes: the *data* (the user's
keys) and the *internal* rows (the machine's bookkeeping). They are separate key
spaces, so that no user key can collide with bookkeeping (READ-4), and they change
together, so that state and applied id cannot part (APPLY-2, CRASH-1). Everything
else (commands, results, duplicates, deadlines, snapshots) is written once, in
`KeyValueStateMachine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import attrs


@attrs.frozen
class WriteBatch:
    """Changes that become visible and durable together; None deletes a key."""

    data: dict[bytes, bytes | None] = attrs.field(factory=dict)
    internal: dict[bytes, bytes | None] = attrs.field(factory=dict)


class KeyValueReader(Protocol):
    """Reads of one state: the live one of a store, or the one a view has pinned.

    Called: from any thread, at any time, also during `write` and `replace_all`.
    Every call sees whole write batches only. Raises `NotRunningError` when closed and
    `StorageError` when the storage fails, never "absent" (READ-5).
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the user's value, or None when the key is absent."""
        ...

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the user's values in key order, at one point in time."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the user's entries in `[start, stop)` by key bytes; None: to the end.

        On a store the iterator need not be one point in time; on a view it is.
        """
        ...

    def count(self) -> int:
        """Return the number of the user's keys."""
        ...

    def get_internal(self, key: bytes) -> bytes | None:
        """Return a bookkeeping row."""
        ...

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the bookkeeping rows in `[start, stop)` by key bytes."""
        ...


class ReadView(KeyValueReader, Protocol):
    """One state, pinned: later writes do not show."""

    def close(self) -> None:
        """Release what the view holds; idempotent."""
        ...


class KeyValueStore(KeyValueReader, Protocol):
    """A storage engine behind a `KeyValueStateMachine`.

    Called: `open`, `close`, `write` and `replace_all` by one thread at a time, never
    overlapping each other; `flush`, `view` and all reads by any thread.
    """

    @property
    def writes_block(self) -> bool:
        """Whether `write` waits for the disk; if so it is called in a worker thread."""
        ...

    def open(self) -> None:
        """Lock the directory, recover, make reads and writes possible.

        Raises:
            StorageLockedError: another process or object has it open (LIFE-6).
            StorageFormatError: not this store's directory, or a newer format (LIFE-7).
            CorruptionError: damage that no crash can explain (CRASH-5).
            StorageError: the disk refused.
        """
        ...

    def close(self) -> None:
        """Make everything durable, release everything; idempotent, also after a failure."""
        ...

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch, all or nothing, in memory and on disk.

        Durable on return for a `PER_APPLY` store, after `flush` for `ON_FLUSH`.
        The batch belongs to the store from here on.

        Raises:
            StorageError: nothing of the batch was, or will be, visible.
        """
        ...

    def flush(self) -> None:
        """Make everything written before the call durable.

        Raises:
            StorageError: the sync failed; what is durable is unknown until a restart.
        """
        ...

    def view(self) -> ReadView:
        """Pin the current state, in constant time."""
        ...

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        """Replace everything, data and internal rows, by the sum of the batches.

        Durable on return. Readers, and a restart after a kill at any instant, see the
        whole old state or the whole new one (SNAP-7, READ-6).

        Raises:
            StorageError: the old state is unchanged.
        """
        ...
