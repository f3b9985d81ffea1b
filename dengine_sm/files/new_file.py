"""A new file, written from its beginning to its end through a `FileSystem`."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from dengine_sm.files.filesystem import Buffer, FileSystem, default_file_system, write_all

_BUFFER_BYTES = 1 << 20


class NewFile:
    """Creates a file that must not exist, and buffers what is written; a context manager.

    Leaving the block writes the buffer out, unless it is left by an exception, and closes
    the file; nothing is synced but by `sync`. Every method may raise OSError; what the
    file holds then is of no use.

    Args:
        path: the file.
        fs: the file system to write through.
        mode: permissions, less those of the umask.
    """

    def __init__(self, path: Path, fs: FileSystem | None = None, *, mode: int = 0o666) -> None:
        self.path = path
        self._fs = fs or default_file_system()
        self._fd = self._fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        self._buffer = bytearray()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                self._write_out()
        finally:
            self._fs.close(self._fd)

    def write(self, data: Buffer) -> int:
        """Write at the end; return the number of bytes."""
        if len(data) >= _BUFFER_BYTES:
            self._write_out()
            write_all(self._fs, self._fd, data)
            return len(data)
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            self._write_out()
        return len(data)

    def overwrite(self, data: Buffer, offset: int) -> None:
        """Write over what was written before."""
        self._write_out()
        if self._fs.pwrite(self._fd, data, offset) != len(data):
            raise OSError(f"'{self.path}' was overwritten in part")

    def sync(self) -> None:
        """Make what was written so far durable."""
        self._write_out()
        self._fs.fsync(self._fd)

    def _write_out(self) -> None:
        # Not cleared: the traceback of a failed write may still hold a view of it.
        buffer, self._buffer = self._buffer, bytearray()
        if buffer:
            write_all(self._fs, self._fd, buffer)
