"""Reads of a database that may be closed at any moment by another thread.

A native handle must not be closed while a call is inside it, nor be called afterwards. Whoever
reads adds himself to the list `users` before he looks whether the handle is there; whoever shuts
takes the handle away before he looks whether anybody is on the list. Both steps are atomic in
Python, and cheaper than a lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from dengine_sm import CorruptionError, NotRunningError, StorageError
from dengine_sm_rocksdb.binding import Cursor, Reader, database_error
from dengine_sm_rocksdb.chunk_row import ROW, ChunkRow, decode_chunk_row

_FIRST_PAGE, _LARGEST_PAGE = 16, 1024
_PAGE_BYTES = 256 << 10
_LOOK_AGAIN_S = 0.0005


class Reading:
    """The reads of `KeyValueReader` over a database or a pinned state of it."""

    def __init__(self, reader: Reader | None, directory: Path) -> None:
        self.directory = directory
        self.users: list[None] = []
        self._reader: Reader | None = reader
        self._scans: set[_Scan] = set()
        self.native_get = reader.get if reader else _closed
        self.native_get_internal = reader.get_internal if reader else _closed
        self.native_get_own = reader.get_own if reader else _closed

    @property
    def is_shut(self) -> bool:
        """Whether nothing can be read any more."""
        return self._reader is None

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Give the handle for a few calls, and tell what its exceptions mean."""
        self.users.append(None)
        try:
            reader = self._reader
            if reader is None:
                _closed(b"")
            yield reader
        except Exception as exc:
            self.fail(exc)
        finally:
            self.users.pop()

    def fail(self, exc: Exception) -> NoReturn:
        """Raise the error that an exception of a read stands for."""
        if isinstance(exc, NotRunningError | StorageError):
            raise exc
        raise database_error(exc, self.directory, "read", "nothing was returned") from exc

    def get(self, key: bytes) -> bytes | None:
        """Read a user's key."""
        self.users.append(None)
        try:
            return self.native_get(key)
        except Exception as exc:
            self.fail(exc)
        finally:
            self.users.pop()

    def get_internal(self, key: bytes) -> bytes | None:
        """Read a row of the machine."""
        self.users.append(None)
        try:
            return self.native_get_internal(key)
        except Exception as exc:
            self.fail(exc)
        finally:
            self.users.pop()

    def chunk_row(self) -> ChunkRow:
        """Read the row of the store.

        Raises:
            CorruptionError: it is missing or damaged.
        """
        with self.reading() as reader:
            value = reader.get_own(ROW)
        try:
            return decode_chunk_row(value or b"")
        except ValueError as exc:
            raise CorruptionError(
                f"'{self.directory}': the row {ROW!r} of the store is damaged: {exc}; "
                "nothing was changed",
                path=self.directory,
                offset=0,
            ) from exc

    def count(self) -> int:
        """Return the number of the user's keys."""
        return self.chunk_row().keys

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read several of the user's keys."""
        with self.reading() as reader:
            found: list[bytes | None] = reader.get_multi(list(keys))
            return found

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the user's entries of a range."""
        return self._scan(start, stop, internal=False)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the machine's rows of a range."""
        return self._scan(start, stop, internal=True)

    def _scan(
        self, start: bytes, stop: bytes | None, *, internal: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        if stop is not None and start >= stop:
            return
        scan = _Scan()
        size = _FIRST_PAGE
        try:
            while True:
                with self.reading() as reader:
                    if scan.cursor is None:
                        scan.cursor = reader.cursor(internal=internal)
                        self._scans.add(scan)
                    page = scan.cursor.page(start, stop, size)
                yield from page
                if len(page) < size:
                    return
                start = page[-1][0] + b"\0"
                page_bytes = sum([len(value) for _, value in page])
                size = max(1, min(_PAGE_BYTES * size // (page_bytes + 1), size * 4, _LARGEST_PAGE))
        finally:
            with self.releasing():
                scan.cursor = None
                self._scans.discard(scan)

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """Let a handle go that keeps the database open; whoever shuts waits for the end."""
        self.users.append(None)
        try:
            yield
        finally:
            self.users.pop()

    def shut(self) -> None:
        """Let nobody read any more, and wait for those who do; drop what they have left."""
        self._reader = None
        self.native_get = self.native_get_internal = self.native_get_own = _closed
        self.wait_for_users()
        for scan in tuple(self._scans):
            scan.cursor = None
        self._scans.clear()
        # Who had let a cursor go before we could may not be done yet.
        self.wait_for_users()

    def wait_for_users(self) -> None:
        """Wait until nobody reads or lets a handle go."""
        while self.users:
            time.sleep(_LOOK_AGAIN_S)


class _Scan:
    """A scan under way: its cursor keeps the database open."""

    __slots__ = ("cursor",)

    def __init__(self) -> None:
        self.cursor: Cursor | None = None


def _closed(_: bytes) -> NoReturn:
    raise NotRunningError("the store is closed; nothing was read or changed")


CLOSED = Reading(None, Path())
"""Reads of a store that is not open."""
