"""A snapshot directory as one compressed file; the only importer of zstandard.

    file   = header (4096 bytes), body
    header = "DSNP", version:u16, length:u16, CBOR array, zeros, crc32:u32 of all before
    array  = [metadata, body bytes, sha256 of the body, number of files, their bytes]
    body   = zstandard( tar of the regular files, sorted by name, without owners and times )

Magic, version and crc stay where they are in every version.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import attrs
import zstandard

from dengine_sm.codec import decode, encode, pack_snapshot_metadata, unpack_snapshot_metadata
from dengine_sm.errors import SnapshotError, SnapshotFormatError
from dengine_sm.files.filesystem import (
    FileSystem,
    default_file_system,
    storage_errors,
    sync_directory,
)
from dengine_sm.files.new_file import NewFile
from dengine_sm.model import SnapshotMetadata
from dengine_sm.snapshot._disk import (
    BLOCK_BYTES,
    TEMPORARY_PREFIX,
    damaged,
    hash_stream,
    is_plain_name,
    list_flat,
    open_regular,
)

ARCHIVE_VERSION = 1
HEADER_BYTES = 4096

_MAGIC = b"DSNP"
_PREFIX = struct.Struct(">4sHH")
_CRC = struct.Struct(">I")
_ROOM = HEADER_BYTES - _PREFIX.size - _CRC.size
_LEVEL = 3
_LONG_NAME_BYTES = 512
_MEMBER_TYPES = (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME)
_UNREADABLE = (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, RecursionError)


@attrs.frozen
class ArchiveHeader:
    """What an archive says about itself."""

    metadata: SnapshotMetadata
    body_bytes: int
    sha256: bytes
    """Of the compressed body."""
    file_count: int
    content_bytes: int
    """Size of all files together, unpacked."""


def pack_archive(
    directory: Path, target: Path, metadata: SnapshotMetadata, fs: FileSystem | None = None
) -> ArchiveHeader:
    """Pack a snapshot directory into one file, whole and durable or not at all.

    An archive that is there already is replaced in one step.

    Returns:
        The header of the new archive.

    Raises:
        SnapshotError: the directory is not flat.
        StorageError: the disk refused; `target` is as before.
    """
    fs = fs or default_file_system()
    aside = target.with_name(TEMPORARY_PREFIX + secrets.token_hex(8))
    with storage_errors(target, "pack the snapshot", "no archive was published"):
        try:
            with NewFile(aside, fs) as file:
                header = _write_archive(directory, file, metadata)
                file.sync()
            fs.replace(aside, target)
        except BaseException:
            with suppress(OSError):
                fs.unlink(aside)
            raise
    sync_directory(target.parent, fs)
    return header


def read_archive_header(path: Path) -> ArchiveHeader:
    """Return the header of an archive whose size fits it; the body is not read.

    Raises:
        SnapshotCorruptionError: missing, damaged or truncated.
        SnapshotFormatError: of a newer version.
        StorageError: the disk refused.
    """
    with _reading(path) as stream:
        return _read_header(path, stream)


def verify_archive(path: Path) -> ArchiveHeader:
    """Check header and body of an archive; its files are not looked at.

    Raises:
        SnapshotCorruptionError: missing, damaged or truncated.
        SnapshotFormatError: of a newer version.
        StorageError: the disk refused.
    """
    with _reading(path) as stream:
        return _verify(path, stream)


def unpack_archive(path: Path, directory: Path, fs: FileSystem | None = None) -> SnapshotMetadata:
    """Unpack an archive; everything is verified before the first file is written.

    What is unpacked is not synced: the directory is for reading now.

    Args:
        path: the archive.
        directory: does not exist yet; its parent does.
        fs: the file system to write through.

    Raises:
        SnapshotCorruptionError: damaged, or holds what no snapshot holds.
        SnapshotFormatError: of a newer version.
        SnapshotError: the directory exists; it is untouched.
        StorageError: the disk refused.

    Whatever is raised, nothing of the archive is left.
    """
    fs = fs or default_file_system()
    with _reading(path) as stream:
        header = _verify(path, stream)
        try:
            fs.mkdir(directory)
        except FileExistsError:
            raise SnapshotError(
                f"'{directory}' exists; expected a new directory to unpack '{path}' into; "
                f"nothing was unpacked",
                path=directory,
            ) from None
        try:
            stream.seek(HEADER_BYTES)
            _extract(path, stream, header, directory, fs)
        except BaseException:
            _remove(directory, fs)
            raise
    return header.metadata


class _HashingWriter:
    """Passes bytes on to a file, and counts and hashes them."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


