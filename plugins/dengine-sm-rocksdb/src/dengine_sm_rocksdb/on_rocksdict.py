"""The binding `rocksdict`, in raw mode: bytes go in and come out as they are."""

from __future__ import annotations

from threading import Lock

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteOptions,
)
from rocksdict import WriteBatch as NativeBatch

from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.binding import INTERNAL_FAMILY, Cursor, Database, Get, Opening, Page, Pin
from dengine_sm_rocksdb.chunk_row import ROW, STORE_FAMILY
from dengine_sm_rocksdb.options import RocksDBOptions

_BULK_BUFFER_BYTES = 8 << 20
_PIN_ATTEMPTS = 4
_BLOCK_CHARGE = 8192
"""What a block in the cache takes on average."""


def open_rocksdict(opening: Opening) -> Database:
    """Open a database; one that is new writes no WAL, and is durable when finished."""
    return _Database(opening)


class _Database:
    def __init__(self, opening: Opening) -> None:
        options = opening.options
        self._is_bulk = opening.is_new
        self._options = _database_options(options, opening.is_new)
        families = dict.fromkeys((INTERNAL_FAMILY, STORE_FAMILY), self._options)
        path = str(opening.path)
        self._data: Rdict = Rdict(path, self._options, column_families=families)
        self._internal: Rdict = self._data.get_column_family(INTERNAL_FAMILY)
        self._own: Rdict = self._data.get_column_family(STORE_FAMILY)
        self._families = (
            self._data.get_column_family_handle(INTERNAL_FAMILY),
            self._data.get_column_family_handle(STORE_FAMILY),
        )
        self.get: Get = self._data.get
        self.get_internal: Get = self._internal.get
        self.get_own: Get = self._own.get
        self._lazily, self._durably = WriteOptions(), WriteOptions()
        self._durably.sync = True
        if self._is_bulk:
            self._lazily.disable_wal = True  # type: ignore[method-assign, assignment]  # a property

    def get_multi(self, keys: list[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = self._data[keys]  # type: ignore[assignment, index]  # a list
        return found

    def write(self, batch: WriteBatch, own_row: bytes, *, sync: bool) -> None:
        native = NativeBatch(raw_mode=True)
        internal, own = self._families
        put, delete = native.put, native.delete
        put(ROW, own_row, own)
        for key, value in batch.data.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        for key, value in batch.internal.items():
            if value is None:
                delete(key, internal)
            else:
                put(key, value, internal)
        self._data.write(native, self._durably if sync else self._lazily)

    def sync(self) -> None:
        self._data.flush_wal(sync=True)

    def cursor(self, *, internal: bool) -> Cursor:
        return _Cursor(self._internal if internal else self._data)

    def pin(self, no_writes: Lock) -> Pin:
        # Iterators, because those of a `Snapshot` of rocksdict do not keep to it. Each belongs to
        # one family: they are of one state if no write came between.
        for _ in range(_PIN_ATTEMPTS):
            before = self._data.latest_sequence_number()
            pin = self._pin()
            if self._data.latest_sequence_number() == before:
                return pin
        with no_writes:
            return self._pin()

    def _pin(self) -> Pin:
        return Pin(_Cursor(self._data), _Cursor(self._internal), self.get_own(ROW))

    def statistics(self) -> str:
        texts = [self._data.property_value("rocksdb.stats"), self._options.get_statistics()]
        return "\n".join(text for text in texts if text)

    def finish(self) -> None:
        for family in (self._data, self._internal, self._own):
            family.flush(wait=True)

    def close(self) -> None:
        data, internal, own = self._data, self._internal, self._own
        # Everything that has part in the database keeps it open: nothing may be left of it.
        del self.get, self.get_internal, self.get_own, self._families
        del self._data, self._internal, self._own
        try:
            own.close()
        finally:
            try:
                internal.close()
            finally:
                data.close()


class _Cursor:
    def __init__(self, family: Rdict) -> None:
        options = ReadOptions()
        # A scan would push everything else out of the cache.
        options.fill_cache(False)  # type: ignore[call-arg]  # takes it, whatever its stub says
        self._native: RdictIter = family.iter(options)

    def page(self, start: bytes, stop: bytes | None, size: int) -> Page:
        native = self._native
        native.seek(start)
        found: Page = []
        # `items()` would be faster, and ends at a damaged block as if it were the end.
        get_key, get_value, move, add = native.key, native.value, native.next, found.append
        for _ in range(size):
            key = get_key()
            if key is None:
                native.status()
                break
            if stop is not None and key >= stop:
                break
            add((key, get_value()))
            move()
        return found


def _database_options(options: RocksDBOptions, is_new: bool) -> Options:
    native = Options(raw_mode=True)
    native.create_if_missing(is_new)
    native.create_missing_column_families(is_new)
    native.set_error_if_exists(is_new)
    native.set_paranoid_checks(True)
    # With what `recovery` has looked at before: see there.
    native.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    buffer_bytes = min(_BULK_BUFFER_BYTES, options.write_buffer_bytes)
    native.set_write_buffer_size(buffer_bytes if is_new else options.write_buffer_bytes)
    # A start replays what the WALs hold: small families must not keep old ones alive.
    native.set_max_total_wal_size(options.write_buffer_bytes)
    native.set_memtable_whole_key_filtering(True)
    native.set_memtable_prefix_bloom_ratio(0.02)
    native.set_compression_type(getattr(DBCompressionType, options.compression.value)())
    native.set_block_based_table_factory(_table_options(options))
    native.set_keep_log_file_num(4)
    native.set_max_log_file_size(4 << 20)
    native.set_max_manifest_file_size(4 << 20)
    native.set_stats_persist_period_sec(0)
    native.set_stats_dump_period_sec(600 if options.statistics else 0)
    if options.statistics:
        native.enable_statistics()
    return native


def _table_options(options: RocksDBOptions) -> BlockBasedOptions:
    table = BlockBasedOptions()
    if options.block_cache_bytes:
        # Three times as fast as the usual one when filters are in it, as they are.
        cache = Cache.new_hyper_clock_cache(options.block_cache_bytes, _BLOCK_CHARGE)
        table.set_block_cache(cache)
        # Otherwise indexes and filters take memory that grows with the number of keys.
        table.set_cache_index_and_filter_blocks(True)
        table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    else:
        table.disable_cache()
    if options.bloom_bits_per_key:
        table.set_bloom_filter(options.bloom_bits_per_key, False)
    table.set_format_version(6)
    return table
