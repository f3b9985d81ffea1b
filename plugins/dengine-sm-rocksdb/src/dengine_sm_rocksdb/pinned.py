"""The reads of a pinned state, through the cursors that pin it."""

from __future__ import annotations

from threading import Lock

from dengine_sm_rocksdb.binding import Cursor, Page, Pin
from dengine_sm_rocksdb.chunk_row import ROW


class Pinned:
    """A `Reader` over a pin; its scans and reads share two cursors."""

    def __init__(self, pin: Pin) -> None:
        self._data = _SharedCursor(pin.data)
        self._internal = _SharedCursor(pin.internal)
        self._own_row = pin.own_row

    def get(self, key: bytes) -> bytes | None:
        """Read a user's key."""
        return self._data.get(key)

    def get_internal(self, key: bytes) -> bytes | None:
        """Read a row of the machine."""
        return self._internal.get(key)

    def get_own(self, key: bytes) -> bytes | None:
        """Read a row of the store."""
        return self._own_row if key == ROW else None

    def get_multi(self, keys: list[bytes]) -> list[bytes | None]:
        """Read several of the user's keys."""
        return [self._data.get(key) for key in keys]

    def cursor(self, *, internal: bool) -> Cursor:
        """Return the cursor of all scans."""
        return self._internal if internal else self._data

    def close(self) -> None:
        """Let the state go."""
        self._data.close()
        self._internal.close()


class _SharedCursor:
    """A cursor for one thread at a time."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor: Cursor | None = cursor
        self._lock = Lock()

    def page(self, start: bytes, stop: bytes | None, size: int) -> Page:
        with self._lock:
            assert self._cursor is not None, "closed while in use"
            return self._cursor.page(start, stop, size)

    def get(self, key: bytes) -> bytes | None:
        for _, value in self.page(key, key + b"\0", 1):
            return value
        return None

    def close(self) -> None:
        self._cursor = None
