"""The files of a framed log's directory: their names, creation and removal."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path

import attrs

from dengine_sm.files.atomic import TEMPORARY_SUFFIX, create_aside
from dengine_sm.files.filesystem import FileSystem
from dengine_sm.files.frames import SEGMENT_HEADER_BYTES, segment_header

START_NAME = "START"
SYNCED_NAME = "SYNCED"

_SEGMENT_NAME = re.compile(r"(\d{8})-(\d{20})\.seg")
_PLACE_DISTANCE_BYTES = 1 << 16


@attrs.define(eq=False)
class Segment:
    """A segment file and what is known of its content."""

    path: Path
    generation: int
    first_sequence: int
    end: int = SEGMENT_HEADER_BYTES
    """Size of the valid part."""
    next_sequence: int = attrs.field(
        default=attrs.Factory(lambda self: self.first_sequence, takes_self=True)
    )
    times_taken_back: int = 0
    """Tells readers that frames before the end they knew may be gone."""
    _sequences: list[int] = attrs.field(factory=list)
    _offsets: list[int] = attrs.field(factory=list)

    def add(self, offset: int, end: int, sequence: int, count: int) -> None:
        """Note a frame at the end of the valid part."""
        if not self._offsets or offset - self._offsets[-1] >= _PLACE_DISTANCE_BYTES:
            # Offset first: a reader that finds the sequence takes the offset of its place.
            self._offsets.append(offset)
            self._sequences.append(sequence)
        self.next_sequence = sequence + count
        self.end = end

    def take_back(self, offset: int, sequence: int) -> None:
        """Forget the frame at `offset`, the last one."""
        self.times_taken_back += 1
        if self._offsets and self._offsets[-1] == offset:
            self._sequences.pop()
            self._offsets.pop()
        self.next_sequence, self.end = sequence, offset

    def offset_before(self, sequence: int) -> int:
        """Return the offset of a frame at or before the one that holds `sequence`."""
        at = bisect_right(self._sequences, sequence) - 1
        return self._offsets[at] if at >= 0 else SEGMENT_HEADER_BYTES


def segment_path(directory: Path, generation: int, first_sequence: int) -> Path:
    """Return the path of a segment; names sort in log order."""
    return directory / f"{generation:08d}-{first_sequence:020d}.seg"


def list_segments(directory: Path) -> list[Segment]:
    """Return the segments of a directory by generation and sequence, not read yet."""
    found = []
    for path in directory.iterdir():
        if match := _SEGMENT_NAME.fullmatch(path.name):
            found.append(Segment(path, int(match[1]), int(match[2])))
    return sorted(found, key=lambda segment: (segment.generation, segment.first_sequence))


def create_segment(
    fs: FileSystem, directory: Path, generation: int, first_sequence: int
) -> Segment:
    """Create an empty segment, not yet durable as an entry of its directory.

    It is written aside, header and all, so no crash leaves one shorter than its header.

    Raises:
        OSError: the disk refused; there is no such segment.
    """
    path = segment_path(directory, generation, first_sequence)
    aside = create_aside(path, segment_header(generation, first_sequence), fs)
    try:
        fs.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            fs.unlink(aside)
        raise
    return Segment(path, generation, first_sequence)


def open_segment(fs: FileSystem, path: Path) -> int:
    """Return a descriptor whose writes always go to the end of the segment."""
    return fs.open(path, os.O_RDWR | os.O_APPEND)


def remove_temporary_files(fs: FileSystem, directory: Path) -> None:
    """Remove what a crash left of files that were being written aside."""
    for path in sorted(directory.glob(f"*{TEMPORARY_SUFFIX}")):
        fs.unlink(path)


def remove_segments(fs: FileSystem, directory: Path, segments: list[Segment]) -> None:
    """Delete segments, oldest first, and sync the directory if there were any."""
    for segment in segments:
        with suppress(FileNotFoundError):
            fs.unlink(segment.path)
    if segments:
        fs.sync_directory(directory)
