"""A `KeyValueStore` in one SQLite file, in WAL mode.

On disk: `LOCK`; `state.sqlite` with the tables `data`, `internal` and `totals`;
`state.sqlite-wal`, SQLite's write-ahead log, and `state.sqlite-shm`, its index; `SYNCED`,
how much of it was durable. One transaction of one connection per write; readers have
connections of their own.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from dengine_sm.errors import CorruptionError, NotRunningError, StorageError
from dengine_sm.files import (
    DirectoryLock,
    FileSystem,
    default_file_system,
    make_directories,
    storage_errors,
    sync_directory,
)
from dengine_sm.kv import ReadView, WriteBatch
from dengine_sm_sqlite.checkpoints import Checkpoints
from dengine_sm_sqlite.database import (
    BUSY_TIMEOUT_S,
    DATABASE,
    LOCK,
    SYNCED,
    WAL,
    claim,
    connect,
    create,
    disclaim,
    inspect,
    is_failed_sync,
    sqlite_errors,
    storage_error,
)
from dengine_sm_sqlite.reading import Connections, Reader, SQLiteView
from dengine_sm_sqlite.statements import SET_TOTALS, TOUCH, change, replace
from dengine_sm_sqlite.synced import SyncedMark

_NOTHING = "nothing was changed"

logger = logging.getLogger("dengine_sm_sqlite")


class SQLiteStore:
    """See the module's docstring; the Protocol is `KeyValueStore`.

    Args:
        directory: owned by this store; made by `open`.
        sync_every_write: durable when `write` returns, not only after `flush`.
        cache_bytes: page cache of each connection.
        checkpoint_bytes: size of the write-ahead log that makes a checkpoint due.
        fs: the file system for what SQLite does not write itself.
    """

    writes_block = True
    """A write reads the pages it changes, and ten thousand rows take tens of milliseconds."""

    def __init__(
        self,
        directory: Path,
        *,
        sync_every_write: bool = False,
        cache_bytes: int = 8 << 20,
        checkpoint_bytes: int = 64 << 20,
        fs: FileSystem | None = None,
    ) -> None:
        self.directory = directory
        self.path = directory / DATABASE
        self._fs = fs or default_file_system()
        self._cache_bytes = cache_bytes
        self._checkpoint_bytes = checkpoint_bytes
        self._synchronous = "FULL" if sync_every_write else "NORMAL"
        self._lock = DirectoryLock(directory, LOCK, self._fs)
        self._mark = SyncedMark(directory / SYNCED, self._fs)
        self._checkpoints = Checkpoints(self.path, checkpoint_bytes, self._break)
        self._connections = Connections(self.path, cache_bytes)
        self._reader = Reader(self.path, self._connections.take, self._connections.give)
        self.get = self._reader.get
        self.get_multi = self._reader.get_multi
        self.scan = self._reader.scan
        self.count = self._reader.count
        self.get_internal = self._reader.get_internal
        self.scan_internal = self._reader.scan_internal
        self._is_open = False
        self._writer: sqlite3.Connection | None = None
        self._claim: tuple[int, int, int] | None = None
        self._wal_fd: int | None = None
        self._views: set[SQLiteView] = set()
        self._viewing = threading.Lock()
        self._flushing = threading.Lock()
        self._keys = self._batches = 0
        self._synced = -1
        """Number of the newest write that is known to be durable."""
        self._broken: str | None = None

    # Opening

    def open(self) -> None:
        """Lock the directory and recover; a no-op while open."""
        if self._is_open:
            return
        if not inspect(self.directory):
            make_directories(self.directory, self._fs)
        self._lock.acquire()
        try:
            self._recover()
        except BaseException:
            self._release()
            raise

    def _recover(self) -> None:
        wal = self.path.with_name(WAL)
        if not inspect(self.directory):
            create(self.directory, self._fs)
        has_log = wal.exists()
        with storage_errors(wal, "open the write-ahead log", _NOTHING):
            # Before SQLite makes its index: an index without a log tells of a lost log.
            self._wal_fd = self._fs.open(wal, os.O_RDWR | os.O_CREAT)
        noted = self._mark.open()
        if not (has_log and noted):
            # A killed process may have made all of these and not synced their entries. Once
            # something is noted in one of them, that was done.
            sync_directory(self.directory, self._fs)
        self._claim = claim(self.path)
        self._connections.open()
        self._keys, self._batches = self._reader.totals()
        if self._batches < noted:
            # Read-only connections alone: closing them changes nothing.
            raise CorruptionError(
                f"'{self.path}' and its write-ahead log hold {self._batches} writes, {noted} "
                f"were durable by {SYNCED!r}: the log is damaged, cut or lost, or the file is "
                "an older copy; nothing was changed",
                path=self.path.with_name(WAL),
                offset=0,
            )
        # What a process has written that was killed, or whose sync has failed: written and
        # synced once more, so that it does not matter which.
        self._synced = self._batches if self._empty_log() else -1
        self._checkpoints.open()
        self._broken = None
        self._is_open = True

    def _connect_writer(self) -> sqlite3.Connection:
        """Return the connection that writes, made when it is first needed."""
        if self._writer is None:
            with sqlite_errors(self.path, "open the database", _NOTHING):
                writer = connect(self.path, cache_bytes=self._cache_bytes, read_only=False)
                self._writer = writer
                writer.execute("PRAGMA wal_autocheckpoint = 0")
                writer.execute(f"PRAGMA journal_size_limit = {self._checkpoint_bytes}")
                writer.execute(f"PRAGMA synchronous = {self._synchronous}")
        return self._writer

    def _empty_log(self) -> bool:
        """Copy the log into the database and cut it, without waiting for readers."""
        assert self._wal_fd is not None
        if os.fstat(self._wal_fd).st_size == 0:
            return True
        writer = self._connect_writer()
        with sqlite_errors(self.path, "empty the write-ahead log", "nothing is lost"):
            writer.execute("PRAGMA busy_timeout = 0")
            try:
                is_busy, *_ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                writer.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        return not is_busy

    def close(self) -> None:
        """Make everything durable, release everything; idempotent, also after a failure."""
        if not self._is_open:
            return
        try:
            self._end_reads()
            self._checkpoints.join()
            if self._broken is None:
                self._sync()
                self._empty_log()
        finally:
            self._release()

    def _end_reads(self) -> None:
        with self._viewing:
            self._is_open = False
            views = list(self._views)
        for view in views:
            view.close()

    def _release(self) -> None:
        self._end_reads()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        # Read-only connections last: the log stays as it is.
        self._connections.close()
        self._checkpoints.close()
        self._mark.close()
        with self._flushing:
            fd, self._wal_fd = self._wal_fd, None
            if fd is not None:
                self._fs.close(fd)
        if self._claim is not None:
            disclaim(self._claim)
            self._claim = None
        self._lock.release()

    def __del__(self) -> None:
        """Close the connections of a store that was dropped; nothing depends on it."""
        claimed = getattr(self, "_claim", None)
        # Not in a forked child: the lock is the parent's.
        if claimed is not None and claimed[0] == os.getpid() and not sys.is_finalizing():
            self._release()

    # Writing

    def _open_writer(self) -> sqlite3.Connection:
        if not self._is_open:
            raise NotRunningError("the sqlite store is closed; nothing was written")
        self._require_sound()
        return self._writer or self._connect_writer()

    def _require_sound(self) -> None:
        if self._broken is not None:
            raise StorageError(
                f"'{self.path}': what is durable is unknown since an earlier failure "
                f"({self._broken}); expected to be closed and opened again; {_NOTHING}",
                path=self.path,
            )

    def _break(self, cause: BaseException) -> None:
        self._broken = str(cause)

    def write(self, batch: WriteBatch) -> None:
        """Write a batch in one transaction."""

        def work(writer: sqlite3.Connection) -> int:
            return self._keys + change(writer, batch)

        self._transact(self._open_writer(), work)
        if self._synchronous == "FULL":
            self._note_synced(self._batches)
        self._checkpoints.after_write()

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        """Delete and write everything in one transaction, then empty the log."""
        writer = self._open_writer()
        with sqlite_errors(self.path, "replace the state", _NOTHING):
            writer.execute("PRAGMA synchronous = FULL")
        try:
            self._transact(writer, lambda writer: replace(writer, batches))
        finally:
            with suppress(sqlite3.Error):
                writer.execute(f"PRAGMA synchronous = {self._synchronous}")
        self._note_synced(self._batches)
        self._checkpoints.join()
        try:
            self._empty_log()
        except StorageError as exc:
            # The new state is in force all the same, and durable in the log.
            logger.warning("%s", exc)
            if exc.__cause__ is not None and is_failed_sync(exc.__cause__):
                self._break(exc)

    def _transact(
        self, writer: sqlite3.Connection, work: Callable[[sqlite3.Connection], int]
    ) -> None:
        """Do all of it in a transaction, or nothing; `work` returns the number of keys."""
        commits = False
        try:
            self._checkpoints.before_write(writer)
            writer.execute("BEGIN IMMEDIATE")
            keys = work(writer)
            writer.execute(SET_TOTALS, (keys, self._batches + 1))
            commits = True
            writer.execute("COMMIT")
        except BaseException as exc:
            self._undo(writer, exc, commits)
            if isinstance(exc, sqlite3.Error):
                raise storage_error(exc, self.path, "write", _NOTHING) from exc
            raise
        self._keys = keys
        self._batches += 1

    def _undo(self, writer: sqlite3.Connection, cause: BaseException, commits: bool) -> None:
        """Roll back; what a failed COMMIT has left in the log must not come back (APPLY-3)."""
        with suppress(sqlite3.Error):
            if writer.in_transaction:
                writer.execute("ROLLBACK")
        if commits:
            self._break(cause)
            # A commit whose sync fails is rolled back, but whole in the log: a restart would
            # find it there. The next transaction is written over it.
            with suppress(sqlite3.Error):
                writer.execute(TOUCH)
        elif is_failed_sync(cause):
            self._break(cause)

    # Syncing

    def flush(self) -> None:
        """Sync the write-ahead log."""
        if not self._is_open:
            raise NotRunningError("the sqlite store is closed; nothing was flushed")
        self._require_sound()
        self._sync()

    def _sync(self) -> None:
        with self._flushing:
            if self._wal_fd is None:
                raise NotRunningError("the sqlite store is closed; nothing was flushed")
            self._require_sound()
            batches = self._batches
            if batches == self._synced:
                return
            wal = self.path.with_name(WAL)
            try:
                with storage_errors(wal, "sync the file", "what is durable is unknown"):
                    self._fs.fdatasync(self._wal_fd)
            except StorageError as exc:
                self._break(exc)
                raise
            self._note_synced(batches)

    def _note_synced(self, batches: int) -> None:
        self._synced = batches
        self._mark.note(batches)

    # Reading

    def view(self) -> ReadView:
        """Begin a read transaction on a connection of its own."""
        view = SQLiteView(self.path, self._connections, self._forget)
        with self._viewing:
            if self._is_open:
                self._views.add(view)
                return view
        view.close()
        raise NotRunningError("the sqlite store is closed; nothing was read")

    def _forget(self, view: SQLiteView) -> None:
        self._views.discard(view)
