"""An exclusive lock on a directory that ends with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dengine_sm.errors import StorageLockedError
from dengine_sm.files.filesystem import FileSystem, default_file_system, storage_errors


class DirectoryLock:
    """Exclusive use of a directory, by flock on a file in it.

    The kernel releases it when the process dies (LIFE-6). The file stays: removing it
    would let two processes lock two files of one name.
    """

    def __init__(self, directory: Path, name: str = "LOCK", fs: FileSystem | None = None) -> None:
        self.path = directory / name
        self._fs = fs or default_file_system()
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock without waiting; a no-op when this object holds it.

        Raises:
            StorageLockedError: another object, here or in another process, holds it;
                nothing was changed.
            StorageError: the lock file cannot be opened or written.
        """
        if self._fd is not None:
            return
        with storage_errors(self.path, "lock the directory", "it is not locked by this call"):
            fd = self._fs.open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(fd)
            except BaseException:
                self._fs.close(fd)
                raise
        self._fd = fd

    def release(self) -> None:
        """Give the lock up; idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            # Unlocking by name first: a child forked meanwhile shares the descriptor.
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                self._fs.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = self._fs.pread(fd, 32, 0).decode("ascii", "replace").strip()
            by = f"process {holder}" if holder.isdigit() else "another process"
            raise StorageLockedError(
                f"directory '{self.path.parent}' is locked by {by} ('{self.path.name}'); "
                "expected to be its only user; nothing was changed",
                path=self.path.parent,
            ) from exc
        self._fs.truncate(fd, 0)
        self._fs.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
