"""Write a whole new database: the first one of a directory, or a replacement of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dengine_sm.files import make_directories
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.binding import Database, OpenDatabase, Opening, database_error
from dengine_sm_rocksdb.chunk_row import ChunkRow
from dengine_sm_rocksdb.options import RocksDBOptions
from dengine_sm_rocksdb.synced import SyncedFile


def write_database(
    path: Path, options: RocksDBOptions, binding: OpenDatabase, batches: Iterable[WriteBatch]
) -> None:
    """Write a database that holds the sum of the batches; it is durable and closed on return.

    Raises:
        StorageError: the disk refused; a part may be left.
    """
    make_directories(path)
    with _refusals(path):
        database = binding(Opening(path, options, is_new=True))
    try:
        chunk = _write_all(path, database, batches)
    except BaseException:
        with _refusals(path):
            database.close()
        raise
    with _refusals(path):
        database.close()
        _note_as_synced(path, chunk)


def _write_all(path: Path, database: Database, batches: Iterable[WriteBatch]) -> int:
    """Write the batches, durably; return the number of the newest."""
    keys = chunk = 0
    highest: bytes | None = None
    for batch in batches:
        chunk += 1
        with _refusals(path):
            keys += _added(database, batch.data, highest)
            database.write(batch, ChunkRow(keys, chunk).encode(), sync=False)
        if batch.data:
            greatest = max(batch.data)
            highest = greatest if highest is None else max(highest, greatest)
    with _refusals(path):
        chunk += 1
        database.write(WriteBatch(), ChunkRow(keys, chunk).encode(), sync=False)
        database.finish()
    return chunk


def _added(database: Database, data: dict[bytes, bytes | None], highest: bytes | None) -> int:
    """Return by how much a batch changes the number of keys."""
    if not data:
        return 0
    puts = sum(value is not None for value in data.values())
    if highest is None or min(data) > highest:
        return puts
    # Not in the order of keys, as a snapshot is: some may be there already.
    # puts of new keys add one each, deletes of old ones take one: in sum, puts less old keys.
    return puts - sum(value is not None for value in database.get_multi(list(data)))


def _note_as_synced(path: Path, chunk: int) -> None:
    """Write the file `SYNCED` of a new database, durably."""
    synced = SyncedFile(path)
    synced.create()
    try:
        synced.write(synced.look(chunk))
        synced.sync()
    finally:
        synced.close()


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        state = "what is in force is unchanged"
        raise database_error(exc, path, "write a new database", state) from exc
