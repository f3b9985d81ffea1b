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
_ROW_BYTES = bytes([len(ROW)]) + ROW + bytes([_VALUE.size])
_ROW_AT = _BATCH.size + 2
"""After the kind of the change and the number of the family, one byte each."""
_VALUE_AT = _ROW_AT + len(_ROW_BYTES)
CHUNK_HEAD_BYTES = 64
"""As many bytes of a record are enough to tell what it is."""


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


def sequence_range(payload: bytes) -> tuple[int, int] | None:
    """Return the sequence numbers `[first, next)` of a record of a WAL; None if it is none."""
    if len(payload) < _BATCH.size:
        return None
    sequence, changes = _BATCH.unpack_from(payload)
    return sequence, sequence + changes


def is_chunk(payload: bytes) -> bool:
    """Tell whether a record of a WAL is a store's write batch."""
    return payload[_ROW_AT:_VALUE_AT] == _ROW_BYTES and len(payload) >= _VALUE_AT + _VALUE.size


def chunk_number(payload: bytes) -> int:
    """Return the number of the write batch that a record is, of which `is_chunk` holds."""
    number: int = _VALUE.unpack_from(payload, _VALUE_AT)[1]
    return number
