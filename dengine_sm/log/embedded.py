"""The commit log `embedded`: one node, one directory, durable before it acknowledges.

Appends that wait together share one frame and one sync (group commit). A frame holds
`[term, timestamp_ms, [payload, ...]]`; its sequence numbers are the log indices. `META`
holds the term, which rises at every open, and the id that the log was last cleared to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs

from dengine_sm.codec import decode_prefix, encode
from dengine_sm.entries import EntryBlock
from dengine_sm.errors import (
    CommitLogError,
    CorruptionError,
    LogGapError,
    NotRunningError,
    ProposalOutcomeUnknown,
    StorageError,
    StorageFormatError,
)
from dengine_sm.files import (
    DirectoryLock,
    FramedLog,
    LogRecord,
    default_file_system,
    make_directories,
    names_in,
    read_checked_file,
    write_checked_file,
)
from dengine_sm.hookspecs import LogEngine, hookimpl
from dengine_sm.log.contract import LogIdRange
from dengine_sm.model import Entry, LogId, SnapshotMetadata

FORMAT = "dengine-sm-embedded-log"
VERSION = 1
META = "META"
_TAIL_BYTES = 4 << 20
"""Of the newest entries, kept for a follower that has nearly caught up."""
_READ_BYTES = 4 << 20
_MAX_APPEND_BYTES = 1 << 30

logger = logging.getLogger("dengine_sm.log.embedded")

T = TypeVar("T")


@attrs.frozen
class EmbeddedLogOptions:
    """`[log.options]` of the engine `embedded`."""

    segment_bytes: int = attrs.field(default=64 << 20, validator=attrs.validators.ge(4096))
    """Size at which a file is closed and the next one begun; purging drops whole files."""


@attrs.frozen
class _Append:
    payloads: Sequence[bytes]
    done: asyncio.Future[LogIdRange]


class EmbeddedLog:
    """A `CommitLog` in one directory of this machine.

    Args:
        directory: owned by this log; made by `open`.
        options: see `EmbeddedLogOptions`.
    """

    is_shared = False
    appends_in_flight = 1  # those that wait meanwhile share the next write
    max_append_bytes = _MAX_APPEND_BYTES

    def __init__(self, directory: Path, options: EmbeddedLogOptions | None = None) -> None:
        self.directory = directory
        options = options or EmbeddedLogOptions()
        self._fs = default_file_system()
        self._lock = DirectoryLock(directory, fs=self._fs)
        self._frames = FramedLog(
            directory / "entries", segment_bytes=options.segment_bytes, fs=self._fs
        )
        self._worker: ThreadPoolExecutor | None = None
        self._writer: asyncio.Task[None] | None = None
        self._waiting: list[_Append] = []
        self._wake_writer = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tail: deque[tuple[EntryBlock, int]] = deque()
        self._tail_bytes = 0
        self._term = 0
        self._timestamp_ms = 0
        self._last = self._base = LogId.ZERO
        self._closing = False
        self._is_open = False
        self.truncated_bytes = 0
        """Bytes of an unfinished last write that the recovery cut off."""

    # Life

    async def open(self) -> None:
        """Open and recover; the term rises."""
        if self._is_open:
            return
        self._closing = False
        self._worker = ThreadPoolExecutor(1, "dengine-sm-log")
        try:
            await self._in_worker(self._open_files)
        except BaseException:
            self._worker.shutdown()
            self._lock.release()
            raise
        if self.truncated_bytes:
            logger.warning(
                "cut %d torn bytes off the log %s: the last append before the crash was not "
                "acknowledged",
                self.truncated_bytes,
                self.directory,
            )
        self._is_open = True
        self._writer = asyncio.create_task(self._write_loop(), name="dengine-sm-log")

    def _open_files(self) -> None:
        meta_path = self.directory / META
        self._refuse_foreign_directory(meta_path)
        make_directories(self.directory, self._fs)
        self._lock.acquire()
        term, base, ready = self._read_meta(meta_path)
        if not ready:
            self._write_meta(term, base, ready=False)
        elif not (self.directory / "entries").is_dir():
            raise CorruptionError(
                f"log directory {str(self.directory)!r} has lost its entries; nothing was changed",
                path=self.directory / "entries",
                offset=0,
            )
        self.truncated_bytes = self._frames.open(base.index + 1).truncated_bytes
        try:
            self._recover_end(term, base)
            self._write_meta(self._term, base, ready=True)
        except BaseException:
            self._frames.close()
            raise

    def _refuse_foreign_directory(self, meta_path: Path) -> None:
        """Refuse before the first change: not even a lock file is left behind."""
        names = names_in(self.directory)
        if META in names:
            self._read_meta(meta_path)
        elif foreign := sorted(names - {"LOCK", "entries", f"{META}.tmp"}):
            some = ", ".join(map(repr, foreign[:3]))
            raise StorageFormatError(
                f"log directory {str(self.directory)!r} is not one of the log 'embedded': it "
                f"holds {some}; expected an empty directory or a {META}; nothing changed",
                path=self.directory,
                expected=FORMAT,
                observed=some,
            )
        elif "entries" in names:
            raise CorruptionError(
                f"log directory {str(self.directory)!r} has entries but no {META}; "
                "nothing was changed",
                path=meta_path,
                offset=0,
            )

    def _recover_end(self, term: int, base: LogId) -> None:
        self._last = self._base = base
        self._timestamp_ms = 0
        last_index = self._frames.last_sequence
        if self._frames.first_sequence <= last_index:
            for record in self._frames.read(last_index):
                entry_term, self._timestamp_ms, _ = _decode_record(record, self.directory)
                self._last = LogId(entry_term, last_index)
        elif last_index != base.index:
            raise CorruptionError(
                f"log {str(self.directory)!r} is empty up to index {last_index}, but was cleared "
                f"to {base}; nothing was changed",
                path=self.directory / META,
                offset=0,
            )
        self._term = max(term, self._last.term) + 1

    def _read_meta(self, path: Path) -> tuple[int, LogId, bool]:
        if not path.exists():
            return 0, LogId.ZERO, False
        match decode_prefix(read_checked_file(path, self._fs)):
            case [name, version, int(term), [int(base_term), int(base_index)], ready] if (
                name == FORMAT and version == VERSION
            ):
                return term, LogId(base_term, base_index), bool(ready)
            case other:
                raise StorageFormatError(
                    f"{str(path)!r} is no {FORMAT} version {VERSION}: observed {other!r}; "
                    "nothing was changed",
                    path=path,
                    expected=f"{FORMAT} {VERSION}",
                )

    def _write_meta(self, term: int, base: LogId, *, ready: bool) -> None:
        fields = [FORMAT, VERSION, term, [base.term, base.index], int(ready)]
        write_checked_file(self.directory / META, encode(fields), self._fs)

    async def close(self) -> None:
        """Finish appends under way, end followers, release everything; idempotent."""
        if not self._is_open or self._closing:
            return
        self._closing = True
        self._wake_writer.set()
        self._arrived.set()
        if self._writer is not None:
            await self._writer
        await self._in_worker(self._frames.close)
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self._lock.release()
        self._is_open = False
        self._tail.clear()
        self._tail_bytes = 0

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _require_open(self) -> None:
        if not self._is_open or self._closing:
            raise NotRunningError(
                f"commit log {str(self.directory)!r} is closed; nothing was changed"
            )

    # Reading

    def first_index(self) -> int:
        """Return the index of the oldest entry kept; last + 1 when there is none."""
        return self._frames.first_sequence

    def last_log_id(self) -> LogId:
        """Return the id of the newest entry."""
        return self._last

    async def read_barrier(self) -> int:
        """Return the newest index: this node is the only one that appends."""
        return self._last.index

    async def follow(self, first_index: int) -> AsyncIterator[Sequence[Entry]]:
        """Yield committed entries from an index on, until the log is closed."""
        self._require_open()
        position = first_index
        while not self._closing:
            if position > self._last.index:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            entries = self._from_tail(position)
            if entries is None:
                if position < self.first_index():
                    raise LogGapError(
                        f"entries from index {position} on were purged: the log begins at "
                        f"{self.first_index()}",
                        expected_index=position,
                        observed_index=self.first_index(),
                    )
                entries = await self._in_worker(partial(self._from_disk, position))
            position = entries.last_id.index + 1
            yield entries

    def _from_tail(self, position: int) -> EntryBlock | None:
        for entries, _ in reversed(self._tail):
            if entries.first_index <= position:
                return entries.from_index(position)
        return None

    def _from_disk(self, position: int) -> EntryBlock:
        entries: EntryBlock | None = None
        size = 0
        for record in self._frames.read(position):
            term, timestamp_ms, payloads = _decode_record(record, self.directory)
            if entries is None:
                entries = EntryBlock(record.sequence, term)
            elif term != entries.term:
                break
            entries.add(timestamp_ms, payloads)
            size += len(record.payload)
            if size >= _READ_BYTES:
                break
        assert entries is not None, "the log says that it holds this index"
        return entries.from_index(position)

    # Appending

    async def append(self, payloads: Sequence[bytes]) -> LogIdRange:
        """Append commands; return once they are on disk and synced."""
        self._require_open()
        if not payloads:
            raise ValueError("append: expected at least one payload")
        if sum(map(len, payloads)) > _MAX_APPEND_BYTES:
            raise CommitLogError(
                f"append of {len(payloads)} payloads: more than {_MAX_APPEND_BYTES} bytes in "
                "one call; nothing was appended"
            )
        done: asyncio.Future[LogIdRange] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Append(payloads, done))
        self._wake_writer.set()
        return await asyncio.shield(done)

    async def _write_loop(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._wake_writer.clear()
                await self._wake_writer.wait()
                continue
            group, self._waiting = self._take_group()
            await self._write_group(group)

    def _take_group(self) -> tuple[list[_Append], list[_Append]]:
        size = 0
        for position, append in enumerate(self._waiting):
            size += sum(map(len, append.payloads))
            if size > _MAX_APPEND_BYTES and position:
                return self._waiting[:position], self._waiting[position:]
        return self._waiting, []

    async def _write_group(self, group: list[_Append]) -> None:
        if len(group) == 1:
            payloads = list(group[0].payloads)
        else:
            payloads = [payload for append in group for payload in append.payloads]
        # The wall clock may step back; log time may not (DET-2).
        timestamp_ms = max(self._timestamp_ms, time.time_ns() // 1_000_000)
        first_index = self._last.index + 1
        try:
            record = encode([self._term, timestamp_ms, payloads])
            await self._in_worker(lambda: self._write(record, len(payloads)))
        except Exception as exc:
            error = _append_error(exc, len(payloads))
            for append in group:
                if not append.done.done():
                    append.done.set_exception(error)
                    # A caller that was cancelled leaves nobody to look at the error.
                    append.done.exception()
            return
        self._timestamp_ms = timestamp_ms
        self._last = LogId(self._term, first_index + len(payloads) - 1)
        entries = EntryBlock.stamped(first_index, self._term, timestamp_ms, payloads)
        self._keep_tail(entries, len(record))
        self._arrived.set()
        for append in group:
            count = len(append.payloads)
            append.done.set_result(LogIdRange(self._term, first_index, count))
            first_index += count

    def _write(self, record: bytes, count: int) -> None:
        sequence = self._frames.append(record, count)
        try:
            self._frames.sync()
        except StorageError as exc:
            try:
                self._frames.undo_append(sequence)
            except StorageError:
                raise ProposalOutcomeUnknown(
                    f"{count} commands were written but could neither be synced nor taken back: "
                    f"{exc}; whether they are in the log is known after a restart"
                ) from exc
            raise

    def _keep_tail(self, entries: EntryBlock, size: int) -> None:
        self._tail.append((entries, size))
        self._tail_bytes += size
        while self._tail_bytes > _TAIL_BYTES and len(self._tail) > 1:
            _, dropped = self._tail.popleft()
            self._tail_bytes -= dropped

    # Purging and snapshots

    async def purge(self, up_to: LogId) -> None:
        """Drop whole files of entries up to and including `up_to`."""
        self._require_open()
        if up_to.index > self._last.index:
            raise CommitLogError(
                f"purge up to {up_to}: the log ends at {self._last}; nothing was dropped"
            )
        await self._in_worker(lambda: self._frames.purge(up_to.index))

    async def advance_to(self, log_id: LogId) -> None:
        """Go on after a snapshot that is ahead of this log."""
        self._require_open()
        if log_id.index <= self._last.index:
            if log_id.term > self._term:
                self._term = log_id.term
                await self._in_worker(lambda: self._write_meta(self._term, self._base, ready=True))
            return
        term = max(self._term, log_id.term)

        def advance() -> None:
            self._write_meta(term, log_id, ready=True)
            self._frames.clear(log_id.index + 1)

        await self._in_worker(advance)
        self._term, self._last, self._base = term, log_id, log_id
        self._tail.clear()
        self._tail_bytes = 0

    async def publish_snapshot(self, metadata: SnapshotMetadata, archive: Path) -> None:
        """Do nothing: no other node follows this log."""

    async def fetch_snapshot(self, newer_than: LogId, directory: Path) -> Path | None:
        """Return None: snapshots of this log are in the node's own store."""
        return None


def _append_error(exc: Exception, count: int) -> Exception:
    if isinstance(exc, ProposalOutcomeUnknown):
        return exc
    error = CommitLogError(f"{count} commands were not appended: {exc}")
    error.__cause__ = exc
    return error


def _decode_record(record: LogRecord, directory: Path) -> tuple[int, int, list[bytes]]:
    match decode_prefix(record.payload):
        case [int(term), int(timestamp_ms), list(payloads)] if len(payloads) == record.count:
            return term, timestamp_ms, payloads
    raise CorruptionError(
        f"log {str(directory)!r} holds no entries at index {record.sequence}",
        path=directory,
        offset=0,
    )


@hookimpl
def dengine_sm_commit_logs() -> list[LogEngine]:
    """Return the embedded log."""
    return [
        LogEngine(
            "embedded",
            EmbeddedLog,
            options=EmbeddedLogOptions,
            summary="one node, one directory, group commit, synced before it acknowledges",
        )
    ]
