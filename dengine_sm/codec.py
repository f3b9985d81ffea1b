"""Values to deterministic CBOR and back; the only importer of cbor2.

Only arrays, integers, byte strings, text and null are written, so that the
encoder's default output is the core deterministic encoding of RFC 8949 §4.2.1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any

import cbor2

from dengine_sm.model import LogId, SnapshotMetadata

encode = cbor2.dumps
"""Encode arrays, integers, bytes, text and None as deterministic CBOR."""

decode_prefix = cbor2.loads
"""Decode the first CBOR item of a buffer; bytes after it are ignored.

Raises:
    DecodeFailure: the buffer does not begin with a whole item.
"""

DecodeFailure = cbor2.CBORDecodeError


def decode(data: bytes) -> Any:
    """Decode a buffer that holds exactly one item in our own encoding.

    Raises:
        ValueError: the bytes are not what `encode` writes for any value.
    """
    try:
        value = cbor2.loads(data, allow_indefinite=False)
    except cbor2.CBORDecodeError as exc:
        raise ValueError(f"not CBOR: {exc}") from exc
    try:
        canonical = cbor2.dumps(value) == bytes(data)
    except cbor2.CBOREncodeError as exc:
        raise ValueError(f"not one of our values: {exc}") from exc
    if not canonical:
        raise ValueError("not one item in deterministic encoding")
    return value


def decode_sequence(stream: IO[bytes]) -> Iterator[Any]:
    """Yield the items of a CBOR sequence (RFC 8742) until the seekable stream ends.

    Raises:
        ValueError: the stream ends inside an item, or holds something else.
    """
    while stream.read(1):
        stream.seek(-1, os.SEEK_CUR)
        try:
            yield cbor2.load(stream, allow_indefinite=False)
        except cbor2.CBORDecodeError as exc:
            raise ValueError(f"not a CBOR sequence: {exc}") from exc


def pack_log_id(log_id: LogId) -> list[int]:
    """Return the array `[term, index]`."""
    return [log_id.term, log_id.index]


def unpack_log_id(item: Any) -> LogId:
    """Return the LogId of an array `[term, index]`.

    Raises:
        ValueError: the item is anything else.
    """
    match item:
        case [int(term), int(index)] if term >= 0 and index >= 0:
            return LogId(term, index)
    raise ValueError(f"log id: expected [term, index], observed {item!r}")


def pack_snapshot_metadata(metadata: SnapshotMetadata) -> list[Any]:
    """Return the array `[[term, index], checksum, format]`."""
    return [pack_log_id(metadata.last_included), metadata.checksum, metadata.format]


def unpack_snapshot_metadata(item: Any) -> SnapshotMetadata:
    """Return the metadata of an array `[[term, index], checksum, format]`.

    Raises:
        ValueError: the item is anything else.
    """
    match item:
        case [log_id, bytes(checksum), str(format_name)]:
            return SnapshotMetadata(unpack_log_id(log_id), checksum, format_name)
    raise ValueError(f"snapshot metadata: expected 3 fields, observed {item!r}")
