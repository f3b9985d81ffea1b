"""Opening a framed log: what a crash may leave is repaired, all else is refused.

Nothing is changed before everything was validated, and every repair may be cut short
and done again (CRASH-4, CRASH-5). In the newest segment, the first frame that is not
whole and valid is

1. damage, if it lies before the newest synced frame, or in it while the file still has
   the synced size: a crash cannot change what was synced;
2. otherwise damage, if a later valid frame exists, unless a whole sector of zeros lies
   between: then power failed before all pages of unsynced frames were written;
3. otherwise a torn tail, which is cut off and reported.

A tail cut inside the newest synced frame is cut off as well, and reported, zero bytes
of it being left or not. The synced mark is 64 bytes in one sector, written by one call:
any other content is damage.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import attrs

from dengine_sm.files.atomic import (
    read_checked_file,
    replace_file,
    write_checked_file,
)
from dengine_sm.files.filesystem import FileSystem, names_in, read_all, storage_errors
from dengine_sm.files.frames import (
    MARK_BYTES,
    SEGMENT_HEADER_BYTES,
    LogStart,
    SyncedMark,
    check_segment_header,
    corruption,
    find_frame,
    has_zero_sector,
    scan_frames,
)
from dengine_sm.files.segments import (
    START_NAME,
    SYNCED_NAME,
    Segment,
    create_segment,
    list_segments,
    open_segment,
    remove_segments,
    remove_temporary_files,
)


@attrs.frozen
class RecoveryReport:
    """What `FramedLog.open` found."""

    first_sequence: int
    """Oldest sequence kept; the next one if the log is empty."""
    last_sequence: int
    """Newest sequence kept; `first_sequence - 1` if the log is empty."""
    truncated_bytes: int
    """Bytes of a torn tail: those cut off now and those of a synced frame lost before."""
    truncated_path: Path | None
    """Segment whose tail was torn."""


@attrs.define
class Recovered:
    """An open log's parts, handed to `FramedLog`."""

    generation: int
    segments: list[Segment]
    fd: int
    mark: SyncedMark
    mark_fd: int
    torn_bytes: int = 0
    torn_path: Path | None = None


@attrs.define
class _Findings:
    """What validation found; nothing on disk was changed for it."""

    start: LogStart
    live: list[Segment]
    leftovers: list[Segment]
    mark: SyncedMark
    last_frame: int = SEGMENT_HEADER_BYTES
    """Offset of the last valid frame of the newest segment; its end if there is none."""
    file_bytes: int = 0
    """Size of the newest segment as found."""


def recover(
    directory: Path, fs: FileSystem, first_sequence: int, *, must_exist: bool = False
) -> Recovered:
    """Create, or validate and repair, the log of a directory and open it.

    Raises:
        CorruptionError: damage, or there is no log where one must be; nothing was changed but
            `*.tmp` files removed.
        StorageFormatError: a newer version wrote it; likewise.
        StorageError: the disk refused; opening again is safe.
    """
    with storage_errors(directory, "open the log", "opening it again is safe"):
        if must_exist and not names_in(directory):
            raise corruption(directory / START_NAME, 0, "the file is missing, and all of its log")
        if not directory.exists():
            fs.mkdir(directory)
        remove_temporary_files(fs, directory)
        start = _read_start(directory, fs)
        if start is None or not start.is_complete:
            return _create(directory, fs, first_sequence)
        findings = _validate(directory, fs, start)
        return _repair(directory, fs, findings)


def _read_start(directory: Path, fs: FileSystem) -> LogStart | None:
    path = directory / START_NAME
    if path.exists():
        return LogStart.decode(path, read_checked_file(path, fs))
    if (directory / SYNCED_NAME).exists() or list_segments(directory):
        raise corruption(path, 0, "the file is missing while others of its log exist")
    return None


