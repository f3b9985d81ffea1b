"""The file `SYNCED`: how much of the state was durable, told apart from the database.

SQLite takes a write-ahead log that is damaged in its middle for one that ends there, and
one that is missing for an empty one: what had been made durable would be lost without a
word (CRASH-5). So the number of the newest durable write is noted here, and compared
when the store is opened. The note itself is not synced: after a power loss it may be
older, and claims less; it never claims what is not durable.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from pathlib import Path

from dengine_sm.files import FileSystem, storage_errors

_RECORD = struct.Struct(">4sQI")
_MAGIC = b"dSMs"
_SLOTS = (0, 512)
"""Written by turns, so that a torn write leaves the other one."""

logger = logging.getLogger("dengine_sm_sqlite")


class SyncedMark:
    """The number of the newest write that is known to be durable.

    Args:
        path: the file; made by `open`.
        fs: the file system to write through.
    """

    def __init__(self, path: Path, fs: FileSystem) -> None:
        self.path = path
        self._fs = fs
        self._fd: int | None = None
        self._lock = threading.Lock()
        self._turn = self._newest = 0

    def open(self) -> int:
        """Return the number noted last; 0 when there is none, or it cannot be made out.

        Raises:
            StorageError: the disk refused.
        """
        with storage_errors(self.path, "open the file", "nothing was changed"):
            if self._fd is None:
                self._fd = self._fs.open(self.path, os.O_RDWR | os.O_CREAT)
            found = [self._read(self._fd, offset) for offset in _SLOTS]
        self._turn = found.index(min(found))
        self._newest = max(found)
        return self._newest

    def note(self, number: int) -> None:
        """Note that a write and all before it are durable.

        A disk that refuses makes the next `open` check less, and loses nothing.
        """
        body = _MAGIC + number.to_bytes(8, "big")
        record = body + zlib.crc32(body).to_bytes(4, "big")
        with self._lock:
            if self._fd is None or number <= self._newest:
                return
            try:
                self._fs.pwrite(self._fd, record, _SLOTS[self._turn])
            except OSError as exc:
                logger.warning("%s cannot be written: %s", self.path, exc)
            self._turn = 1 - self._turn
            self._newest = number

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            self._fs.close(fd)

    def _read(self, fd: int, offset: int) -> int:
        record = self._fs.pread(fd, _RECORD.size, offset)
        if len(record) < _RECORD.size:
            return 0
        magic, number, checksum = _RECORD.unpack(record)
        if magic != _MAGIC or checksum != zlib.crc32(record[:-4]):
            return 0
        return int(number)
