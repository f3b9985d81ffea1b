"""Reads: connections that readers borrow, the statements, and views that pin a state."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue

from dengine_sm.errors import CorruptionError, NotRunningError
from dengine_sm_sqlite.database import connect, sqlite_errors, storage_error
from dengine_sm_sqlite.statements import (
    GET,
    GET_INTERNAL,
    TOTALS,
    page_statement,
    parts_of,
    select_statement,
)

_KEPT = 4
"""Idle connections that are kept; each has a page cache."""
_FIRST_PAGE_ROWS = 16
_PAGE_ROWS = 1024
_PAGE_BYTES = 1 << 20
_WAIT_S = 0.05


class Connections:
    """Read-only connections to one database, lent to one reader at a time.

    A borrowed connection is never closed under its reader: `close` waits for it.

    Args:
        path: the database.
        cache_bytes: page cache of each connection.
    """

    def __init__(self, path: Path, cache_bytes: int) -> None:
        self._path = path
        self._cache_bytes = cache_bytes
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._lock = threading.Lock()
        self._made = 0
        self._is_open = False

    def open(self) -> None:
        """Make the first connection; recovers what a killed process has left."""
        self._is_open = True
        self.give(self._make())

    def take(self) -> sqlite3.Connection:
        """Borrow a connection."""
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._make()

    def give(self, connection: sqlite3.Connection) -> None:
        """Return a borrowed connection, which is in no transaction."""
        self._idle.put(connection)
        if self._made > _KEPT:
            self._trim()

    def close(self) -> None:
        """Close every connection, borrowed ones when they come back; idempotent."""
        with self._lock:
            self._is_open = False
        while self._made:
            with suppress(Empty):
                self._close(self._idle.get(timeout=_WAIT_S))

    def _make(self) -> sqlite3.Connection:
        with self._lock:
            if not self._is_open:
                raise NotRunningError("the sqlite store is closed; nothing was read")
            with sqlite_errors(self._path, "open the database", "nothing was read"):
                connection = connect(self._path, cache_bytes=self._cache_bytes, read_only=True)
            self._made += 1
        return connection

    def _trim(self) -> None:
        with suppress(Empty):
            while self._idle.qsize() > _KEPT and self._is_open:
                self._close(self._idle.get_nowait())

    def _close(self, connection: sqlite3.Connection) -> None:
        connection.close()
        with self._lock:
            self._made -= 1


class Reader:
    """The reads of a `KeyValueReader` over borrowed connections.

    Args:
        path: the database, for messages.
        take: lends a connection to this thread.
        give: takes it back.
    """

    def __init__(
        self,
        path: Path,
        take: Callable[[], sqlite3.Connection],
        give: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._path = path
        self._take = take
        self._give = give

    def get(self, key: bytes) -> bytes | None:
        """Return the user's value, or None when the key is absent."""
        connection = self._take()
        try:
            row = connection.execute(GET, (key,)).fetchone()
        except sqlite3.Error as exc:
            raise self._failed(exc) from exc
        finally:
            self._give(connection)
        return None if row is None else row[0]

    def get_internal(self, key: bytes) -> bytes | None:
        """Return a bookkeeping row."""
        connection = self._take()
        try:
            row = connection.execute(GET_INTERNAL, (key,)).fetchone()
        except sqlite3.Error as exc:
            raise self._failed(exc) from exc
        finally:
            self._give(connection)
        return None if row is None else row[0]

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the user's values in key order, at one point in time."""
        connection = self._take()
        try:
            found = _found(connection, list(keys))
        except sqlite3.Error as exc:
            raise self._failed(exc) from exc
        finally:
            self._give(connection)
        return [found.get(key) for key in keys]

    def count(self) -> int:
        """Return the number of the user's keys."""
        return self.totals()[0]

    def totals(self) -> tuple[int, int]:
        """Return the number of keys, and of writes so far."""
        connection = self._take()
        try:
            row = connection.execute(TOTALS).fetchone()
        except sqlite3.Error as exc:
            raise self._failed(exc) from exc
        finally:
            self._give(connection)
        if row is None:
            raise CorruptionError(
                f"'{self._path}' is damaged: its table 'totals' is empty; nothing was read",
                path=self._path,
                offset=0,
            )
        return row[0], row[1]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the user's entries in `[start, stop)` by key bytes."""
        return self._scan("data", start, stop)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the bookkeeping rows in `[start, stop)` by key bytes."""
        return self._scan("internal", start, stop)

    def _scan(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return chain.from_iterable(self._pages(table, start, stop))

    def _pages(
        self, table: str, start: bytes, stop: bytes | None
    ) -> Iterator[list[tuple[bytes, bytes]]]:
        statement = page_statement(table, stop is None)
        rows = _FIRST_PAGE_ROWS
        is_last = False
        while not is_last:
            page, is_last = self._page(statement, start, stop, rows)
            yield page
            if page:
                start = page[-1][0] + b"\0"
            rows = min(rows * 4, _PAGE_ROWS)

    def _page(
        self, statement: str, start: bytes, stop: bytes | None, rows: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Return up to so many rows, fewer when they are large; and whether none follow."""
        values = (start, rows) if stop is None else (start, stop, rows)
        page: list[tuple[bytes, bytes]] = []
        size = 0
        connection = self._take()
        try:
            with closing(connection.execute(statement, values)) as cursor:
                for row in cursor:
                    page.append(row)
                    size += len(row[1])
                    if size > _PAGE_BYTES:
                        return page, False
        except sqlite3.Error as exc:
            raise self._failed(exc) from exc
        finally:
            self._give(connection)
        return page, len(page) < rows

    def _failed(self, exc: sqlite3.Error) -> Exception:
        return storage_error(exc, self._path, "read", "nothing was changed")


def _found(connection: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, bytes]:
    """Return those of the keys that there are; a transaction unless one statement does it."""
    found: dict[bytes, bytes] = {}
    parts = list(parts_of(keys))
    begins = len(parts) > 1 and not connection.in_transaction
    if begins:
        connection.execute("BEGIN")
    try:
        for part in parts:
            found.update(connection.execute(select_statement(len(part)), part))
    finally:
        if begins:
            connection.execute("COMMIT")
    return found


class SQLiteView:
    """One state, pinned by a read transaction on a connection of its own.

    Args:
        path: the database.
        connections: lends the connection.
        on_close: told when the view is closed.
    """

    def __init__(
        self, path: Path, connections: Connections, on_close: Callable[[SQLiteView], None]
    ) -> None:
        self._on_close = on_close
        self._connections = connections
        self._lock = threading.Lock()
        connection = connections.take()
        try:
            with sqlite_errors(path, "begin to read", "nothing was read"):
                connection.execute("BEGIN")
                # The first read is what pins the state.
                connection.execute(TOTALS).fetchone()
        except BaseException:
            _give_back(connections, connection)
            raise
        self._connection: sqlite3.Connection | None = connection
        reader = Reader(path, self._take, self._give)
        self.get = reader.get
        self.get_multi = reader.get_multi
        self.scan = reader.scan
        self.count = reader.count
        self.get_internal = reader.get_internal
        self.scan_internal = reader.scan_internal

    def close(self) -> None:
        """End the transaction, return the connection; idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            _give_back(self._connections, connection)
            self._on_close(self)

    def _take(self) -> sqlite3.Connection:
        self._lock.acquire()
        connection = self._connection
        if connection is None:
            self._lock.release()
            raise NotRunningError("the view is closed; nothing was read")
        return connection

    def _give(self, _: sqlite3.Connection) -> None:
        self._lock.release()


def _give_back(connections: Connections, connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("COMMIT")
    connections.give(connection)