def _create(directory: Path, fs: FileSystem, first_sequence: int) -> Recovered:
    """Create an empty log; START says "incomplete" until all of it is durable."""
    # Also for a directory that exists: a crash may have come before this sync.
    fs.sync_directory(directory.parent)
    start_path = directory / START_NAME
    write_checked_file(start_path, LogStart(False, 0, first_sequence).encode(), fs)
    remove_segments(fs, directory, list_segments(directory))
    segment = create_segment(fs, directory, 0, first_sequence)
    fs.sync_directory(directory)
    fd = open_segment(fs, segment.path)
    try:
        mark = SyncedMark(0, first_sequence, first_sequence, segment.end, segment.end)
        replace_file(directory / SYNCED_NAME, mark.encode(), fs)
        write_checked_file(start_path, LogStart(True, 0, first_sequence).encode(), fs)
        mark_fd = fs.open(directory / SYNCED_NAME, os.O_RDWR)
    except BaseException:
        fs.close(fd)
        raise
    return Recovered(0, [segment], fd, mark, mark_fd)


def _validate(directory: Path, fs: FileSystem, start: LogStart) -> _Findings:
    live: list[Segment] = []
    leftovers: list[Segment] = []
    for segment in list_segments(directory):
        if segment.generation > start.generation:
            _check_unborn(fs, segment)
        is_live = (
            segment.generation == start.generation
            and segment.first_sequence >= start.first_sequence
        )
        (live if is_live else leftovers).append(segment)
    if not live or live[0].first_sequence != start.first_sequence:
        raise corruption(
            directory / START_NAME,
            0,
            f"the segment with sequence {start.first_sequence} is missing",
        )
    mark = _read_mark(directory, fs, start, live)
    findings = _Findings(start, live, leftovers, mark)
    for segment, following in pairwise(live):
        _scan_inner(fs, segment, following)
    _scan_newest(fs, findings)
    return findings


def _check_unborn(fs: FileSystem, segment: Segment) -> None:
    """Check that a segment of a `clear` cut short holds nothing."""
    fd = fs.open(segment.path, os.O_RDONLY)
    try:
        _check_header(fs, fd, segment)
        if fs.pread(fd, 1, SEGMENT_HEADER_BYTES):
            raise corruption(
                segment.path, SEGMENT_HEADER_BYTES, f"the segment is newer than '{START_NAME}'"
            )
    finally:
        fs.close(fd)


def _read_mark(directory: Path, fs: FileSystem, start: LogStart, live: list[Segment]) -> SyncedMark:
    """Return the mark; one that a power failure made stale says nothing of the newest."""
    path = directory / SYNCED_NAME
    try:
        fd = fs.open(path, os.O_RDONLY)
    except FileNotFoundError as exc:
        raise corruption(path, 0, "the file is missing while others of its log exist") from exc
    try:
        mark = SyncedMark.decode(path, read_all(fs, fd))
    finally:
        fs.close(fd)
    if mark.generation > start.generation:
        raise corruption(path, 0, f"the synced mark is newer than '{START_NAME}'")
    is_current = mark.generation == start.generation and mark.segment >= start.first_sequence
    if is_current and mark.segment not in {segment.first_sequence for segment in live}:
        raise corruption(path, 0, f"the segment with sequence {mark.segment} is missing")
    return mark


def _check_header(fs: FileSystem, fd: int, segment: Segment) -> None:
    header = fs.pread(fd, SEGMENT_HEADER_BYTES, 0)
    check_segment_header(segment.path, header, segment.generation, segment.first_sequence)


def _scan(fs: FileSystem, fd: int, segment: Segment, size: int) -> int:
    """Fill in a segment's end and sequences; return the offset of its last frame."""
    last_frame = segment.end
    expected = segment.first_sequence
    for offset, end, sequence, count, _ in scan_frames(
        fs, fd, segment.generation, segment.end, size
    ):
        if sequence != expected or count < 1:
            raise corruption(
                segment.path, offset, f"sequence {sequence} found, {expected} expected"
            )
        segment.add(offset, end, sequence, count)
        last_frame = offset
        expected = sequence + count
    return last_frame


