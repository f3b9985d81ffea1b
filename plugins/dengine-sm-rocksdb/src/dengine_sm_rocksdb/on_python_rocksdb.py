"""The binding `python-rocksdb`, or `aimrocks`, the fork of it that ships wheels.

The two differ in how a column family is named (`get((family, key))` in one, `get(key, family)`
in the other) and in what the fork has and the original has not (`flush_wal`). What both lack, and
what is done instead:

- read views that name a column family: an iterator over each family pins the state;
- the WAL recovery mode is RocksDB's default, which stops at a damaged record without a word:
  the database is opened read-only first, and compared with what the WAL ends with;
- a close that can be called twice: a database is closed by letting its last reference go.
"""

from __future__ import annotations

import importlib
from itertools import islice
from threading import Lock
from types import ModuleType
from typing import Any

from dengine_sm import ConfigError
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.binding import INTERNAL_FAMILY, Cursor, Database, Get, Opening, Page, Pin
from dengine_sm_rocksdb.chunk_row import ROW, STORE_FAMILY, decode_chunk_row
from dengine_sm_rocksdb.options import Compression, RocksDBOptions

MODULES = ("rocksdb", "aimrocks")
_FAMILIES = (INTERNAL_FAMILY.encode(), STORE_FAMILY.encode())
_SYNC_ROW = b"sync"
"""Written to make the WAL before it durable, where the binding has no call for that."""


def require_module() -> ModuleType:
    """Return the module of the binding.

    Raises:
        ConfigError: none is installed.
    """
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as exc:
            if exc.name != name:
                raise
        else:
            if hasattr(module, "DB"):
                return module
    problem = (
        "binding: expected one of the modules 'rocksdb' (python-rocksdb) and 'aimrocks' to be "
        "installed, found none; install one, or set binding = 'rocksdict'"
    )
    raise ConfigError(problem, problems=[problem])


def open_python_rocksdb(opening: Opening) -> Database:
    """Open a database."""
    module = require_module()
    if opening.tail is not None:
        _require_chunk(module, opening, opening.tail.chunk)
    return _Database(module, opening)


def _require_chunk(module: ModuleType, opening: Opening, chunk: int) -> None:
    """Check that the WAL is recovered to its end, before a start forgets the rest of it."""
    db = module.DB(
        str(opening.path),
        _database_options(module, opening),
        column_families=_family_options(module, opening.options),
        read_only=True,
    )
    dialect = _Dialect(module, db)
    row = decode_chunk_row(dialect.get(_FAMILIES[1])(ROW) or b"")
    if row.chunk < chunk:
        raise ValueError(
            f"corruption: the WAL holds write batches up to {chunk}, of which {row.chunk} can be "
            "recovered"
        )


class _Dialect:
    """The calls that python-rocksdb and its fork spell differently."""

    def __init__(self, module: ModuleType, db: Any) -> None:
        self._db = db
        self._takes_tuples = not hasattr(module.DB, "flush_wal")

    def family(self, name: bytes) -> Any:
        return self._db.get_column_family(name)

    def get(self, name: bytes) -> Get:
        """Return the read of a family that is not the default one."""
        family, db_get = self.family(name), self._db.get
        if self._takes_tuples:
            return lambda key: db_get((family, key))
        return lambda key: db_get(key, family)

    def put(self, batch: Any, family: Any, key: bytes, value: bytes | None) -> None:
        """Add a change of a family that is not the default one to a batch."""
        if self._takes_tuples:
            if value is None:
                batch.delete((family, key))
            else:
                batch.put((family, key), value)
        elif value is None:
            batch.delete(key, family)
        else:
            batch.put(key, value, family)

    def iterator(self, name: bytes | None) -> Any:
        """Return an iterator over a family; None for the default one."""
        if name is None:
            return self._db.iteritems()
        return self._db.iteritems(self.family(name))


