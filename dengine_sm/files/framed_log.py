"""An append-only log of checksummed records in segment files (CRASH-5).

The rules by which it recovers are told in `dengine_sm.files.recovery`, the bytes in
`dengine_sm.files.frames`. The log does not lock its directory; its owner does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from threading import Lock

import attrs

from dengine_sm.errors import LogGapError, StorageError
from dengine_sm.files.atomic import write_checked_file
from dengine_sm.files.filesystem import (
    FileSystem,
    default_file_system,
    storage_errors,
    write_all,
)
from dengine_sm.files.frames import (
    MAX_PAYLOAD_BYTES,
    LogStart,
    SyncedMark,
    corruption,
    frame_header,
    scan_frames,
)
from dengine_sm.files.recovery import Recovered, RecoveryReport, recover, write_mark
from dengine_sm.files.segments import (
    START_NAME,
    Segment,
    create_segment,
    open_segment,
    remove_segments,
)

__all__ = ["FramedLog", "LogRecord", "RecoveryReport"]


@attrs.frozen
class LogRecord:
    """A record as it was appended."""

    sequence: int
    """First sequence number that it covers."""
    count: int
    """Number of sequence numbers that it covers, at least 1."""
    payload: bytes


@attrs.frozen
class _Undoable:
    """The newest record, while it can be taken back."""

    sequence: int
    offset: int
    previous_offset: int
    """Offset of the frame before it; its own if it is the first."""


class FramedLog:
    """A segmented log of records; each covers consecutive sequence numbers.

    One thread appends; `sync`, `read` and `purge` may run in others meanwhile. After a
    failed sync, or a failed append that could not be taken back, the log is broken:
    it refuses to write until it is closed and opened again.
    """

    def __init__(
        self, directory: Path, *, segment_bytes: int = 64 << 20, fs: FileSystem | None = None
    ) -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._fs: FileSystem = fs or default_file_system()
        # Taken in this order. The first guards the set of files and descriptors, and is
        # held through a sync; the second guards the end of the log, and is held briefly.
        self._files_lock = Lock()
        self._end_lock = Lock()
        self._parts: Recovered | None = None
        self._broken: str | None = None
        self._synced_sequence = 0
        self._newest_tried_generation = 0
        self._last_offset = 0
        self._undoable: _Undoable | None = None

    @property
    def first_sequence(self) -> int:
        """Oldest sequence kept; the next one if the log is empty."""
        return self._open_parts().segments[0].first_sequence

    @property
    def next_sequence(self) -> int:
        """Sequence that the next record begins with."""
        return self._open_parts().segments[-1].next_sequence

    @property
    def last_sequence(self) -> int:
        """Newest sequence, `next_sequence - 1`."""
        return self.next_sequence - 1

    @property
    def synced_sequence(self) -> int:
        """Newest sequence that is known to be durable."""
        return self._synced_sequence

    @property
    def size_bytes(self) -> int:
        """Size of all segments."""
        return sum(segment.end for segment in self._open_parts().segments)

    def open(self, first_sequence: int = 1, *, must_exist: bool = False) -> RecoveryReport:
        """Recover the log of the directory, or create an empty one.

        What is recovered is durable on return.

        Args:
            first_sequence: the next sequence of a log that is created.
            must_exist: raise where the directory is absent or empty. For an owner that knows
                that it has a log: one whose files are all gone looks like a new one.

        Raises:
            CorruptionError: damage that no crash explains; nothing was changed.
            StorageFormatError: a newer version wrote the log; nothing was changed.
            StorageError: the disk refused, or the log is open; opening again is safe.
        """
        with self._files_lock, self._end_lock:
            if self._parts is not None:
                raise StorageError(f"log '{self.directory}' is open", path=self.directory)
            parts = self._parts = recover(
                self.directory, self._fs, first_sequence, must_exist=must_exist
            )
            newest = parts.segments[-1]
            self._broken = None
            self._synced_sequence = newest.next_sequence - 1
            self._newest_tried_generation = parts.generation
            self._undoable, self._last_offset = None, parts.mark.start
            return RecoveryReport(
                parts.segments[0].first_sequence,
                newest.next_sequence - 1,
                parts.torn_bytes,
                parts.torn_path,
            )

    def close(self) -> None:
        """Release the files without syncing; idempotent."""
        with self._files_lock, self._end_lock:
            parts, self._parts = self._parts, None
            if parts is not None:
                for fd in (parts.fd, parts.mark_fd):
                    # Nothing is lost: what is durable was synced, not closed.
                    with suppress(OSError):
                        self._fs.close(fd)

    def append(self, payload: bytes, count: int = 1) -> int:
        """Write a record at the end of the log, not durably yet.

        Args:
            payload: the record, at most 2 GiB - 64 KiB.
            count: number of sequence numbers that it covers, at least 1.

        Returns:
            The first of them.

        Raises:
            StorageError: the disk refused, or the log is broken; the log is as before.
        """
        if count < 1 or len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"record of {len(payload)} bytes, count {count}: out of range")
        if self._writable_parts().segments[-1].end >= self._segment_bytes:
            self._roll()
        with self._end_lock:
            parts = self._writable_parts()
            segment = parts.segments[-1]
            sequence, offset = segment.next_sequence, segment.end
            header = frame_header(payload, sequence, count, segment.generation, offset)
            with storage_errors(segment.path, "append", "the log is as before"):
                try:
                    write_all(self._fs, parts.fd, header + payload)
                except BaseException:
                    self._truncate(parts.fd, offset)
                    raise
            segment.add(offset, offset + len(header) + len(payload), sequence, count)
            self._undoable = _Undoable(sequence, offset, min(self._last_offset, offset))
            self._last_offset = offset
            return sequence

    def sync(self) -> None:
        """Make everything appended before the call durable; appends may go on meanwhile.

        Raises:
            StorageError: the disk refused: nothing unsynced may be called durable, and
                the log is broken.
        """
        with self._files_lock:
            with self._end_lock:
                parts = self._writable_parts()
                mark = self._mark_of_end(parts)
            if mark.sequence - 1 > self._synced_sequence:
                self._sync_to(parts, mark)

    def undo_append(self, first_sequence: int) -> None:
        """Take back the newest record, synced or not; it is gone durably on return.

        Also possible once a failed sync has broken the log.

        Args:
            first_sequence: what its `append` returned.

        Raises:
            ValueError: the newest record is another one; nothing changed.
            StorageError: the disk refused; the log is broken, and the record may be
                back after a restart.
        """
        with self._files_lock, self._end_lock:
            parts = self._open_parts()
            last, segment = self._undoable, parts.segments[-1]
            if last is None or last.sequence != first_sequence:
                raise ValueError(
                    f"log '{self.directory}': record {first_sequence} is not the newest; "
                    "nothing changed"
                )
            self._undoable, self._last_offset = None, last.previous_offset
            with self._breaking(segment.path, "take a record back"):
                if parts.mark.end > last.offset:
                    # First, and durably: a mark beyond the end would look like damage.
                    lower = SyncedMark(
                        segment.generation,
                        segment.first_sequence,
                        first_sequence,
                        last.previous_offset,
                        last.offset,
                    )
                    self._set_mark(parts, lower)
                    self._fs.fsync(parts.mark_fd)
                self._fs.truncate(parts.fd, last.offset)
                segment.take_back(last.offset, first_sequence)
                self._synced_sequence = min(self._synced_sequence, first_sequence - 1)
                self._fs.fsync(parts.fd)

    def read(self, first_sequence: int) -> Iterator[LogRecord]:
        """Yield the records from the one that covers `first_sequence` to the present end.

        Any thread may read while others append.

        Raises:
            LogGapError: it was purged, or is cleared while reading.
            CorruptionError: a record is damaged.
            StorageError: the disk refused.
        """
        with self._end_lock:
            segments = list(self._open_parts().segments)
            end, times_taken_back = segments[-1].end, segments[-1].times_taken_back
        if first_sequence < segments[0].first_sequence:
            raise self._gap(first_sequence, segments[0].first_sequence)
        while len(segments) > 1 and segments[1].first_sequence <= first_sequence:
            segments.pop(0)
        return self._read_segments(segments, first_sequence, end, times_taken_back)

    def purge(self, up_to_sequence: int) -> None:
        """Delete the segments whose records are all at or below `up_to_sequence`.

        The newest segment stays.

        Raises:
            StorageError: the disk refused; the log is readable, from where it began or
                from where it would have begun.
        """
        with self._files_lock:
            with self._end_lock:
                parts = self._writable_parts()
                doomed = [
                    segment
                    for segment, following in pairwise(parts.segments)
                    if following.first_sequence - 1 <= up_to_sequence
                ]
                kept = parts.segments[len(doomed)]
            if not doomed:
                return
            start = LogStart(True, parts.generation, kept.first_sequence)
            write_checked_file(self.directory / START_NAME, start.encode(), self._fs)
            with self._end_lock:
                parts.segments = parts.segments[len(doomed) :]
        # Without the lock: freeing a large file takes long enough to stall who appends.
        with storage_errors(self.directory, "delete segments", "the next open deletes them"):
            remove_segments(self._fs, self.directory, doomed)

    def clear(self, next_sequence: int) -> None:
        """Drop every record, durably; the next one begins at `next_sequence`.

        Killed at any instant, the log is the whole old one or the empty one.

        Raises:
            StorageError: the disk refused; the log is as before, or, if it is broken,
                the old or the empty one once opened again.
        """
        with self._files_lock, self._end_lock:
            parts, doomed = self._writable_parts(), self._open_parts().segments
            # A number that failed is not used again: its segment may still turn up.
            self._newest_tried_generation += 1
            generation = self._newest_tried_generation
            with storage_errors(self.directory, "clear the log", "the log is as before"):
                segment = create_segment(self._fs, self.directory, generation, next_sequence)
                self._fs.sync_directory(self.directory)
                fd = open_segment(self._fs, segment.path)
            try:
                start = LogStart(True, generation, next_sequence)
                write_checked_file(self.directory / START_NAME, start.encode(), self._fs)
            except BaseException:
                # Whether the old or the new START is in place is for `open` to find out.
                self._broken = "clearing it failed"
                self._fs.close(fd)
                raise
            parts.generation, parts.segments = generation, []
            self._synced_sequence = next_sequence - 1
            self._go_on_in(parts, segment, fd)
            with self._breaking(self.directory, "finish clearing the log"):
                remove_segments(self._fs, self.directory, doomed)

    def _roll(self) -> None:
        """Sync the current segment, then go on in a new one."""
        with self._files_lock, self._end_lock:
            parts = self._writable_parts()
            old = parts.segments[-1]
            if old.end < self._segment_bytes or old.next_sequence == old.first_sequence:
                return
            self._sync_to(parts, self._mark_of_end(parts))
            with storage_errors(self.directory, "begin a segment", "the log is as before"):
                segment = create_segment(
                    self._fs, self.directory, old.generation, old.next_sequence
                )
            # The old segment's end is final from here on.
            self._undoable = None
            with self._breaking(self.directory, "begin a segment"):
                self._fs.sync_directory(self.directory)
                fd = open_segment(self._fs, segment.path)
            self._go_on_in(parts, segment, fd)

    def _go_on_in(self, parts: Recovered, segment: Segment, fd: int) -> None:
        old_fd, parts.fd = parts.fd, fd
        # A new list: readers hold the old one.
        parts.segments = [*parts.segments, segment]
        self._undoable, self._last_offset = None, segment.end
        with self._breaking(segment.path, "begin a segment"):
            try:
                self._set_mark(parts, self._mark_of_end(parts))
            finally:
                self._fs.close(old_fd)

    def _sync_to(self, parts: Recovered, mark: SyncedMark) -> None:
        path = parts.segments[-1].path
        with self._breaking(path, "sync the log"):
            self._fs.fdatasync(parts.fd)
            self._set_mark(parts, mark)
        self._synced_sequence = mark.sequence - 1

    def _mark_of_end(self, parts: Recovered) -> SyncedMark:
        segment = parts.segments[-1]
        return SyncedMark(
            segment.generation,
            segment.first_sequence,
            segment.next_sequence,
            self._last_offset,
            segment.end,
        )

    def _set_mark(self, parts: Recovered, mark: SyncedMark) -> None:
        write_mark(self._fs, parts.mark_fd, mark)
        parts.mark = mark

    def _truncate(self, fd: int, size: int) -> None:
        """Undo a write that failed; if that fails, too, the log is broken."""
        try:
            self._fs.truncate(fd, size)
        except OSError as exc:
            self._broken = f"a failed append could not be taken back ({exc.strerror})"

    @contextmanager
    def _breaking(self, path: Path, action: str) -> Iterator[None]:
        """Let an OSError of the block break the log."""
        with storage_errors(path, action, "the log refuses writes until it is opened again"):
            try:
                yield
            except OSError as exc:
                self._broken = f"it could not {action} ({exc.strerror or exc})"
                raise

    def _open_parts(self) -> Recovered:
        if self._parts is None:
            raise StorageError(
                f"log '{self.directory}' is not open; nothing was done", path=self.directory
            )
        return self._parts

    def _writable_parts(self) -> Recovered:
        parts = self._open_parts()
        if self._broken is not None:
            raise StorageError(
                f"log '{self.directory}' is broken: {self._broken}; expected to be closed "
                "and opened again; nothing was written",
                path=self.directory,
            )
        return parts

    def _read_segments(
        self, segments: list[Segment], first: int, end: int, times_taken_back: int
    ) -> Iterator[LogRecord]:
        for segment in segments:
            is_newest = segment is segments[-1]
            stop = end if is_newest else segment.end
            position, expected = segment.offset_before(first), None
            fd = self._open_for_reading(segment)
            try:
                for offset, frame_end, sequence, count, payload in scan_frames(
                    self._fs, fd, segment.generation, position, stop
                ):
                    if expected not in (None, sequence):
                        raise corruption(
                            segment.path, offset, f"sequence {sequence} is no successor"
                        )
                    position, expected = frame_end, sequence + count
                    if expected > first:
                        yield LogRecord(sequence, count, bytes(payload))
            finally:
                self._fs.close(fd)
            if position < stop:
                with self._end_lock:  # an undo under way has cut the file, but not counted
                    was_taken_back = segment.times_taken_back != times_taken_back
                if is_newest and was_taken_back:
                    return
                raise corruption(segment.path, position, "a frame is damaged")

    def _open_for_reading(self, segment: Segment) -> int:
        with storage_errors(segment.path, "read the log", "nothing was changed"):
            try:
                return self._fs.open(segment.path, os.O_RDONLY)
            except FileNotFoundError as exc:
                parts = self._open_parts()
                if segment not in parts.segments:
                    oldest = parts.segments[0].first_sequence
                    raise self._gap(segment.first_sequence, oldest) from exc
                raise corruption(segment.path, 0, "the segment is missing") from exc

    def _gap(self, wanted: int, oldest: int) -> LogGapError:
        return LogGapError(
            f"log '{self.directory}': sequence {wanted} was purged; the oldest kept is {oldest}",
            expected_index=wanted,
            observed_index=oldest,
        )
