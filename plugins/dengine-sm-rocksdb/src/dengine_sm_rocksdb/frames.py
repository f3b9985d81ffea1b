"""The frames of RocksDB's log files: its WALs (`*.log`) and its MANIFEST.

A file is cut into blocks of 32 KiB. A frame is a header (checksum, length, kind) and a
payload, never crosses a block's end, and is a whole record or a part of one. RocksDB
verifies the checksums itself; what it does not do is tell a frame whose length was damaged,
or zeros in the middle of a file, from the end that a crash leaves, so we look at that.

Source: https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import attrs

BLOCK_BYTES = 32 << 10
SECTOR_BYTES = 512
_HEADER = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_BAD = 0
_TORN, _WRONG = b"t", b"w"
"""Whether the file just ends at a bad frame."""
_MASK_DELTA = 0xA282EAD8


class Record(NamedTuple):
    """A record of a log file; a tuple, because a start makes a hundred thousand of them."""

    offset: int
    """Where its first frame begins."""
    payload: bytes
    """Its bytes, or as many of the first as were asked for."""


@attrs.define
class FrameError(Exception):
    """What follows the last whole record is not a record."""

    offset: int
    """Where the record begins whose frame is bad: everything before it is whole."""
    frame_offset: int
    """Where the bad frame begins."""
    problem: str
    is_torn: bool
    """Whether the file just ends there, as after a crash in the middle of a write."""


def read_records(path: Path, *, keep: int | None = None, verify: bool = False) -> Iterator[Record]:
    """Yield the records of a log file in order.

    Args:
        path: the file; 32 KiB of it at a time are in memory.
        keep: how many bytes of each record are wanted; None for all.
        verify: compute every checksum: slow, some MB a second.

    Raises:
        FrameError: the file does not end after a whole record.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        yield from _records(file, keep, verify)


def _records(file: IO[bytes], keep: int | None, verify: bool) -> Iterator[Record]:
    parts: list[bytes] = []
    kept = 0
    start = 0
    is_open = False
    for offset, kind, payload in _frames(file, verify):
        if kind == _WHOLE and not is_open:
            yield Record(offset, payload[:keep])
            continue
        if kind == _BAD:
            at = start if is_open else offset
            raise FrameError(at, offset, payload[1:].decode(), is_torn=payload[:1] == _TORN)
        begins = kind in (_WHOLE, _FIRST)
        if begins == is_open:
            problem = "a part of a record is missing"
            raise FrameError(start if is_open else offset, offset, problem, is_torn=False)
        if begins:
            parts, kept, start = [], 0, offset
        if keep is None or kept < keep:
            parts.append(payload)
            kept += len(payload)
        is_open = kind != _LAST
        if not is_open:
            yield Record(start, b"".join(parts)[:keep])
    if is_open:
        raise FrameError(start, file.tell(), "the last record is not finished", is_torn=True)


def _frames(file: IO[bytes], verify: bool) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, kind and payload of frames; the kind `_BAD` ends them, its payload says why."""
    unpack, header_bytes = _HEADER.unpack_from, _HEADER.size
    start = 0
    while block := file.read(BLOCK_BYTES):
        at, size = 0, len(block)
        while (payload_at := at + header_bytes) <= size:
            checksum, length, kind = unpack(block, at)
            end = payload_at + length
            if not _WHOLE <= kind <= _LAST:
                is_end = not any(block[at:]) and not _has_more(file)
                text = b"zeros to the end of the file" if is_end else b"a frame of unknown kind"
                yield start + at, _BAD, (_TORN if is_end else _WRONG) + text
                return
            if end > size:
                is_cut = size < BLOCK_BYTES and not _matches_shorter(block, at, checksum)
                text = b"a frame that is longer than what is left"
                yield start + at, _BAD, (_TORN if is_cut else _WRONG) + text
                return
            if verify and checksum != masked_crc32c(block[payload_at - 1 : end]):
                yield start + at, _BAD, _WRONG + b"a frame that does not match its checksum"
                return
            yield start + at, kind, block[payload_at:end]
            at = end
        if at < size < BLOCK_BYTES:
            yield start + at, _BAD, _TORN + b"a part of a frame's header"
            return
        start += size


def _has_more(file: IO[bytes]) -> bool:
    """Tell whether anything but zeros is left."""
    return any(map(any, iter(lambda: file.read(BLOCK_BYTES), b"")))


def _matches_shorter(block: bytes, at: int, checksum: int) -> bool:
    """Tell whether a frame is whole but for a length that is too great."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in block[at + _HEADER.size - 1 :]:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        if _masked(crc ^ 0xFFFFFFFF) == checksum:
            return True
    return False


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of a frame over its kind and payload."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return _masked(crc ^ 0xFFFFFFFF)


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


@cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


def has_zero_sector(path: Path, offset: int) -> bool:
    """Tell whether a file holds a sector of zeros that ends after `offset`.

    Such a sector is what a power failure leaves in place of a page that was not written.
    """
    sector = bytes(SECTOR_BYTES)
    with path.open("rb") as file:
        file.seek(offset // SECTOR_BYTES * SECTOR_BYTES)
        while data := file.read(SECTOR_BYTES):
            if data == sector[: len(data)]:
                return True
    return False
