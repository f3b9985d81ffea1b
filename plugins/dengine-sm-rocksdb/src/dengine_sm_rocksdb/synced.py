"""`SYNCED`: what was durable at the last sync, so that a loss of it is told from a crash.

RocksDB forgets silently what is cut off its newest log files, because it cannot know that it
ever was there. This file says how far the WAL and the MANIFEST are known to be durable. It is
one sector, overwritten after each sync, and not synced itself: an older one promises less.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attrs

from dengine_sm.codec import decode_prefix, encode
from dengine_sm.errors import CorruptionError
from dengine_sm.files import FileSystem, default_file_system

NAME = "SYNCED"
SIZE = 512
_MAGIC = b"dengine-sm-rocksdb synced 1\n"
_CHECKSUM = struct.Struct(">I")
_MOST_WALS = 32


@attrs.frozen
class Synced:
    """What is durable."""

    wals: tuple[int, ...] = ()
    """Numbers of WALs that exist, rising; RocksDB removes them when MANIFEST says so."""
    wal_bytes: int = 0
    """Size of the newest of them that is durable."""
    manifest: int = 0
    """Number of the MANIFEST."""
    manifest_bytes: int = 0
    """Size of it that is durable."""

    @property
    def newest_wal(self) -> int:
        """Number of the newest WAL; 0 if there is none."""
        return self.wals[-1] if self.wals else 0

    def encode(self) -> bytes:
        """Return a sector's content."""
        wals = list(self.wals[-_MOST_WALS:])
        payload = _MAGIC + encode([wals, self.wal_bytes, self.manifest, self.manifest_bytes])
        body = payload.ljust(SIZE - _CHECKSUM.size, b"\0")
        return body + _CHECKSUM.pack(zlib.crc32(body))


def read_synced(directory: Path) -> Synced:
    """Read the file of a database's directory.

    Raises:
        CorruptionError: it is missing or damaged.
        OSError: it cannot be read.
    """
    path = directory / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, 0, "is missing") from None
    if len(content) != SIZE:
        raise _damaged(path, min(len(content), SIZE), f"has {len(content)} bytes, not {SIZE}")
    body, checksum = content[: -_CHECKSUM.size], content[-_CHECKSUM.size :]
    if checksum != _CHECKSUM.pack(zlib.crc32(body)) or not body.startswith(_MAGIC):
        raise _damaged(path, 0, "does not match its checksum")
    wals, *numbers = decode_prefix(body[len(_MAGIC) :])
    return Synced(tuple(wals), *numbers)


def _damaged(path: Path, offset: int, problem: str) -> CorruptionError:
    return CorruptionError(
        f"'{path}' {problem}: what was durable is not known; nothing was changed",
        path=path,
        offset=offset,
    )


class SyncedFile:
    """Keeps the file of an open database up to date. Not safe for threads."""

    def __init__(self, directory: Path, fs: FileSystem | None = None) -> None:
        self._directory = directory
        self._fs = fs or default_file_system()
        self._path = directory / NAME
        self._known = Synced()
        self._fd = -1

    def open(self) -> None:
        """Open the file, and create it if need be.

        Raises:
            OSError: the disk refused.
        """
        self._fd = self._fs.open(self._path, os.O_WRONLY | os.O_CREAT)

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                self._fs.close(fd)

    def look(self, *, sync_manifest: bool = True) -> Synced:
        """Return what a sync that begins now makes durable; MANIFEST is synced here.

        Args:
            sync_manifest: otherwise what is known of MANIFEST is left as it was.

        Raises:
            OSError: the disk refused.
        """
        try:
            wals, manifests = numbered_files(self._directory)
            size = wal_path(self._directory, wals[-1]).stat().st_size if wals else 0
            if sync_manifest and len(manifests) == 1:
                manifest = (manifests[0], self._durable_manifest(manifests[0]))
            else:
                manifest = (self._known.manifest, self._known.manifest_bytes)
        except FileNotFoundError:
            # RocksDB is replacing a file this moment; the next sync tells more.
            return self._known
        return Synced(tuple(wals), size, *manifest)

    def _durable_manifest(self, number: int) -> int:
        """Return a size of MANIFEST that is durable: the present one, unless it is known."""
        path = manifest_path(self._directory, number)
        size = path.stat().st_size
        if (number, size) != (self._known.manifest, self._known.manifest_bytes):
            # RocksDB writes in threads of its own, and might not have synced it yet.
            fd = self._fs.open(path, os.O_RDONLY)
            try:
                self._fs.fsync(fd)
            finally:
                self._fs.close(fd)
        return size

    def note(self, synced: Synced) -> None:
        """Write down what `look` returned, after the sync; a failure is no harm."""
        if synced != self._known:
            with suppress(OSError):
                self._fs.pwrite(self._fd, synced.encode(), 0)
                self._known = synced

    def sync(self) -> None:
        """Make the file itself durable: once, when it is new.

        Raises:
            OSError: the disk refused.
        """
        self._fs.fsync(self._fd)
        self._fs.sync_directory(self._directory)


def numbered_files(directory: Path) -> tuple[list[int], list[int]]:
    """Return the numbers of the WALs and of the MANIFESTs in a directory, rising.

    Raises:
        OSError: it cannot be read.
    """
    names = os.listdir(directory)  # noqa: PTH208 - once for every sync, and twice as fast
    wals = [_number(name[:-4]) for name in names if name.endswith(".log")]
    manifests = [_number(name[9:]) for name in names if name.startswith("MANIFEST-")]
    return _sorted(wals), _sorted(manifests)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _sorted(numbers: Iterable[int | None]) -> list[int]:
    return sorted(number for number in numbers if number is not None)


def wal_path(directory: Path, number: int) -> Path:
    """Return the path of a WAL."""
    return directory / f"{number:06d}.log"


def manifest_path(directory: Path, number: int) -> Path:
    """Return the path of a MANIFEST."""
    return directory / f"MANIFEST-{number:06d}"
