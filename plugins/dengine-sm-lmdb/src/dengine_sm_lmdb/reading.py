"""Reads that a store and its views share: each in a transaction, scans page by page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dengine_sm.errors import NotRunningError
from dengine_sm_lmdb import rows
from dengine_sm_lmdb.engine import EngineError, Transaction, storage_error
from dengine_sm_lmdb.generation import Generation

T = TypeVar("T")
Row = tuple[bytes, bytes]

_PAGE_BYTES = 1 << 18
"""A page ends with the row that makes it as large; each row counts for some bytes more."""
_ROW_BYTES = 128


class Reader:
    """The reads of `KeyValueReader`, on top of `_read`."""

    def _read(self, work: Callable[[Transaction, Generation], T]) -> T:
        """Call `work` with a transaction, which ends before this returns."""
        raise NotImplementedError

    def get(self, key: bytes) -> bytes | None:
        """Return the user's value, or None when the key is absent."""
        return self._read(lambda txn, generation: rows.get(txn, generation.data, key))

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the user's values in key order, at one point in time."""
        return self._read(
            lambda txn, generation: [rows.get(txn, generation.data, key) for key in keys]
        )

    def count(self) -> int:
        """Return the number of the user's keys, in constant time."""
        return self._read(lambda txn, generation: rows.count(txn, generation.data))

    def get_internal(self, key: bytes) -> bytes | None:
        """Return a bookkeeping row."""
        return self._read(lambda txn, generation: rows.get(txn, generation.internal, key))

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Row]:
        """Yield the user's entries in `[start, stop)` by key bytes; None: to the end."""
        return self._scan("data", start, stop)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[Row]:
        """Yield the bookkeeping rows in `[start, stop)` by key bytes."""
        return self._scan("internal", start, stop)

    def _scan(self, space: str, start: bytes, stop: bytes | None) -> Iterator[Row]:
        # No transaction is left open between two pages: it would keep old pages from
        # being used again for as long as somebody holds the iterator.
        while True:
            page, is_last = self._read(
                lambda txn, generation: _page(txn, getattr(generation, space), start, stop)  # noqa: B023 - called at once
            )
            yield from page
            if is_last:
                return
            start = page[-1][0] + b"\0"


def _page(
    txn: Transaction, space: rows.Space, start: bytes, stop: bytes | None
) -> tuple[list[Row], bool]:
    """Return rows from `start` on, and whether they are the last ones."""
    page: list[Row] = []
    add = page.append
    room = _PAGE_BYTES
    for row in rows.scan(txn, space, start, stop):
        add(row)
        room -= len(row[1]) + _ROW_BYTES
        if room <= 0:
            return page, False
    return page, True


class View(Reader):
    """One state, pinned by a read transaction that lasts."""

    def __init__(
        self, generation: Generation, txn: Transaction, on_close: Callable[[Generation], None]
    ) -> None:
        self._generation = generation
        self._txn: Transaction | None = txn
        self._on_close = on_close
        # A transaction may be used by any thread, but by one at a time.
        self._using = threading.Lock()

    def _read(self, work: Callable[[Transaction, Generation], T]) -> T:
        with self._using:
            if self._txn is None or self._generation.is_closed:
                raise _closed()
            try:
                return work(self._txn, self._generation)
            except EngineError as exc:
                if self._generation.is_closed:
                    raise _closed() from None
                raise storage_error(exc, self._generation.path, "nothing was read") from exc

    def close(self) -> None:
        """Give the pages of this state free; idempotent."""
        with self._using:
            txn, self._txn = self._txn, None
            if txn is None:
                return
            # In a forked child it is the parent's, which needs it on.
            if not self._generation.is_closed:
                txn.abort()
        self._on_close(self._generation)

    def __del__(self) -> None:
        # A view that was forgotten would keep pages from being used again.
        self.close()


class SharedView(Reader):
    """A view that is read through another one: for when no transaction can be begun."""

    def __init__(self, view: View, on_close: Callable[[], None]) -> None:
        self._view: View | None = view
        self._on_close = on_close

    def _read(self, work: Callable[[Transaction, Generation], T]) -> T:
        if self._view is None:
            raise _closed()
        return self._view._read(work)

    def close(self) -> None:
        """Let go of the other view; idempotent."""
        view, self._view = self._view, None
        if view is not None:
            self._on_close()


def _closed() -> NotRunningError:
    return NotRunningError("the read view, or its store, is closed; nothing was read")


def closed_begin(*_: Any) -> Transaction:
    """Stand in for the `begin` of a store that is closed."""
    raise NotRunningError("the LMDB store is closed; nothing was read or changed")
