"""`SYNCED`: what was durable at the last sync, so that a loss of it is told from a crash.

RocksDB forgets silently what is cut off its newest log files, because it cannot know that it
ever was there. This file says how far the WAL and the MANIFEST are known to be durable. It is
written after each sync, to one of two sectors by turns, so that one of them is always whole, and
not synced itself: an older one promises less.
"""

from __future__ import annotations

import errno
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
SECTOR_BYTES = 512
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
    chunk: int = 0
    """Number of the newest write batch that is durable."""

    @property
    def newest_wal(self) -> int:
        """Number of the newest WAL; 0 if there is none."""
        return self.wals[-1] if self.wals else 0

    def encode(self, turn: int) -> bytes:
        """Return a sector's content; the one of the latest turn counts."""
        numbers = [self.wal_bytes, self.manifest, self.manifest_bytes, self.chunk]
        payload = _MAGIC + encode([turn, list(self.wals[-_MOST_WALS:]), *numbers])
        body = payload.ljust(SECTOR_BYTES - _CHECKSUM.size, b"\0")
        return body + _CHECKSUM.pack(zlib.crc32(body))


def read_synced(directory: Path) -> Synced:
    """Read the file of a database's directory.

    Raises:
        CorruptionError: it is missing, or none of its sectors is whole.
        OSError: it cannot be read.
    """
    return _read(directory)[1]


def _read(directory: Path) -> tuple[int, Synced]:
    """Return the latest turn and what was written in it."""
    path = directory / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    parts = (content[at : at + SECTOR_BYTES] for at in (0, SECTOR_BYTES))
    whole = [found for part in parts if (found := _decode(part)) is not None]
    if not whole:
        raise _damaged(path, "has no sector that matches its checksum")
    return max(whole, key=lambda found: found[0])


def _decode(sector: bytes) -> tuple[int, Synced] | None:
    body, checksum = sector[: -_CHECKSUM.size], sector[-_CHECKSUM.size :]
    if checksum != _CHECKSUM.pack(zlib.crc32(body)) or not body.startswith(_MAGIC):
        return None
    turn, wals, *numbers = decode_prefix(body[len(_MAGIC) :])
    return turn, Synced(tuple(wals), *numbers)


def _damaged(path: Path, problem: str) -> CorruptionError:
    return CorruptionError(
        f"'{path}' {problem}: what was durable is not known; nothing was changed",
        path=path,
        offset=0,
    )


class SyncedFile:
    """Keeps the file of an open database up to date. Not safe for threads."""

    def __init__(self, directory: Path, fs: FileSystem | None = None) -> None:
        self._directory = directory
        self._fs = fs or default_file_system()
        self._path = directory / NAME
        self._known = Synced()
        self._turn = 0
        self._fd = -1

    def open(self) -> None:
        """Open the file.

        Raises:
            OSError: the disk refused.
        """
        self._turn, self._known = _read(self._directory)
        self._fd = self._fs.open(self._path, os.O_WRONLY)

    def create(self) -> None:
        """Create the file, and open it.

        Raises:
            OSError: the disk refused.
        """
        self._fd = self._fs.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def close(self) -> None:
        """Close the file; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                self._fs.close(fd)

    def look(self, chunk: int, *, sync_manifest: bool = True) -> Synced:
        """Return what a sync that begins now makes durable; MANIFEST is synced here.

        Args:
            chunk: number of the newest write batch.
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
        return Synced(tuple(wals), size, *manifest, chunk)

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
                self.write(synced)

    def write(self, synced: Synced) -> None:
        """Write down what is durable.

        Raises:
            OSError: the disk refused; what was there before counts.
        """
        turn = self._turn + 1
        sector = synced.encode(turn)
        if self._fs.pwrite(self._fd, sector, turn % 2 * SECTOR_BYTES) < len(sector):
            raise OSError(errno.ENOSPC, "the disk takes no more bytes", str(self._path))
        self._turn, self._known = turn, synced

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
