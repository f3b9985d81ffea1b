"""A sound key-value machine over SQLite: another engine for the kit to be right about."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from broken_base import LIMITS

from dengine_sm.errors import CorruptionError, NotRunningError, StorageError, StorageFormatError
from dengine_sm.files import DirectoryLock, make_directories, sync_directory
from dengine_sm.kv import KeyValueStateMachine, WriteBatch

DATABASE = "store.sqlite"
LOCK = "LOCK"
FORMAT = 0x64534D31
"""In the file's header, `PRAGMA application_id`."""
_PAGE = 32


@contextmanager
def _errors(path: Path):
    try:
        yield
    except sqlite3.DatabaseError as exc:
        if "malformed" in str(exc) or "not a database" in str(exc):
            raise CorruptionError(
                f"'{path}' is damaged: {exc}; expected a database; nothing was changed",
                path=path,
                offset=0,
            ) from exc
        raise StorageError(f"'{path}': SQLite refused: {exc}; nothing changed", path=path) from exc


class _Connection:
    """One connection and its lock: any thread may read through it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sqlite: sqlite3.Connection | None = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=60
        )

    @contextmanager
    def use(self):
        with self._lock:
            if self._sqlite is None:
                raise NotRunningError("the store is closed; nothing was read or changed")
            with _errors(self._path):
                yield self._sqlite

    def rows(self, statement: str, *values: object) -> list[tuple]:
        with self.use() as sqlite:
            return sqlite.execute(statement, values).fetchall()

    def close(self) -> None:
        with self._lock:
            sqlite, self._sqlite = self._sqlite, None
            if sqlite is not None:
                sqlite.close()


class _Reader:
    """The reads of a store or a view, page by page."""

    def _reading(self) -> _Connection:
        raise NotImplementedError

    def get(self, key: bytes) -> bytes | None:
        rows = self._reading().rows("SELECT value FROM data WHERE key = ?", key)
        return rows[0][0] if rows else None

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = []
        with self._reading().use() as sqlite, _transaction(sqlite, "BEGIN"):
            for key in keys:
                row = sqlite.execute("SELECT value FROM data WHERE key = ?", (key,)).fetchone()
                found.append(row and row[0])
        return found

    def count(self) -> int:
        return self._reading().rows("SELECT COUNT(*) FROM data")[0][0]

    def get_internal(self, key: bytes) -> bytes | None:
        rows = self._reading().rows("SELECT value FROM internal WHERE key = ?", key)
        return rows[0][0] if rows else None

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return self._scan("data", start, stop)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._scan("internal", start, stop)

    def _scan(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        condition = "key >= ?" if stop is None else "key >= ? AND key < ?"
        statement = f"SELECT key, value FROM {table} WHERE {condition} ORDER BY key LIMIT {_PAGE}"
        while True:
            page = self._reading().rows(statement, start, *([] if stop is None else [stop]))
            yield from page
            if len(page) < _PAGE:
                return
            start = page[-1][0] + b"\0"


class _View(_Reader):
    """A read transaction of its own connection."""

    def __init__(self, path: Path) -> None:
        self._connection = _Connection(path)
        with self._connection.use() as sqlite:
            sqlite.execute("BEGIN")
            # The transaction's state is fixed by its first read.
            sqlite.execute("SELECT key FROM internal LIMIT 1").fetchall()

    def _reading(self) -> _Connection:
        return self._connection

    def close(self) -> None:
        self._connection.close()


class SQLiteStore(_Reader):
    """A `KeyValueStore` in two tables of one SQLite file in WAL mode."""

    writes_block = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / DATABASE
        self._lock = DirectoryLock(directory, LOCK)
        self._live: _Connection | None = None
        self._writer: _Connection | None = None

    def _reading(self) -> _Connection:
        live = self._live
        if live is None:
            raise NotRunningError("the store is closed; nothing was read")
        return live

    def open(self) -> None:
        if self._live is not None:
            return
        self._refuse_foreign_directory()
        make_directories(self.directory)
        self._lock.acquire()
        try:
            self._writer = self._prepared()
            self._live = _Connection(self.path)
        except BaseException:
            self.close()
            raise

    def _refuse_foreign_directory(self) -> None:
        names = {path.name for path in self.directory.glob("*")}
        application = 0
        if DATABASE in names:
            with self.path.open("rb") as file:
                head = file.read(72)
            # Where SQLite keeps the application id; an empty file is one it has just made.
            application = int.from_bytes(head[68:72]) if head else FORMAT
        elif not names - {LOCK}:
            return
        if application != FORMAT:
            raise StorageFormatError(
                f"directory '{self.directory}' is not this store's: expected {DATABASE} with "
                f"application id {FORMAT:#x}, observed {application:#x}; nothing was changed",
                path=self.directory,
            )

    def _prepared(self) -> _Connection:
        writer = _Connection(self.path)
        try:
            with writer.use() as sqlite:
                if not sqlite.execute("PRAGMA application_id").fetchone()[0]:
                    sqlite.execute(f"PRAGMA application_id = {FORMAT}")
                sqlite.execute("PRAGMA journal_mode = WAL")
                sqlite.execute("PRAGMA synchronous = NORMAL")
                with _transaction(sqlite, "BEGIN IMMEDIATE"):
                    for table in ("data", "internal"):
                        sqlite.execute(
                            f"CREATE TABLE IF NOT EXISTS {table}"
                            " (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
                        )
            sync_directory(self.directory)
        except BaseException:
            writer.close()
            raise
        return writer

    def close(self) -> None:
        live, self._live = self._live, None
        writer, self._writer = self._writer, None
        try:
            if live is not None:
                live.close()
            if writer is not None:
                with suppress(StorageError), writer.use():
                    self._sync()
                writer.close()
        finally:
            self._lock.release()

    def _writing(self) -> _Connection:
        if self._writer is None:
            raise NotRunningError("the store is closed; nothing was changed")
        return self._writer

    def write(self, batch: WriteBatch) -> None:
        with self._writing().use() as sqlite, _transaction(sqlite, "BEGIN IMMEDIATE"):
            _put(sqlite, batch)

    def flush(self) -> None:
        with self._writing().use():
            self._sync()

    def _sync(self) -> None:
        for path in (self.path.with_name(DATABASE + "-wal"), self.path):
            with suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                except OSError as exc:
                    raise StorageError(f"'{path}' cannot be synced: {exc}", path=path) from exc
                finally:
                    os.close(fd)

    def view(self) -> _View:
        self._reading()
        with _errors(self.path):
            return _View(self.path)

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        with self._writing().use() as sqlite:
            with _transaction(sqlite, "BEGIN IMMEDIATE"):
                sqlite.execute("DELETE FROM data")
                sqlite.execute("DELETE FROM internal")
                for batch in batches:
                    _put(sqlite, batch)
            self._sync()


@contextmanager
def _transaction(sqlite: sqlite3.Connection, begin: str):
    sqlite.execute(begin)
    try:
        yield
        sqlite.execute("COMMIT")
    except BaseException:
        if sqlite.in_transaction:
            sqlite.execute("ROLLBACK")
        raise


def _put(sqlite: sqlite3.Connection, batch: WriteBatch) -> None:
    for table, rows in (("data", batch.data), ("internal", batch.internal)):
        gone = [(key,) for key, value in rows.items() if value is None]
        kept = [(key, value) for key, value in rows.items() if value is not None]
        with closing(sqlite.cursor()) as cursor:
            cursor.executemany(f"DELETE FROM {table} WHERE key = ?", gone)
            cursor.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", kept)


class SoundSQLiteMachine(KeyValueStateMachine):
    """A key-value machine that keeps its state on disk: kept small by SQLite's own cache."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SQLiteStore(directory), limits=LIMITS)