class _Database:
    def __init__(self, module: ModuleType, opening: Opening) -> None:
        options = _database_options(module, opening)
        path = str(opening.path)
        families = _family_options(module, opening.options)
        self._module = module
        if opening.is_new:
            self._db = module.DB(path, options)
            for name, family in families.items():
                self._db.create_column_family(name, family)
        else:
            self._db = module.DB(path, options, column_families=families)
        self._dialect: _Dialect = _Dialect(module, self._db)
        self.get: Get = self._db.get
        self.get_internal: Get = self._dialect.get(_FAMILIES[0])
        self.get_own: Get = self._dialect.get(_FAMILIES[1])
        # Two batches at once would share a record of the WAL.
        self._writing = Lock()

    def get_multi(self, keys: list[bytes]) -> list[bytes | None]:
        found = self._db.multi_get(keys)
        return [found[key] for key in keys]

    def write(self, batch: WriteBatch, own_row: bytes, *, sync: bool) -> None:
        native = self._module.WriteBatch()
        put, delete, dialect = native.put, native.delete, self._dialect
        internal, own = (dialect.family(name) for name in _FAMILIES)
        dialect.put(native, own, ROW, own_row)
        for key, value in batch.data.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        for key, value in batch.internal.items():
            dialect.put(native, internal, key, value)
        self._write(native, sync=sync)

    def _write(self, native: Any, *, sync: bool) -> None:
        with self._writing:
            if sync:
                # In RocksDB 6 a synced write that begins a new WAL does not sync the entry of its
                # file. This one begins it, if that is due; the next one then syncs it.
                self._db.write(self._module.WriteBatch())
            self._db.write(native, sync=sync)

    def sync(self) -> None:
        if hasattr(self._db, "flush_wal"):
            self._db.flush_wal(True)
            return
        native = self._module.WriteBatch()
        self._dialect.put(native, self._dialect.family(_FAMILIES[1]), _SYNC_ROW, b"")
        self._write(native, sync=True)

    def cursor(self, *, internal: bool) -> Cursor:
        return _Cursor(self._dialect.iterator(_FAMILIES[0] if internal else None))

    def pin(self, no_writes: Lock) -> Pin:
        with no_writes:
            return Pin(self.cursor(internal=False), self.cursor(internal=True), self.get_own(ROW))

    def statistics(self) -> str:
        return (self._db.get_property(b"rocksdb.stats") or b"").decode()

    def finish(self) -> None:
        self.sync()

    def close(self) -> None:
        # Not `DB.close()`: the original has none, and the fork then frees the database twice.
        del self.get, self.get_internal, self.get_own, self._dialect, self._db


class _Cursor:
    def __init__(self, native: Any) -> None:
        self._native = native

    def __del__(self) -> None:
        # Otherwise the collector of cycles might take the database from under the iterator.
        self._native = None

    def page(self, start: bytes, stop: bytes | None, size: int) -> Page:
        native = self._native
        native.seek(start)
        found: Page = []
        for item in islice(native, size):
            # python-rocksdb puts the family before the key.
            key = item[0][1] if isinstance(item[0], tuple) else item[0]
            if stop is not None and key >= stop:
                break
            found.append((key, item[1]))
        return found


def _database_options(module: ModuleType, opening: Opening) -> Any:
    options = module.Options(
        create_if_missing=opening.is_new,
        error_if_exists=opening.is_new,
        paranoid_checks=True,
        keep_log_file_num=4,
        max_log_file_size=4 << 20,
        max_manifest_file_size=4 << 20,
        stats_dump_period_sec=600 if opening.options.statistics else 0,
    )
    if hasattr(options, "db_write_buffer_size"):
        # So that small families do not keep old WALs alive.
        options.db_write_buffer_size = opening.options.write_buffer_bytes
    return _tuned(module, options, opening.options)


def _family_options(module: ModuleType, options: RocksDBOptions) -> dict[bytes, Any]:
    return {name: _tuned(module, module.ColumnFamilyOptions(), options) for name in _FAMILIES}


def _tuned(module: ModuleType, native: Any, options: RocksDBOptions) -> Any:
    """Set what the database and every family have in common."""
    native.write_buffer_size = options.write_buffer_bytes
    name = "no" if options.compression is Compression.NONE else options.compression.value
    native.compression = getattr(module.CompressionType, f"{name}_compression")
    table: dict[str, Any] = {"no_block_cache": not options.block_cache_bytes}
    if options.block_cache_bytes:
        table["block_cache"] = module.LRUCache(options.block_cache_bytes)
    if options.bloom_bits_per_key:
        table["filter_policy"] = module.BloomFilterPolicy(options.bloom_bits_per_key)
    native.table_factory = module.BlockBasedTableFactory(**table)
    return native
