"""A `KeyValueStore` on RocksDB.

On disk: `LOCK` and `FORMAT` of a `DataDirectory`; `data-N/`, a RocksDB database with the
column families `default` (the user's keys), `internal` (the machine's rows) and `store` (one
row: number of keys, number of write batches), and a file `SYNCED` of ours, see `synced`.
A replacement of everything is written to a new database beside the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from dengine_sm import Durability, NotRunningError, StorageError
from dengine_sm.files import DataDirectory
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.binding import OpenDatabase
from dengine_sm_rocksdb.bulk import write_database
from dengine_sm_rocksdb.engine import Engine, View, open_engine, remove_database
from dengine_sm_rocksdb.forks import forget_in_children
from dengine_sm_rocksdb.options import RocksDBOptions
from dengine_sm_rocksdb.reading import CLOSED, Reading

FORMAT = "dengine-sm-rocksdb"

T = TypeVar("T")


class RocksDBStore:
    """See the module's docstring; the Protocol is `dengine_sm.kv.KeyValueStore`.

    Args:
        directory: owned by this store; made by `open`.
        options: of the backend.
        binding: opens databases.
    """

    def __init__(self, directory: Path, options: RocksDBOptions, binding: OpenDatabase) -> None:
        self.directory = directory
        self.writes_block = options.durability is Durability.PER_APPLY
        self._options = options
        self._binding = binding
        self._files = DataDirectory(directory, format=FORMAT)
        self._engine: Engine | None = None
        self._live: Reading = CLOSED
        self._retired: list[Engine] = []

    # Life

    def open(self) -> None:
        """Lock the directory and recover; a no-op while open."""
        if self._engine is not None:
            return
        self._files.open()
        try:
            if self._files.is_empty:
                path = self._files.next
                remove_database(path)
                write_database(path, self._options, self._binding, ())
                engine = open_engine(path, self._options, self._binding)
                try:
                    self._files.switch()
                except BaseException:
                    engine.break_off("it was not put in force")
                    engine.close()
                    raise
            else:
                engine = open_engine(self._files.current, self._options, self._binding)
        except BaseException:
            self._files.close()
            raise
        self._engine = self._live = engine
        forget_in_children(self)

    def close(self) -> None:
        """Sync, release everything; idempotent."""
        engine, self._engine = self._engine, None
        self._live = CLOSED
        if engine is None:
            return
        try:
            for retired in self._retired:
                with suppress(StorageError):
                    retired.break_off("it was replaced")
                    retired.close()
                remove_database(retired.directory)
            self._retired.clear()
            engine.close()
        finally:
            self._files.close()

    def forget(self) -> None:
        """Leave everything to the parent process: this is a forked child."""
        self._engine = None
        self._live = CLOSED
        self._retired.clear()

    # Reads

    def get(self, key: bytes) -> bytes | None:
        """Read a user's key."""
        live = self._live
        live.users.append(None)
        try:
            return live.native_get(key)
        except Exception as exc:
            if live is not self._live and live.is_shut:
                error: Exception | None = None
            else:
                error = exc
        finally:
            live.users.pop()
        if error is not None:
            live.fail(error)
        return self._live.get(key)

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read several of the user's keys."""
        return self._live.get_multi(keys)

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the user's entries of a range."""
        return self._live.scan(start, stop)

    def count(self) -> int:
        """Return the number of the user's keys."""
        return self._live.count()

    def get_internal(self, key: bytes) -> bytes | None:
        """Read a row of the machine."""
        return self._live.get_internal(key)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the machine's rows of a range."""
        return self._live.scan_internal(start, stop)

    def view(self) -> View:
        """Pin the present state."""
        return self._on_live(lambda engine: engine.view())

    def statistics(self) -> str:
        """Return what RocksDB tells about itself, as text."""
        return self._on_live(lambda engine: engine.statistics())

    def _on_live(self, call: Callable[[Engine], T]) -> T:
        """Call something that another thread's `replace_all` may take the database from."""
        while True:
            engine = self._opened()
            try:
                return call(engine)
            except NotRunningError:
                if self._engine is engine:
                    raise

    def _opened(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise NotRunningError("the store is closed; nothing was read or changed")
        return engine

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Write a batch: one write batch of RocksDB."""
        self._opened().write(batch, sync=self.writes_block)

    def flush(self) -> None:
        """Sync the WAL."""
        self._on_live(lambda engine: engine.sync())

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        """Write a new database beside the old one, switch, and close the old one."""
        old = self._opened()
        path = self._files.next
        try:
            remove_database(path)
            write_database(path, self._options, self._binding, batches)
            new = open_engine(path, self._options, self._binding)
        except BaseException:
            remove_database(path)
            raise
        try:
            self._files.switch()
        except BaseException as exc:
            new.break_off("it was not put in force")
            new.close()
            if self._files.is_in_doubt:
                old.break_off(f"which generation is in force is unknown: {exc}")
            else:
                remove_database(path)
            raise
        self._engine = self._live = new
        old.is_retired = True
        self._retired = [engine for engine in (*self._retired, old) if not engine.close_if_unused()]
