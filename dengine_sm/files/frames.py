"""The bytes of a framed log: segment header, frames, and the two small files.

    segment = header, frame*
    header  = "DSMS" version:u32 generation:u64 first_sequence:u64 reserved:u32 crc:u32
    frame   = "DSMF" length:u32 first_sequence:u64 count:u32 crc:u32 payload
    SYNCED  = "DSMM" version:u32 generation:u64 segment:u64 sequence:u64 start:u64 end:u64
              zeros:12 crc:u32
    START   = a checked file: state:u8 generation:u64 first_sequence:u64

Integers are big-endian. A frame's checksum covers its payload, its header, and its
place (generation and offset), so that a copy of a frame inside a payload is no frame.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.errors import CorruptionError, StorageFormatError
from dengine_sm.files.filesystem import Buffer, FileSystem

FORMAT_VERSION = 1
MAX_PAYLOAD_BYTES = (1 << 31) - (1 << 16)
SECTOR_BYTES = 512

_WINDOW_BYTES = 1 << 20
_FRAME_MAGIC = b"DSMF"
_FRAME = struct.Struct(">4sIQII")
_FRAME_CHECKED = struct.Struct(">IQIQQ")
_SEGMENT = struct.Struct(">4sIQQI")
_MARK = struct.Struct(">4sIQQQQQ12x")
_START = struct.Struct(">BQQ")
_CRC = struct.Struct(">I")

FRAME_HEADER_BYTES = _FRAME.size
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CRC.size
MARK_BYTES = _MARK.size + _CRC.size

Frame = tuple[int, int, int, int, memoryview]
"""`(offset, end, sequence, count, payload)`; the payload is valid until the next frame."""


def corruption(path: Path, offset: int, problem: str) -> CorruptionError:
    """Return the error for damage at an offset of a file of the log."""
    return CorruptionError(
        f"log file '{path}': {problem} at offset {offset}; nothing was changed",
        path=path,
        offset=offset,
    )


def frame_header(payload: Buffer, sequence: int, count: int, generation: int, offset: int) -> bytes:
    """Return the header of a frame that will stand at `offset`."""
    length = len(payload)
    place = _FRAME_CHECKED.pack(length, sequence, count, generation, offset)
    crc = zlib.crc32(place, zlib.crc32(payload))
    return _FRAME.pack(_FRAME_MAGIC, length, sequence, count, crc)


def scan_frames(fs: FileSystem, fd: int, generation: int, offset: int, end: int) -> Iterator[Frame]:
    """Yield the frames of `[offset, end)` up to the first that is not whole and valid."""
    window, base = memoryview(b""), offset
    crc32, pack, unpack = zlib.crc32, _FRAME_CHECKED.pack, _FRAME.unpack_from
    while offset + FRAME_HEADER_BYTES <= end:
        at = offset - base
        if at + FRAME_HEADER_BYTES > len(window):
            window, base, at = _read(fs, fd, offset, _WINDOW_BYTES, end), offset, 0
            if len(window) < FRAME_HEADER_BYTES:
                return
        magic, length, sequence, count, crc = unpack(window, at)
        frame_end = offset + FRAME_HEADER_BYTES + length
        if magic != _FRAME_MAGIC or frame_end > end:
            return
        if frame_end - base > len(window):
            wanted = max(_WINDOW_BYTES, frame_end - offset)
            window, base, at = _read(fs, fd, offset, wanted, end), offset, 0
            if frame_end - base > len(window):
                return
        payload = window[at + FRAME_HEADER_BYTES : frame_end - base]
        if crc != crc32(pack(length, sequence, count, generation, offset), crc32(payload)):
            return
        yield offset, frame_end, sequence, count, payload
        offset = frame_end


def find_frame(
    fs: FileSystem, fd: int, generation: int, offset: int, end: int, above: int
) -> int | None:
    """Return the offset of the first valid frame in `[offset, end)`, or None.

    Args:
        fs: where to read.
        fd: the segment.
        generation: of the segment.
        offset: where to begin to look.
        end: the size of the segment.
        above: the frame's sequence is larger than this.
    """
    while offset + FRAME_HEADER_BYTES <= end:
        window = bytes(_read(fs, fd, offset, _WINDOW_BYTES, end))
        at = window.find(_FRAME_MAGIC)
        while at >= 0:
            for frame in scan_frames(fs, fd, generation, offset + at, end):
                if frame[2] > above:
                    return offset + at
                break
            at = window.find(_FRAME_MAGIC, at + 1)
        offset += max(len(window) - len(_FRAME_MAGIC) + 1, 1)
    return None


def has_zero_sector(fs: FileSystem, fd: int, offset: int, end: int) -> bool:
    """Return whether `[offset, end)` holds a whole aligned sector of zeros."""
    zeros = bytes(SECTOR_BYTES)
    offset = -(-offset // SECTOR_BYTES) * SECTOR_BYTES
    while offset + SECTOR_BYTES <= end:
        window = _read(fs, fd, offset, _WINDOW_BYTES, end)
        for at in range(0, len(window) - SECTOR_BYTES + 1, SECTOR_BYTES):
            if window[at : at + SECTOR_BYTES] == zeros:
                return True
        offset += _WINDOW_BYTES
    return False


def _read(fs: FileSystem, fd: int, offset: int, size: int, end: int) -> memoryview:
    data = fs.pread(fd, min(size, end - offset), offset)
    return memoryview(data)


def segment_header(generation: int, first_sequence: int) -> bytes:
    """Return the header of a segment file."""
    return _with_crc(_SEGMENT.pack(b"DSMS", FORMAT_VERSION, generation, first_sequence, 0))


def check_segment_header(path: Path, header: bytes, generation: int, first_sequence: int) -> None:
    """Check that a segment's header says what its name says.

    Raises:
        CorruptionError: it does not, or is cut.
        StorageFormatError: a newer version wrote it.
    """
    if header == segment_header(generation, first_sequence):
        return
    if len(header) < SEGMENT_HEADER_BYTES:
        raise corruption(path, len(header), "the segment header is cut")
    fields = _checked_fields(_SEGMENT, header)
    if fields is None or fields[0] != b"DSMS":
        raise corruption(path, 0, "the segment header is damaged")
    _check_version(path, fields[1])
    raise corruption(
        path,
        0,
        f"the segment header is of generation {fields[2]}, sequence {fields[3]}, "
        f"expected {generation}, {first_sequence}",
    )


@attrs.frozen
class SyncedMark:
    """The floor: what a crash cannot have taken away.

    `[start, end)` is the newest synced frame, and all before it in the segment is
    synced; `start == end` when no frame, or the frame was taken back.
    """

    generation: int
    segment: int
    """First sequence of the segment."""
    sequence: int
    """Sequence after the newest synced frame."""
    start: int
    end: int

    def encode(self) -> bytes:
        """Return the 64 bytes of the file."""
        return _with_crc(_MARK.pack(b"DSMM", FORMAT_VERSION, *attrs.astuple(self)))

    @classmethod
    def decode(cls, path: Path, data: bytes) -> SyncedMark:
        """Return the mark that a file's bytes hold.

        Raises:
            CorruptionError: the bytes are not those of a mark.
            StorageFormatError: a newer version wrote it.
        """
        fields = _checked_fields(_MARK, data)
        if fields is None or fields[0] != b"DSMM":
            raise corruption(path, 0, f"the synced mark ({len(data)} bytes) is damaged")
        _check_version(path, fields[1])
        return cls(*fields[2:])


@attrs.frozen
class LogStart:
    """Where the log begins; segments that do not belong to it are leftovers."""

    is_complete: bool
    """False while the log is being created and holds nothing yet."""
    generation: int
    """Number of times the log was cleared."""
    first_sequence: int
    """First sequence of the oldest segment."""

    def encode(self) -> bytes:
        """Return the payload of the file."""
        return _START.pack(self.is_complete, self.generation, self.first_sequence)

    @classmethod
    def decode(cls, path: Path, payload: bytes) -> LogStart:
        """Return the start that a payload holds.

        Raises:
            CorruptionError: the payload is something else.
        """
        if len(payload) != _START.size:
            raise corruption(path, 0, f"{len(payload)} bytes, expected {_START.size}")
        state, generation, first_sequence = _START.unpack(payload)
        return cls(bool(state), generation, first_sequence)


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _checked_fields(layout: struct.Struct, data: bytes) -> tuple[Any, ...] | None:
    """Return the fields, or None when size or checksum is wrong."""
    if len(data) != layout.size + _CRC.size or _with_crc(data[: layout.size]) != data:
        return None
    return layout.unpack_from(data)


def _check_version(path: Path, version: int) -> None:
    if version != FORMAT_VERSION:
        raise StorageFormatError(
            f"log file '{path}' has format {version}, expected {FORMAT_VERSION}; "
            "nothing was changed",
            path=path,
            expected=str(FORMAT_VERSION),
            observed=str(version),
        )
