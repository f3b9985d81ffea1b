"""The operating system's file calls behind one object, so that tests can break them.

All durable I/O of the package goes through a `FileSystem`. Its methods raise OSError
like the calls they stand for; `storage_errors` turns that into `StorageError`.

Whoever is given no file system uses `default_file_system()`, which a test of durability
can exchange for the whole process: see `replaced_file_system`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dengine_sm.errors import StorageError

Buffer = bytes | bytearray | memoryview


class FileSystem(Protocol):
    """What durable files need; every method may raise OSError."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open a file and return its descriptor."""
        ...

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        ...

    def write(self, fd: int, data: Buffer) -> int:
        """Write at the file position; return the number of bytes taken, maybe fewer."""
        ...

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at `offset`; empty at the end of the file."""
        ...

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at `offset`; return the number of bytes taken, maybe fewer."""
        ...

    def fsync(self, fd: int) -> None:
        """Make data and metadata of a file durable."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Make data of a file, and what is needed to read it back, durable."""
        ...

    def truncate(self, fd: int, size: int) -> None:
        """Set the size of a file."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another, atomically."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        ...

    def mkdir(self, path: Path) -> None:
        """Create a directory."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable."""
        ...


class OsFileSystem:
    """The real file system."""

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open a file and return its descriptor."""
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def write(self, fd: int, data: Buffer) -> int:
        """Write at the file position; return the number of bytes taken."""
        return os.write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at `offset`."""
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at `offset`; return the number of bytes taken."""
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """Make data and metadata of a file durable."""
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Make data of a file durable."""
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Set the size of a file."""
        os.ftruncate(fd, size)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another, atomically."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def mkdir(self, path: Path) -> None:
        """Create a directory."""
        path.mkdir(mode=0o700)

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_OS = OsFileSystem()
_replacement: FileSystem | None = None


def default_file_system() -> FileSystem:
    """Return the file system for whoever is given none: the real one, unless replaced."""
    return _replacement or _OS


@contextmanager
def replaced_file_system(fs: FileSystem) -> Iterator[FileSystem]:
    """Let whatever is constructed in the block, and given no file system, write through `fs`.

    For tests of durability: faults and power loss can be played to any machine that writes
    through `dengine_sm.files`, without its author's doing. The replacement is seen by every
    thread of the process. An object keeps the file system that it was constructed with.
    """
    global _replacement
    before, _replacement = _replacement, fs
    try:
        yield fs
    finally:
        _replacement = before


@contextmanager
def storage_errors(path: Path, action: str, state: str) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError about `path`.

    Args:
        path: the file or directory the block works on.
        action: what the block does, after "cannot".
        state: what is left behind when it fails.
    """
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise StorageError(f"'{path}': cannot {action}: {reason}; {state}", path=path) from exc


def write_all(fs: FileSystem, fd: int, data: Buffer) -> None:
    """Write a whole buffer at the file position; normally one call.

    Raises:
        OSError: the disk refused; a part may have been written.
    """
    written = fs.write(fd, data)
    if written == len(data):
        return
    rest = memoryview(data)
    while written < len(data):
        # The second call of a short write is what reports the cause (ENOSPC, EFBIG).
        step = fs.write(fd, rest[written:])
        if step == 0:
            raise OSError(errno.EIO, "the disk takes no more bytes and gives no reason")
        written += step


def sync_file(path: Path, fs: FileSystem | None = None) -> None:
    """Make a file that others have written durable; a symbolic link is not followed.

    Raises:
        OSError: the disk refused.
    """
    fs = fs or default_file_system()
    fd = fs.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fs.fsync(fd)
    finally:
        fs.close(fd)


def read_all(fs: FileSystem, fd: int) -> bytes:
    """Read a small file from its beginning to its end."""
    parts: list[bytes] = []
    offset = 0
    while part := fs.pread(fd, 1 << 16, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def sync_directory(path: Path, fs: FileSystem | None = None) -> None:
    """Make the entries of a directory durable.

    Raises:
        StorageError: the disk refused; whether the entries are durable is unknown.
    """
    with storage_errors(path, "sync the directory", "its newest entries may not be durable"):
        (fs or default_file_system()).sync_directory(path)


def make_directories(path: Path, fs: FileSystem | None = None) -> None:
    """Make a directory and the missing ones above it, durably.

    Raises:
        StorageError: the disk refused; some of them may exist.
    """
    fs = fs or default_file_system()
    with storage_errors(path, "make the directory", "nothing was written to it"):
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        _sync_entry(path, fs)
        for directory in reversed(missing):
            fs.mkdir(directory)
            # Without this a power failure could take the directory with all that is in it.
            fs.sync_directory(directory.parent)


def _sync_entry(directory: Path, fs: FileSystem) -> None:
    """Make the entry of a directory durable; a crash may have come just after `mkdir`."""
    try:
        fs.sync_directory(directory.parent)
    except OSError as exc:
        # What may not be read or synced is not where we made a directory.
        if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL):
            raise


def names_in(directory: Path) -> set[str]:
    """Return the names in a directory; none if it does not exist.

    Raises:
        StorageError: it is no directory, or cannot be read; nothing was changed.
    """
    with storage_errors(directory, "read the directory", "nothing was changed"):
        try:
            return {path.name for path in directory.iterdir()}
        except FileNotFoundError:
            return set()
