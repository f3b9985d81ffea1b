"""The row of our own that every write batch begins with: number of keys, number of the batch.

It makes `count` cheap and exact, and tells from a WAL alone which batch a record is: it is always
the first change of a batch, so that its bytes stand at a known place in the record.
"""

from __future__ import annotations

import struct

import attrs

STORE_FAMILY = "store"
ROW = b"chunk"
_VALUE = struct.Struct(">QQ")
_BATCH = struct.Struct("<QI")
"""What a record of a WAL begins with: sequence number and count of the changes."""
_PUT_IN_FAMILY = 5
_AFTER_FAMILY = bytes([len(ROW)]) + ROW + bytes([_VALUE.size])
CHUNK_HEAD_BYTES = 64
"""As many bytes of a record are enough for `read_chunk_head`."""


@attrs.frozen
class ChunkRow:
    """The row's value."""

    keys: int = 0
    """Number of the user's keys."""
    chunk: int = 0
    """Number of write batches so far."""

    def encode(self) -> bytes:
        """Return the row's bytes."""
        return _VALUE.pack(self.keys, self.chunk)


def decode_chunk_row(value: bytes) -> ChunkRow:
    """Return the row of its bytes.

    Raises:
        ValueError: it is none.
    """
    if len(value) != _VALUE.size:
        raise ValueError(f"expected {_VALUE.size} bytes, observed {len(value)}")
    return ChunkRow(*_VALUE.unpack(value))


@attrs.frozen
class ChunkHead:
    """What a record of a WAL begins with."""

    sequence: int
    """Of its first change."""
    changes: int
    chunk: int | None
    """Number of the write batch; None if it is not one of a store's."""

    @property
    def next_sequence(self) -> int:
        """Sequence number of the change after it."""
        return self.sequence + self.changes


def read_chunk_head(payload: bytes) -> ChunkHead | None:
    """Read the beginning of a record; None if it is no write batch."""
    if len(payload) < _BATCH.size:
        return None
    sequence, changes = _BATCH.unpack_from(payload)
    at = _BATCH.size
    if payload[at : at + 1] == bytes([_PUT_IN_FAMILY]):
        # The number of a family is small: one byte.
        value_at = at + 2 + len(_AFTER_FAMILY)
        value = payload[value_at : value_at + _VALUE.size]
        if payload[at + 2 : value_at] == _AFTER_FAMILY and len(value) == _VALUE.size:
            return ChunkHead(sequence, changes, _VALUE.unpack(value)[1])
    return ChunkHead(sequence, changes, None)