class _PlainMember(tarfile.TarInfo):
    """A member header that may only announce a regular file or its long name."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _PlainMember:
        member = super().frombuf(buf, encoding, errors)
        # tarfile holds a long name in memory, and follows pax and sparse headers for ever.
        limit = _LONG_NAME_BYTES if member.type == tarfile.GNUTYPE_LONGNAME else sys.maxsize
        if member.type not in _MEMBER_TYPES or not 0 <= member.size <= limit:
            raise _HostileMember(
                f"{member.name!r} has member type {member.type!r} and {member.size} bytes"
            )
        return member


class _HostileMember(Exception):  # noqa: N818 - never leaves this module
    """Not an OSError or TarError: tarfile must let it through."""


def _write_archive(directory: Path, file: NewFile, metadata: SnapshotMetadata) -> ArchiveHeader:
    names = list_flat(directory)
    file.write(bytes(HEADER_BYTES))
    writer = _HashingWriter(file)
    content_bytes = 0
    with (
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(writer, closefd=False) as body,  # type: ignore[arg-type] # it calls write only
        tarfile.open(
            fileobj=body,
            mode="w|",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            bufsize=BLOCK_BYTES,
        ) as tar,
    ):
        for name in names:
            content_bytes += _add(tar, directory / name)
    header = ArchiveHeader(metadata, writer.size, writer.digest.digest(), len(names), content_bytes)
    file.overwrite(_pack_header(header), 0)
    return header


def _add(tar: tarfile.TarFile, path: Path) -> int:
    # A fresh TarInfo has neither owner nor time, so that equal directories pack equally.
    member = tarfile.TarInfo(path.name)
    member.mode = 0o644
    with open_regular(path) as stream:
        member.size = os.fstat(stream.fileno()).st_size
        tar.addfile(member, stream)
    return member.size


def _pack_header(header: ArchiveHeader) -> bytes:
    payload = encode(
        [
            pack_snapshot_metadata(header.metadata),
            header.body_bytes,
            header.sha256,
            header.file_count,
            header.content_bytes,
        ]
    )
    if len(payload) > _ROOM:
        raise SnapshotError(
            f"snapshot metadata takes {len(payload)} bytes, expected at most {_ROOM}; "
            f"no archive was published"
        )
    prefix = _PREFIX.pack(_MAGIC, ARCHIVE_VERSION, len(payload))
    region = (prefix + payload).ljust(HEADER_BYTES - _CRC.size, b"\0")
    return region + _CRC.pack(zlib.crc32(region))


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    with (
        storage_errors(path, "read the archive", "nothing was unpacked"),
        open_regular(path) as stream,
    ):
        yield stream


def _read_header(path: Path, stream: IO[bytes]) -> ArchiveHeader:
    region = stream.read(HEADER_BYTES)
    if len(region) < HEADER_BYTES or not region.startswith(_MAGIC):
        raise damaged(path, "does not begin with the header of an archive")
    content, (crc,) = region[: -_CRC.size], _CRC.unpack(region[-_CRC.size :])
    if zlib.crc32(content) != crc:
        raise damaged(path, "the header does not match its checksum")
    _, version, length = _PREFIX.unpack_from(content)
    if version != ARCHIVE_VERSION:
        raise SnapshotFormatError(
            f"archive '{path}' has version {version}, this program reads {ARCHIVE_VERSION}; "
            f"nothing was unpacked",
            path=path,
            expected=ARCHIVE_VERSION,
            observed=version,
        )
    try:
        header = _unpack_header(decode(content[_PREFIX.size : _PREFIX.size + length]))
    except ValueError as exc:
        raise damaged(path, f"not the header of an archive ({exc})") from exc
    expected = HEADER_BYTES + header.body_bytes
    observed = os.fstat(stream.fileno()).st_size
    if observed != expected:
        raise damaged(
            path,
            f"{observed} bytes long, its header says {expected}",
            expected=expected,
            observed=observed,
        )
    return header


def _unpack_header(item: Any) -> ArchiveHeader:
    match item:
        case [metadata, int(body), bytes(sha256), int(count), int(content)]:
            if min(body, count, content) >= 0:
                return ArchiveHeader(
                    unpack_snapshot_metadata(metadata), body, sha256, count, content
                )
    raise ValueError(f"archive header: expected 5 fields, observed {item!r}")


def _verify(path: Path, stream: IO[bytes]) -> ArchiveHeader:
    header = _read_header(path, stream)
    _, observed = hash_stream(stream)
    if observed != header.sha256:
        raise damaged(
            path,
            f"the body's sha256 is {observed.hex()}, its header says {header.sha256.hex()}",
            expected=header.sha256,
            observed=observed,
        )
    return header


def _extract(
    path: Path, stream: IO[bytes], header: ArchiveHeader, directory: Path, fs: FileSystem
) -> None:
    count = content_bytes = 0
    try:
        with (
            zstandard.ZstdDecompressor().stream_reader(
                stream, read_size=BLOCK_BYTES, closefd=False
            ) as plain,
            tarfile.open(
                fileobj=plain,
                mode="r|",
                tarinfo=_PlainMember,
                encoding="utf-8",
                bufsize=BLOCK_BYTES,
            ) as tar,
        ):
            for member in tar:
                count += 1
                content_bytes += member.size
                if count > header.file_count or content_bytes > header.content_bytes:
                    raise _HostileMember(f"{member.name!r} is more than its header says")
                _extract_member(tar, member, directory, fs)
    except (_HostileMember, *_UNREADABLE) as exc:
        raise damaged(path, f"holds what no snapshot holds ({exc})") from exc
    if (count, content_bytes) != (header.file_count, header.content_bytes):
        raise damaged(
            path,
            f"unpacks to {count} files of {content_bytes} bytes, its header says "
            f"{header.file_count} of {header.content_bytes}",
            expected=(header.file_count, header.content_bytes),
            observed=(count, content_bytes),
        )


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path, fs: FileSystem
) -> None:
    if not member.isreg() or not is_plain_name(member.name):
        raise _HostileMember(f"{member.name!r} is not a regular file with a plain name")
    source = tar.extractfile(member)
    if source is None:
        raise _HostileMember(f"{member.name!r} has no content")
    try:
        target = NewFile(directory / member.name, fs)
    except FileExistsError:
        raise _HostileMember(f"{member.name!r} is there twice") from None
    with source, target:
        shutil.copyfileobj(source, target, BLOCK_BYTES)


def _remove(directory: Path, fs: FileSystem) -> None:
    with suppress(OSError):
        for path in directory.iterdir():
            fs.unlink(path)
        directory.rmdir()
