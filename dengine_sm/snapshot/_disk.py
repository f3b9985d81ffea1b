"""What the snapshot modules share when they touch the disk."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import IO, Any

from dengine_sm.errors import SnapshotCorruptionError, SnapshotError

BLOCK_BYTES = 1 << 20
TEMPORARY_PREFIX = "tmp-"

_NAME_BYTES = 255
_MISSING = (FileNotFoundError, NotADirectoryError)


def damaged(
    path: Path, problem: str, *, expected: Any = None, observed: Any = None
) -> SnapshotCorruptionError:
    """Return the error for a damaged snapshot file or directory."""
    return SnapshotCorruptionError(
        f"snapshot '{path}': {problem}; the snapshot was not used",
        path=path,
        expected=expected,
        observed=observed,
    )


def open_regular(path: Path) -> IO[bytes]:
    """Open a file of a snapshot for reading, following no symbolic link.

    Raises:
        SnapshotCorruptionError: it is missing or not a regular file.
        OSError: the disk refused.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise damaged(path, "not a regular file", expected="a regular file")
        # O_NONBLOCK: a pipe that slips in after the check must not hang the reader.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except _MISSING as exc:
        raise damaged(path, "missing", expected="a regular file") from exc
    return os.fdopen(fd, "rb", buffering=BLOCK_BYTES)


def hash_stream(stream: IO[bytes]) -> tuple[int, bytes]:
    """Return the number of bytes up to the end of a stream, and their sha256."""
    digest = hashlib.sha256()
    size = 0
    block = memoryview(bytearray(BLOCK_BYTES))
    while count := stream.readinto(block):  # type: ignore[attr-defined] # IO lacks readinto
        digest.update(block[:count])
        size += count
    return size, digest.digest()


def is_plain_name(name: str) -> bool:
    """Tell whether a name is one path component on every system, in valid UTF-8."""
    if not name or name in (".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
        return False
    try:
        return len(name.encode()) <= _NAME_BYTES
    except UnicodeEncodeError:
        return False


def list_flat(directory: Path) -> list[str]:
    """Return the sorted names of the files in a directory that is about to be a snapshot.

    Raises:
        SnapshotError: something in it is not a regular file, or has no plain name.
        OSError: the disk refused.
    """
    names = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not is_plain_name(entry.name) or not entry.is_file(follow_symlinks=False):
                raise SnapshotError(
                    f"snapshot directory '{directory}': {entry.name!r} is not a regular file "
                    f"with a plain name; expected a flat directory of regular files",
                    path=directory,
                    observed=entry.name,
                )
            names.append(entry.name)
    return sorted(names)
