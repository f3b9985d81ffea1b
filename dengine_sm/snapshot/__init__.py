"""Snapshots: manifest and checksum, portable format, archive, store, policy."""

from dengine_sm.snapshot.archive import (
    ArchiveHeader,
    pack_archive,
    read_archive_header,
    unpack_archive,
    verify_archive,
)
from dengine_sm.snapshot.manifest import (
    MANIFEST_NAME,
    FileDigest,
    Manifest,
    read_manifest,
    seal_snapshot,
    verify_snapshot,
)
from dengine_sm.snapshot.policy import (
    AllOf,
    AnyOf,
    EveryBytes,
    EveryEntries,
    EverySeconds,
    Never,
    SnapshotPolicy,
    SnapshotProgress,
)
from dengine_sm.snapshot.portable import (
    PORTABLE_FORMAT,
    Block,
    PortableSnapshot,
    SessionRow,
    SnapshotAborted,
    read_portable,
    write_portable,
)
from dengine_sm.snapshot.store import PublishedSnapshot, SnapshotStore

__all__ = [
    "MANIFEST_NAME",
    "PORTABLE_FORMAT",
    "AllOf",
    "AnyOf",
    "ArchiveHeader",
    "Block",
    "EveryBytes",
    "EveryEntries",
    "EverySeconds",
    "FileDigest",
    "Manifest",
    "Never",
    "PortableSnapshot",
    "PublishedSnapshot",
    "SessionRow",
    "SnapshotAborted",
    "SnapshotPolicy",
    "SnapshotProgress",
    "SnapshotStore",
    "pack_archive",
    "read_archive_header",
    "read_manifest",
    "read_portable",
    "seal_snapshot",
    "unpack_archive",
    "verify_archive",
    "verify_snapshot",
    "write_portable",
]
