"""Atomic replacement of small files, plain or with a checksum."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from dengine_sm.errors import CorruptionError
from dengine_sm.files.filesystem import (
    FileSystem,
    default_file_system,
    read_all,
    storage_errors,
    write_all,
)

TEMPORARY_SUFFIX = ".tmp"

_MAGIC = b"DSMC"
_HEADER = struct.Struct(">4sII")


def create_aside(path: Path, content: bytes, fs: FileSystem) -> Path:
    """Write a synced temporary file beside `path` and return its path.

    Raises:
        OSError: the disk refused; the temporary file was removed.
    """
    aside = path.with_name(path.name + TEMPORARY_SUFFIX)
    fd = fs.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        try:
            write_all(fs, fd, content)
            fs.fsync(fd)
        finally:
            fs.close(fd)
    except BaseException:
        with suppress(OSError):
            fs.unlink(aside)
        raise
    return aside


def replace_file(path: Path, content: bytes, fs: FileSystem | None = None) -> None:
    """Replace the content of a file, whole and durably, or not at all.

    Raises:
        StorageError: the disk refused. The old file is untouched, unless only the last
            step failed, syncing the directory: then readers see the new one, and a
            power failure may bring back the old one.
    """
    fs = fs or default_file_system()
    with storage_errors(path, "replace the file", "the old content is untouched"):
        aside = create_aside(path, content, fs)
        try:
            fs.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                fs.unlink(aside)
            raise
    with storage_errors(
        path.parent, "sync the directory", f"'{path.name}' is new, maybe not durably"
    ):
        fs.sync_directory(path.parent)


def write_checked_file(path: Path, payload: bytes, fs: FileSystem | None = None) -> None:
    """Replace a file by a payload with length and checksum.

    Raises:
        StorageError: as for `replace_file`.
    """
    header = _HEADER.pack(_MAGIC, len(payload), _checksum(payload))
    replace_file(path, header + payload, fs)


def read_checked_file(path: Path, fs: FileSystem | None = None) -> bytes:
    """Return the payload of a file that `write_checked_file` wrote.

    Raises:
        CorruptionError: any byte differs, is missing or is too many.
        StorageError: the file is absent or the disk refused.
    """
    fs = fs or default_file_system()
    with storage_errors(path, "read the file", "nothing was read"):
        fd = fs.open(path, os.O_RDONLY)
        try:
            data = read_all(fs, fd)
        finally:
            fs.close(fd)
    if len(data) < _HEADER.size:
        raise _damaged(path, len(data), f"ends after {len(data)} bytes, inside its header")
    magic, length, crc = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != _MAGIC:
        raise _damaged(path, 0, f"begins with {magic!r}, expected {_MAGIC!r}")
    if length != len(payload):
        where = _HEADER.size + min(length, len(payload))
        raise _damaged(path, where, f"holds {len(payload)} bytes, its header says {length}")
    if crc != _checksum(payload):
        raise _damaged(path, _HEADER.size, "does not match its checksum")
    return payload


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(len(payload).to_bytes(4, "big")))


def _damaged(path: Path, offset: int, problem: str) -> CorruptionError:
    return CorruptionError(
        f"'{path}' {problem}: damaged at offset {offset}; nothing was read",
        path=path,
        offset=offset,
    )
