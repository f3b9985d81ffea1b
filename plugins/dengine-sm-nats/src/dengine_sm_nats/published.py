"""Snapshots that nodes publish to each other: archives in an object store, and a record.

The record names the newest archive and the one before it, each with the position in the
stream from which a node that installs it reads on. It is replaced by compare-and-swap, so
that of several nodes one wins, and an archive is named only when it is there as a whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

import attrs
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import (
    KeyValueConfig,
    ObjectMeta,
    ObjectMetaOptions,
    ObjectStoreConfig,
    StorageType,
)
from nats.js.kv import KeyValue
from nats.js.object_store import ObjectStore

from dengine_sm import CommitLogError, LogId, SnapshotMetadata
from dengine_sm.codec import (
    decode,
    encode,
    pack_log_id,
    unpack_log_id,
)
from dengine_sm_nats.connection import patiently, server_errors
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.positions import Position, unpack_position

CHUNK_BYTES = 1 << 20
"""At the client library's own 128 KiB an upload takes twice as long."""
KEPT = 2
VERSION = 1
_KEY = "snapshot"


@attrs.frozen
class PublishedArchive:
    """An archive in the object store."""

    last_included: LogId
    position: Position
    """The last one at or before `last_included`: reading on begins behind it."""
    name: str
    size_bytes: int
    node: str
    """Who published it."""


class SnapshotBoard:
    """The published snapshots of one stream.

    Args:
        js: of a connected client.
        options: of the log.
        stream_id: what was published for another stream of the same name, which was deleted,
            counts as absent; None looks at whatever is there.
    """

    def __init__(
        self, js: JetStreamContext, options: NatsLogOptions, stream_id: str | None = None
    ) -> None:
        self._js = js
        self._options = options
        self._stream_id = stream_id
        self._objects: ObjectStore | None = None
        self._records: KeyValue | None = None
        self._bucket = f"{options.stream}-snapshot-record"

    async def open(self) -> None:
        """Find or make the two buckets.

        Raises:
            CommitLogError: the servers refused, or did not answer.
        """
        name, replicas = self._options.stream, self._options.replicas
        with server_errors(f"open the snapshots of stream {name!r}", "nothing was changed"):
            patience_s = self._options.outcome_timeout_s
            self._records = await patiently(
                lambda: self._js.create_key_value(
                    KeyValueConfig(
                        bucket=self._bucket,
                        history=1,
                        storage=StorageType.FILE,
                        replicas=replicas,
                    )
                ),
                patience_s,
            )
            self._objects = await patiently(
                lambda: self._js.create_object_store(
                    f"{name}-snapshots",
                    ObjectStoreConfig(storage=StorageType.FILE, replicas=replicas),
                ),
                patience_s,
            )

    async def published(self) -> list[PublishedArchive]:
        """Return what is published, newest first; may be a little behind for a moment.

        Raises:
            CommitLogError: the servers did not answer.
        """
        return (await self._read())[0]

    async def _read(self) -> tuple[list[PublishedArchive], int]:
        bucket = self._bucket
        with server_errors("read the record of snapshots", "nothing was changed"):
            try:
                # From the leader: `KeyValue.get` asks any replica, and one that was wiped and
                # is being filled again says that there is no record.
                message = await patiently(
                    lambda: self._js.get_last_msg(f"KV_{bucket}", f"$KV.{bucket}.{_KEY}"),
                    self._options.outcome_timeout_s,
                )
            except nats.js.errors.NotFoundError:
                return [], 0
        stream_id, archives = _unpack(message.data or b"")
        is_other = self._stream_id is not None and stream_id != self._stream_id
        return [] if is_other else archives, message.seq or 0

    async def publish(
        self, metadata: SnapshotMetadata, archive: Path, position: Position, node: str
    ) -> bool:
        """Upload an archive and make it the newest one.

        Returns:
            False when another node was faster with this one or a newer one.

        Raises:
            CommitLogError: the upload failed; nothing names it.
        """
        assert self._objects is not None
        # The random part: two nodes may upload the same snapshot at once.
        last = metadata.last_included
        name = f"snapshot-{last.term}-{last.index}-{secrets.token_hex(4)}"
        with (
            server_errors(f"upload {str(archive)!r}", "no other node sees it"),
            archive.open("rb") as file,
        ):
            size_bytes = os.fstat(file.fileno()).st_size
            await self._objects.put(
                name, file, ObjectMeta(options=ObjectMetaOptions(max_chunk_size=CHUNK_BYTES))
            )
        new = PublishedArchive(last, position, name, size_bytes, node)
        dropped = await self._name(new)
        for one in dropped:
            await self._delete(one)
        return new not in dropped

    async def _name(self, new: PublishedArchive) -> list[PublishedArchive]:
        """Put an archive into the record; return those that are no longer in it."""
        assert self._records is not None
        while True:
            published, revision = await self._read()
            if published and published[0].last_included >= new.last_included:
                return [new]
            keep = [new, *published][:KEPT]
            try:
                with server_errors("record a snapshot", "no other node sees it"):
                    await self._records.update(_KEY, _pack(self._stream_id, keep), last=revision)
            except CommitLogError as exc:
                if isinstance(exc.__cause__, nats.js.errors.KeyWrongLastSequenceError):
                    continue
                raise
            return published[KEPT - 1 :]

    async def _delete(self, one: PublishedArchive) -> None:
        assert self._objects is not None
        # What stays behind costs space, nothing else.
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._objects.delete(one.name)

    async def fetch(self, one: PublishedArchive, directory: Path) -> Path:
        """Download an archive; its digest is checked.

        Raises:
            CommitLogError: it is gone or damaged, or the servers did not answer.
        """
        assert self._objects is not None
        # Not a name from the network: it would be a path.
        path = directory / f"tmp-fetched-{secrets.token_hex(8)}"
        try:
            with (
                server_errors(f"download snapshot {one.name!r}", "nothing was changed"),
                path.open("wb") as file,
            ):
                await self._objects.get(one.name, writeinto=file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


def _pack(stream_id: str | None, archives: list[PublishedArchive]) -> bytes:
    return encode(
        [
            VERSION,
            stream_id or "",
            [
                [
                    pack_log_id(one.last_included),
                    one.position.pack(),
                    one.name,
                    one.size_bytes,
                    one.node,
                ]
                for one in archives
            ],
        ]
    )


def _unpack(record: bytes) -> tuple[str, list[PublishedArchive]]:
    """Read a record.

    Raises:
        CommitLogError: it is not one of ours.
    """
    try:
        fields = decode(record)
        match fields:
            case [1, str(stream_id), [*archives]]:
                return stream_id, [_unpack_archive(archive) for archive in archives]
    except ValueError as exc:
        raise CommitLogError(f"the record of snapshots is not readable: {exc}") from exc
    raise CommitLogError(
        f"the record of snapshots: expected version {VERSION}, observed {fields!r:.80}; nothing "
        "was changed"
    )


def _unpack_archive(item: Any) -> PublishedArchive:
    match item:
        case [last_included, position, str(name), int(size_bytes), str(node)]:
            return PublishedArchive(
                unpack_log_id(last_included), unpack_position(position), name, size_bytes, node
            )
    raise ValueError(f"archive: expected 5 fields, observed {item!r:.80}")