def _scan_inner(fs: FileSystem, segment: Segment, following: Segment) -> None:
    fd = fs.open(segment.path, os.O_RDONLY)
    try:
        _check_header(fs, fd, segment)
        size = os.fstat(fd).st_size
        _scan(fs, fd, segment, size)
    finally:
        fs.close(fd)
    if segment.end != size:
        raise corruption(segment.path, segment.end, "a frame is damaged")
    if segment.next_sequence != following.first_sequence:
        raise corruption(
            segment.path,
            segment.end,
            f"the segment ends before sequence {segment.next_sequence}, "
            f"the one after it begins with {following.first_sequence}",
        )


def _scan_newest(fs: FileSystem, findings: _Findings) -> None:
    segment, mark = findings.live[-1], findings.mark
    fd = fs.open(segment.path, os.O_RDONLY)
    try:
        _check_header(fs, fd, segment)
        size = findings.file_bytes = os.fstat(fd).st_size
        findings.last_frame = _scan(fs, fd, segment, size)
        if not _marks(mark, segment):
            mark = SyncedMark(segment.generation, segment.first_sequence, 0, 0, 0)
        if segment.end < mark.start:
            raise corruption(segment.path, segment.end, "a synced frame is damaged or missing")
        if segment.end < mark.end <= size:
            raise corruption(segment.path, segment.end, "the newest synced frame is damaged")
        if segment.end < size:
            _check_torn(fs, fd, segment, size)
    finally:
        fs.close(fd)


def _check_torn(fs: FileSystem, fd: int, segment: Segment, size: int) -> None:
    """Raise unless the unsynced tail can be what a crash left."""
    later = find_frame(
        fs, fd, segment.generation, segment.end + 1, size, above=segment.next_sequence
    )
    if later is not None and not has_zero_sector(fs, fd, segment.end, later):
        raise corruption(
            segment.path, segment.end, f"a frame is damaged, a valid one follows at {later}"
        )


def _marks(mark: SyncedMark, segment: Segment) -> bool:
    return (mark.generation, mark.segment) == (segment.generation, segment.first_sequence)


def _repair(directory: Path, fs: FileSystem, findings: _Findings) -> Recovered:
    """Cut the tail, make the rest durable, raise or lower the mark, drop leftovers."""
    newest, old = findings.live[-1], findings.mark
    lost_from = max(findings.file_bytes, old.end if _marks(old, newest) else 0)
    torn_bytes = lost_from - newest.end
    # A killed process may have renamed files and not synced their entries.
    fs.sync_directory(directory)
    fd = open_segment(fs, newest.path)
    try:
        if findings.file_bytes > newest.end:
            fs.truncate(fd, newest.end)
        fs.fsync(fd)
        mark_fd = fs.open(directory / SYNCED_NAME, os.O_RDWR)
        try:
            mark = SyncedMark(
                newest.generation,
                newest.first_sequence,
                newest.next_sequence,
                findings.last_frame,
                newest.end,
            )
            if mark != old:
                write_mark(fs, mark_fd, mark)
                # A stale mark beyond the end would call the next torn tail damage.
                fs.fsync(mark_fd)
            remove_segments(fs, directory, findings.leftovers)
        except BaseException:
            fs.close(mark_fd)
            raise
    except BaseException:
        fs.close(fd)
        raise
    return Recovered(
        findings.start.generation,
        findings.live,
        fd,
        mark,
        mark_fd,
        torn_bytes,
        newest.path if torn_bytes else None,
    )


def write_mark(fs: FileSystem, mark_fd: int, mark: SyncedMark) -> None:
    """Write the mark by one call.

    Raises:
        OSError: the disk refused.
    """
    if fs.pwrite(mark_fd, mark.encode(), 0) != MARK_BYTES:
        raise OSError("the synced mark was written in part")
