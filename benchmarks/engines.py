"""The engines of the plugins without us: only the unavoidable work, by their own bindings.

Each is opened as its plugin opens it, with the same promises: nothing is synced by a write,
everything by a flush.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

Pair = tuple[bytes, bytes]


class Engine(Protocol):
    """A bare engine, open."""

    def write(self, pairs: Sequence[Pair]) -> None:
        """Write puts of one chunk, all or nothing."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """Read a value."""
        ...

    def scan(self) -> Iterable[Pair]:
        """Yield all entries in key order."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class RocksDB:
    """rocksdict in raw mode, no column family but the default one."""

    def __init__(self, directory: Path) -> None:
        import rocksdict

        self._rocksdict = rocksdict
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self._db: Any = rocksdict.Rdict(str(directory), options)
        self.get = self._db.get

    def write(self, pairs: Sequence[Pair]) -> None:
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for key, value in pairs:
            batch.put(key, value)
        self._db.write(batch)

    def scan(self) -> Iterable[Pair]:
        return self._db.items()  # type: ignore[no-any-return]  # the binding's own iterator

    def close(self) -> None:
        self._db.close()


class LMDB:
    """py-lmdb, one transaction for every read, as any thread may read at any time."""

    def __init__(self, directory: Path) -> None:
        import lmdb

        self._env: Any = lmdb.open(str(directory), map_size=16 << 30, **LMDB_FLAGS)

    def write(self, pairs: Sequence[Pair]) -> None:
        with self._env.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin() as transaction:
            return transaction.get(key)  # type: ignore[no-any-return]

    def scan(self) -> Iterable[Pair]:
        with self._env.begin() as transaction:
            yield from transaction.cursor()

    def close(self) -> None:
        self._env.close()


LMDB_FLAGS: dict[str, Any] = {"sync": False}


class SQLite:
    """The standard library's sqlite3 in WAL mode, one table WITHOUT ROWID."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(directory / "bare.sqlite", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS data (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            " WITHOUT ROWID"
        )

    def write(self, pairs: Sequence[Pair]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO data VALUES (?, ?)", pairs)
        self._db.execute("COMMIT")

    def get(self, key: bytes) -> bytes | None:
        row = self._db.execute("SELECT value FROM data WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def scan(self) -> Iterable[Pair]:
        return self._db.execute("SELECT key, value FROM data ORDER BY key")

    def close(self) -> None:
        self._db.close()


ENGINES: dict[str, type[Engine]] = {"rocksdb": RocksDB, "lmdb": LMDB, "sqlite": SQLite}
PACKAGES = {"rocksdb": "rocksdict", "lmdb": "lmdb", "sqlite": "sqlite3"}
