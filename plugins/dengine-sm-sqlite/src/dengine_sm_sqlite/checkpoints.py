"""Checkpoints: copying the write-ahead log into the database, beside the writes.

SQLite's own automatic checkpoints run inside a commit, which waits for all of it. Here a
thread does them on a connection of its own, and the writer starts the log over by itself
once all of it is copied. Only when writes come so fast that this never happens does one of
them wait: at twice the size of the log that was asked for.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from dengine_sm.files import storage_errors
from dengine_sm_sqlite.database import (
    PAGE_BYTES,
    SHM,
    connect,
    is_failed_sync,
    storage_error,
)

_FRAME_BYTES = PAGE_BYTES + 24
_MOST_FRAME = 16
"""Offset in the `-shm` file of the number of frames in the log (walformat.html, 2.1)."""
_CACHE_BYTES = 1 << 20

logger = logging.getLogger("dengine_sm_sqlite")


class Checkpoints:
    """Keeps the write-ahead log of a store short.

    Args:
        path: the database.
        log_bytes: size of the log that makes a checkpoint due.
        on_failed_sync: told, from the thread, when a sync has failed.
    """

    def __init__(
        self, path: Path, log_bytes: int, on_failed_sync: Callable[[BaseException], None]
    ) -> None:
        self._path = path
        self._log_bytes = log_bytes
        self._on_failed_sync = on_failed_sync
        self._index_fd: int | None = None
        self._thread: threading.Thread | None = None
        self._due = log_bytes
        self._overdue = 2 * log_bytes

    def open(self) -> None:
        """Begin; the database is connected."""
        self._due, self._overdue = self._log_bytes, 2 * self._log_bytes
        index = self._path.with_name(SHM)
        with storage_errors(index, "open the file", "nothing was changed"):
            self._index_fd = os.open(index, os.O_RDONLY)

    def join(self) -> None:
        """Wait for a checkpoint that is under way; idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Release everything, after the last connection was closed; idempotent."""
        fd, self._index_fd = self._index_fd, None
        if fd is not None:
            os.close(fd)

    def before_write(self, writer: sqlite3.Connection) -> None:
        """Checkpoint here and now if the log has grown much too long.

        Raises:
            sqlite3.Error: the disk refused.
        """
        size = self._size()
        if size < self._overdue:
            return
        self.join()
        _, frames, copied = writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < frames:
            # A view needs what is in the log: no use in trying at each write.
            self._overdue = size + self._log_bytes

    def after_write(self) -> None:
        """Begin a checkpoint in a thread if one is due."""
        size = self._size()
        if size < self._log_bytes:
            self._due, self._overdue = self._log_bytes, 2 * self._log_bytes
        if size < self._due or (self._thread is not None and self._thread.is_alive()):
            return
        self._due = size + self._log_bytes // 4
        self._thread = threading.Thread(target=self._run, name="dengine-sm-checkpoint")
        self._thread.start()

    def _size(self) -> int:
        """Return the bytes of the log that are in use; the file may be longer."""
        if self._index_fd is None:
            return 0
        frames = int.from_bytes(os.pread(self._index_fd, 4, _MOST_FRAME), sys.byteorder)
        return frames * _FRAME_BYTES

    def _run(self) -> None:
        try:
            with closing(
                connect(self._path, cache_bytes=_CACHE_BYTES, read_only=False)
            ) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as exc:
            error = storage_error(exc, self._path, "checkpoint", "nothing is lost")
            logger.warning("%s", error)
            if is_failed_sync(exc):
                self._on_failed_sync(error)
