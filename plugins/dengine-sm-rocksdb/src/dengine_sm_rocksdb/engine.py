"""An open database with all who use it: readers, pinned views, the file `SYNCED`."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from threading import Lock

from dengine_sm import CorruptionError, NotRunningError, StorageError
from dengine_sm.files import sync_directory
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.binding import Database, OpenDatabase, Opening, database_error
from dengine_sm_rocksdb.chunk_row import ChunkRow
from dengine_sm_rocksdb.forks import forget_in_children, never_free
from dengine_sm_rocksdb.options import RocksDBOptions
from dengine_sm_rocksdb.pinned import Pinned
from dengine_sm_rocksdb.reading import Reading
from dengine_sm_rocksdb.recovery import CURRENT, Tail, check_log_files, take_back
from dengine_sm_rocksdb.synced import Synced, SyncedFile, read_synced


class View(Reading):
    """A state of a database, pinned."""

    def __init__(self, pinned: Pinned, engine: Engine) -> None:
        super().__init__(pinned, engine.directory)
        self._pinned: Pinned | None = pinned
        self._engine = engine

    def close(self) -> None:
        """Let the state go; idempotent."""
        self.release()
        self._engine.forget_view(self)

    def release(self) -> None:
        """Let the state go, told by the engine."""
        self.shut()
        with self._engine.releasing():
            pinned, self._pinned = self._pinned, None
            if pinned is not None:
                pinned.close()

    def forget(self) -> None:
        """Leave the handles to the parent process."""
        self.users.clear()
        if self._pinned is not None:
            never_free(self._pinned)
            for scan in self._scans:
                never_free(scan.cursor)
        self._pinned = None
        self.shut()


class Engine(Reading):
    """An open database."""

    def __init__(self, database: Database, directory: Path, row: ChunkRow | None = None) -> None:
        super().__init__(database, directory)
        self._database: Database | None = database
        self._no_writes = Lock()
        self._syncing = Lock()
        self._views: set[View] = set()
        self._synced = SyncedFile(directory)
        self._broken: str | None = None
        self.is_retired = False
        """Whether another generation is in force, and views alone keep this one."""
        self.row = row or ChunkRow()
        """The newest row of the store."""
        forget_in_children(self)

    def begin(self) -> None:
        """Read the row of the store, and write down what is durable.

        Raises:
            StorageError: the disk refused, or the row is damaged.
        """
        self.row = self.chunk_row()
        try:
            self._synced.open()
            synced = self._synced.look(self.row.chunk)
            # RocksDB has just begun a WAL, and leaves it to the first sync to make it durable.
            sync_directory(self.directory)
            self._synced.note(synced)
        except OSError as exc:
            raise self._refused(exc, "write what is durable", "nothing was changed") from exc

    def write(self, batch: WriteBatch, *, sync: bool) -> None:
        """Write a batch.

        Raises:
            StorageError: nothing of it was, or will be, visible.
        """
        with self.reading() as database:
            self._require_sound("nothing was written")
            row = self._next_row(database, batch.data)
            try:
                with self._no_writes:
                    database.write(batch, row.encode(), sync=sync)
            except Exception as exc:
                self._broken = str(exc)
                take_back(self.directory, self.row.chunk)
                raise self._refused(exc, "write", "nothing of the batch was applied") from exc
            except BaseException as exc:
                # Interrupted: whether it was written shows at the next start.
                self._broken = repr(exc)
                raise
            self.row = row
            if sync:
                with self._syncing, suppress(OSError):
                    self._synced.note(self._synced.look(row.chunk, sync_manifest=False))

    def _next_row(self, database: Database, data: dict[bytes, bytes | None]) -> ChunkRow:
        keys = self.row.keys
        if data:
            for new, old in zip(data.values(), database.get_multi(list(data)), strict=True):
                if new is None:
                    keys -= old is not None
                elif old is None:
                    keys += 1
        return ChunkRow(keys, self.row.chunk + 1)

    def sync(self) -> None:
        """Make everything written before the call durable.

        Raises:
            StorageError: the disk refused; what is durable is known after a restart.
        """
        with self._syncing, self.reading() as database:
            self._require_sound("nothing was synced")
            try:
                # Looked at before: what others write meanwhile may be synced or not.
                synced = self._synced.look(self.row.chunk)
                database.sync()
            except Exception as exc:
                self._broken = str(exc)
                raise self._refused(exc, "sync", "what is durable is unknown") from exc
            self._synced.note(synced)

    def _require_sound(self, state: str) -> None:
        if self._broken is not None:
            raise StorageError(
                f"'{self.directory}' refuses to go on after a failure ({self._broken}): expected "
                f"to be closed and opened again; {state}",
                path=self.directory,
            )

    def break_off(self, reason: str) -> None:
        """Refuse writes from now on."""
        self._broken = reason

    def view(self) -> View:
        """Pin the present state."""
        with self.reading() as database:
            view = View(Pinned(database.pin(self._no_writes)), self)
            self._views.add(view)
        return view

    def forget_view(self, view: View) -> None:
        """Know that a view is closed; a retired database is closed with its last one."""
        self._views.discard(view)
        self.close_if_unused()

    def close_if_unused(self) -> bool:
        """Close and remove a retired database that no view needs; tell whether it is closed."""
        if self.is_retired and not self._views and not self.is_shut:
            self._broken = self._broken or "it was replaced"
            with suppress(StorageError):
                self.close()
            remove_database(self.directory)
        return self.is_shut

    def statistics(self) -> str:
        """Return what the engine tells about itself."""
        with self.reading() as database:
            text: str = database.statistics()
            return text

    def close(self) -> None:
        """Sync, close views and database; idempotent.

        Raises:
            StorageError: the disk refused; it is closed.
        """
        error: StorageError | None = None
        is_sound = self._broken is None
        try:
            if is_sound:
                self.sync()
        except NotRunningError:
            return
        except StorageError as exc:
            error = exc
        self.shut()
        for view in tuple(self._views):
            view.release()
        self._views.clear()
        self.wait_for_users()  # who released one before we could
        database, self._database = self._database, None
        try:
            if database is not None:
                database.close()
        except Exception as exc:
            error = error or self._refused(exc, "close", "it is closed")
        del database
        self._synced.close()
        if not is_sound and not self.is_retired:
            # The close may have written what was refused.
            take_back(self.directory, self.row.chunk)
        if error is not None and is_sound:
            raise error

    def forget(self) -> None:
        """Leave the handles to the parent process: this is a forked child."""
        database, self._database = self._database, None
        if database is not None:
            never_free(database)
        for scan in self._scans:
            never_free(scan.cursor)
        for view in tuple(self._views):
            view.forget()
        self.users.clear()
        self.shut()

    def _refused(self, exc: Exception, action: str, state: str) -> StorageError:
        return database_error(exc, self.directory, action, state)


def open_engine(directory: Path, options: RocksDBOptions, binding: OpenDatabase) -> Engine:
    """Open the database of a directory.

    Raises:
        CorruptionError: it is damaged; nothing was changed.
        StorageError: the disk refused.
    """
    try:
        tail = check_log_files(directory)
        try:
            database = binding(Opening(directory, options, tail=tail))
        except Exception as exc:
            error = database_error(exc, directory, "open the database", "nothing was changed")
            if not isinstance(error, CorruptionError):
                raise error from exc
            # A checksum is wrong: which, and does a power failure explain it?
            tail = check_log_files(directory, verify=True)
            database = _open_again(binding, Opening(directory, options, tail=tail))
    except OSError as exc:
        raise database_error(exc, directory, "open the database", "nothing was changed") from exc
    engine = Engine(database, directory)
    del database
    try:
        synced = read_synced(directory)
        engine.begin()
        _require_all(engine, tail, synced)
    except BaseException:
        engine.break_off("it could not be opened")
        engine.close()
        raise
    return engine


def _open_again(binding: OpenDatabase, opening: Opening) -> Database:
    try:
        return binding(opening)
    except Exception as exc:
        raise database_error(exc, opening.path, "open the database", "nothing was changed") from exc


def _require_all(engine: Engine, tail: Tail | None, synced: Synced) -> None:
    """Check that RocksDB has recovered all that its WALs hold, and all that was durable."""
    expected = max(synced.chunk, tail.chunk if tail else 0)
    if engine.row.chunk < expected:
        path, offset = (tail.path, tail.offset) if tail else (engine.directory / CURRENT, 0)
        raise CorruptionError(
            f"'{path}': RocksDB has recovered {engine.row.chunk} write batches, expected "
            f"{expected}; the rest is lost",
            path=path,
            offset=offset,
        )


def remove_database(directory: Path) -> None:
    """Remove a database's directory, as far as it can be."""
    shutil.rmtree(directory, ignore_errors=True)
