"""The manifest of a snapshot directory: every file with size and sha256.

`manifest.cbor` is one deterministic CBOR array:

    ["dengine-snapshot", 1, format, [term, index],
     [[name, size_bytes, sha256], ...sorted by name], [[property, value], ...]]

The checksum of the snapshot is the sha256 of these bytes, and so covers every file.

Source: CONTRACT SNAP-2, SNAP-4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.codec import decode, encode, pack_log_id, unpack_log_id
from dengine_sm.errors import SnapshotError, SnapshotFormatError
from dengine_sm.files.filesystem import (
    FileSystem,
    default_file_system,
    storage_errors,
    sync_directory,
    sync_file,
)
from dengine_sm.files.new_file import NewFile
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot._disk import (
    damaged,
    hash_stream,
    is_plain_name,
    list_flat,
    open_regular,
)

MANIFEST_NAME = "manifest.cbor"
MANIFEST_VERSION = 1

_MAGIC = "dengine-snapshot"
_MAX_MANIFEST_BYTES = 64 << 20
_SHA256_BYTES = 32

PropertyValue = int | str | bytes | None


@attrs.frozen
class FileDigest:
    """One file of a snapshot."""

    name: str
    size_bytes: int
    sha256: bytes


@attrs.frozen
class Manifest:
    """What a snapshot directory holds."""

    format: str
    last_included: LogId
    files: tuple[FileDigest, ...]
    """Sorted by name; the manifest itself is not among them."""
    properties: tuple[tuple[str, PropertyValue], ...] = ()
    """Whatever the writer wants to keep with the snapshot."""


def seal_snapshot(
    directory: Path,
    *,
    format: str,
    last_included: LogId,
    properties: Iterable[tuple[str, PropertyValue]] = (),
    fs: FileSystem | None = None,
) -> bytes:
    """Write the manifest of a flat directory and make everything in it durable.

    Args:
        directory: holds the files of the snapshot and nothing else.
        format: names the layout of the directory, such as `kv-portable/1`.
        last_included: the entry the snapshot ends with.
        properties: kept in the manifest, in this order.
        fs: the file system to write through.

    Returns:
        The checksum for `SnapshotMetadata`: 32 bytes that cover every file.

    Raises:
        SnapshotError: not flat, or sealed already; nothing was written.
        StorageError: the disk refused; the directory is to be removed.
    """
    fs = fs or default_file_system()
    with storage_errors(directory, "seal the snapshot", "the directory is not a snapshot yet"):
        names = list_flat(directory)
        if MANIFEST_NAME in names:
            raise SnapshotError(
                f"snapshot directory '{directory}' holds {MANIFEST_NAME} already; "
                f"nothing was written",
                path=directory,
            )
        files = tuple(_seal_file(directory / name, fs) for name in names)
        manifest = Manifest(format, last_included, files, tuple(properties))
        content = encode(_pack(manifest))
        with NewFile(directory / MANIFEST_NAME, fs) as file:
            file.write(content)
            file.sync()
    sync_directory(directory, fs)
    return hashlib.sha256(content).digest()


def read_manifest(directory: Path) -> tuple[Manifest, bytes]:
    """Return the manifest of a directory and its checksum; the files are not looked at.

    Raises:
        SnapshotCorruptionError: the manifest is missing or damaged.
        SnapshotFormatError: the manifest is of a newer version.
        StorageError: the disk refused.
    """
    content = _read_content(directory)
    return _parse(directory / MANIFEST_NAME, content), hashlib.sha256(content).digest()


def verify_snapshot(
    directory: Path, metadata: SnapshotMetadata, *, formats: Collection[str]
) -> Manifest:
    """Check a whole snapshot directory against its metadata; change nothing.

    Args:
        directory: what `seal_snapshot` sealed, or a copy of it.
        metadata: what the snapshot must match.
        formats: the layouts that the caller can read.

    Raises:
        SnapshotCorruptionError: anything is missing, extra or altered.
        SnapshotFormatError: the layout is none of `formats`.
        StorageError: the disk refused.
    """
    content = _read_content(directory)
    path = directory / MANIFEST_NAME
    observed = hashlib.sha256(content).digest()
    if observed != metadata.checksum:
        raise damaged(
            directory,
            f"the manifest's sha256 is {observed.hex()}, "
            f"the metadata's checksum {metadata.checksum.hex()}",
            expected=metadata.checksum,
            observed=observed,
        )
    manifest = _parse(path, content)
    _check_identity(directory, manifest, metadata, formats)
    with storage_errors(directory, "verify the snapshot", "it was not used"):
        _check_names(directory, manifest)
        for file in manifest.files:
            _check_file(directory / file.name, file)
    return manifest


def _seal_file(path: Path, fs: FileSystem) -> FileDigest:
    with open_regular(path) as stream:
        size, sha256 = hash_stream(stream)
    sync_file(path, fs)
    return FileDigest(path.name, size, sha256)


def _read_content(directory: Path) -> bytes:
    path = directory / MANIFEST_NAME
    with (
        storage_errors(path, "read the manifest", "the snapshot was not used"),
        open_regular(path) as stream,
    ):
        size = os.fstat(stream.fileno()).st_size
        if size > _MAX_MANIFEST_BYTES:
            raise damaged(path, f"longer than {_MAX_MANIFEST_BYTES} bytes")
        return stream.read(size)


def _pack(manifest: Manifest) -> list[Any]:
    return [
        _MAGIC,
        MANIFEST_VERSION,
        manifest.format,
        pack_log_id(manifest.last_included),
        [[file.name, file.size_bytes, file.sha256] for file in manifest.files],
        [[name, value] for name, value in manifest.properties],
    ]


def _parse(path: Path, content: bytes) -> Manifest:
    try:
        item = decode(content)
        match item:
            case [str(magic), int(version), *_] if magic == _MAGIC and version > MANIFEST_VERSION:
                raise SnapshotFormatError(
                    f"'{path}' has version {version}, this program reads up to "
                    f"{MANIFEST_VERSION}; the snapshot was not used",
                    path=path,
                    expected=MANIFEST_VERSION,
                    observed=version,
                )
            case [str(magic), 1, str(name), log_id, list(files), list(properties)] if (
                magic == _MAGIC
            ):
                return Manifest(
                    name,
                    unpack_log_id(log_id),
                    _unpack_files(files),
                    tuple(_unpack_property(item) for item in properties),
                )
    except ValueError as exc:
        raise damaged(path, f"not a manifest ({exc})") from exc
    raise damaged(path, "not a manifest")


def _unpack_files(items: list[Any]) -> tuple[FileDigest, ...]:
    files = tuple(_unpack_file(item) for item in items)
    names = [file.name for file in files]
    if names != sorted(set(names)):
        raise ValueError("file names are not sorted, or one is there twice")
    return files


def _unpack_file(item: Any) -> FileDigest:
    match item:
        case [str(name), int(size), bytes(sha256)] if (
            is_plain_name(name)
            and name != MANIFEST_NAME
            and size >= 0
            and len(sha256) == _SHA256_BYTES
        ):
            return FileDigest(name, size, sha256)
    raise ValueError(f"file: expected [plain name, size, sha256], observed {item!r}")


def _unpack_property(item: Any) -> tuple[str, PropertyValue]:
    match item:
        case [str(name), (int() | str() | bytes() | None) as value]:
            return name, value
    raise ValueError(f"property: expected [name, value], observed {item!r}")


def _check_identity(
    directory: Path, manifest: Manifest, metadata: SnapshotMetadata, formats: Collection[str]
) -> None:
    for whose, observed in (("manifest", manifest.format), ("metadata", metadata.format)):
        if observed not in formats:
            raise SnapshotFormatError(
                f"snapshot '{directory}': its {whose} says format {observed!r}, "
                f"expected one of {', '.join(sorted(formats))}; the snapshot was not used",
                path=directory,
                expected=tuple(sorted(formats)),
                observed=observed,
            )
    pairs = (
        ("format", metadata.format, manifest.format),
        ("last_included", metadata.last_included, manifest.last_included),
    )
    for field, expected, found in pairs:
        if expected != found:
            raise damaged(
                directory,
                f"its manifest says {field} {found!r}, its metadata {expected!r}",
                expected=expected,
                observed=found,
            )


def _check_names(directory: Path, manifest: Manifest) -> None:
    expected = {MANIFEST_NAME, *(file.name for file in manifest.files)}
    with os.scandir(directory) as entries:
        regular = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    problems = [f"{name!r} is missing" for name in sorted(expected - regular.keys())]
    problems += [f"{name!r} is extra" for name in sorted(regular.keys() - expected)]
    problems += [
        f"{name!r} is not a regular file"
        for name in sorted(expected & regular.keys())
        if not regular[name]
    ]
    if problems:
        raise damaged(
            directory,
            ", ".join(problems),
            expected=tuple(sorted(expected)),
            observed=tuple(sorted(regular)),
        )


def _check_file(path: Path, expected: FileDigest) -> None:
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == expected.size_bytes:
            size, sha256 = hash_stream(stream)
    if size != expected.size_bytes:
        raise damaged(
            path,
            f"{size} bytes long, its manifest says {expected.size_bytes}",
            expected=expected.size_bytes,
            observed=size,
        )
    if sha256 != expected.sha256:
        raise damaged(
            path,
            f"its sha256 is {sha256.hex()}, its manifest says {expected.sha256.hex()}",
            expected=expected.sha256,
            observed=sha256,
        )
