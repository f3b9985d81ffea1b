"""A sound store on a page or two: a journal, and a mark that says how much of it is durable.

Everything goes through `dengine_sm.files`, and every step that could go wrong is a method,
so that a broken machine is a subclass with one of them changed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plain_stores import Machine, whole_of

from dengine_sm.codec import decode, decode_prefix, encode
from dengine_sm.errors import CorruptionError, StorageError
from dengine_sm.files import DirectoryLock, default_file_system, make_directories
from dengine_sm.files.atomic import create_aside, read_checked_file
from dengine_sm.files.filesystem import read_all, storage_errors, write_all
from dengine_sm.kv import RamStore, WriteBatch
from dengine_sm.kv.ram import build_maps

MARK = "MARK"
HEADER = 8
"""Length and checksum of a record."""


class MarkedStore(RamStore):
    """The state in memory; `journal-<n>` on disk, of which `MARK` says which and how much."""

    def __init__(self, directory: Path, *, sync_each: bool = False) -> None:
        super().__init__()
        self.directory = directory
        self.writes_block = self.sync_each = sync_each
        self.fs = default_file_system()
        self.lock_file = DirectoryLock(directory, fs=self.fs)
        self.mark_path = directory / MARK
        self.number = self.end = self.marked = 0
        self.fd = -1
        self.broken = ""

    def journal(self, number: int) -> Path:
        return self.directory / f"journal-{number}"

    # Opening

    def open(self) -> None:
        if self.fd >= 0:
            return
        make_directories(self.directory, self.fs)
        self.lock_file.acquire()
        try:
            with storage_errors(self.directory, "open", "nothing was read"):
                self.recover()
        except BaseException:
            self.release()
            raise

    def recover(self) -> None:
        journals = sorted(self.directory.glob("journal-*"))
        if self.mark_path.exists():
            self.number, self.marked = self.read_mark()
            if self.journal(self.number) not in journals:
                self.journal_is_missing()
        elif all(path.name == "journal-0" and not path.stat().st_size for path in journals):
            self.begin()
        else:
            raise self.corrupt(self.mark_path, 0, "is missing")
        self.fs.sync_directory(self.directory)
        self.fd = self.fs.open(self.journal(self.number), os.O_RDWR | os.O_APPEND)
        batches = self.read_journal(read_all(self.fs, self.fd))
        self.fs.truncate(self.fd, self.end)
        self.flush()
        for path in self.directory.glob("journal-*"):
            if path != self.journal(self.number):
                self.fs.unlink(path)
        self.swap(*build_maps(batches))

    def begin(self) -> None:
        self.number = self.marked = 0
        self.write_journal([])
        self.write_mark()

    def journal_is_missing(self) -> None:
        raise self.corrupt(self.journal(self.number), 0, "is missing")

    def read_journal(self, content: bytes) -> list[WriteBatch]:
        """Return the batches, and leave in `end` where the last whole one ends."""
        batches: list[WriteBatch] = []
        at = 0
        while at < len(content):
            size, payload = self.record_at(content, at)
            if payload is None:
                batches += self.bad_record(content, at)
                break
            batches.append(self.unpack(payload))
            at += HEADER + size
        if at < self.marked:
            self.cut_before_mark(at)
        self.end = at
        return batches

    def record_at(self, content: bytes, at: int) -> tuple[int, bytes | None]:
        size = int.from_bytes(content[at : at + 4])
        payload = content[at + HEADER : at + HEADER + size]
        crc = content[at + 4 : at + HEADER]
        is_whole = 0 < size == len(payload) and self.matches(crc, payload)
        return size, payload if is_whole else None

    def matches(self, crc: bytes, payload: bytes) -> bool:
        return zlib.crc32(payload).to_bytes(4) == crc

    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        """Refuse it, unless it can be the last one, torn."""
        later = any(self.record_at(content, later)[1] for later in range(at + 1, len(content)))
        if at < self.marked or later:
            raise self.corrupt(self.journal(self.number), at, "holds a damaged record")
        return []

    def cut_before_mark(self, at: int) -> None:
        raise self.corrupt(self.journal(self.number), at, f"is cut, expected {self.marked} bytes")

    def unpack(self, payload: bytes) -> WriteBatch:
        try:
            data, internal = decode(payload)
            return WriteBatch(dict(map(tuple, data)), dict(map(tuple, internal)))
        except (ValueError, TypeError) as exc:
            raise self.corrupt(self.journal(self.number), 0, f"holds no batch ({exc})") from exc

    def corrupt(self, path: Path, offset: int, problem: str) -> Exception:
        return CorruptionError(f"'{path}' {problem}; nothing changed", path=path, offset=offset)

    # The mark

    def read_mark(self) -> tuple[int, int]:
        payload: Any = decode_prefix(read_checked_file(self.mark_path, self.fs))
        return payload[0], payload[1]

    def write_mark(self) -> None:
        """Replace the mark, durably."""
        payload = encode([self.number, self.end])
        aside = self.create_aside(self.mark_path, checked(payload))
        self.fs.replace(aside, self.mark_path)
        self.sync_directory()
        self.marked = self.end

    def create_aside(self, path: Path, content: bytes) -> Path:
        return create_aside(path, content, self.fs)

    def sync_directory(self) -> None:
        self.fs.sync_directory(self.directory)

    # Writing

    def write(self, batch: WriteBatch) -> None:
        with storage_errors(self.directory, "write", "nothing was written"):
            self.check_sound()
            end = self.end
            self.append(record_of(batch))
            if self.sync_each:
                try:
                    self.sync()
                except OSError:
                    self.take_back(end)
                    raise
        super().write(batch)

    def check_sound(self) -> None:
        if self.broken:
            raise StorageError(f"broken: {self.broken}; expected to be opened again")

    def append(self, record: bytes) -> None:
        try:
            write_all(self.fs, self.fd, record)
        except OSError:
            self.take_back(self.end)
            raise
        self.end += len(record)

    def take_back(self, end: int) -> None:
        try:
            self.fs.truncate(self.fd, end)
            self.end = end
            if self.marked > end:
                self.write_mark()
        except OSError as exc:
            self.broken = str(exc)

    def flush(self) -> None:
        with storage_errors(self.directory, "sync", "what is durable is unknown"):
            self.check_sound()
            self.sync()

    def sync(self) -> None:
        try:
            self.sync_journal()
            self.write_mark()
        except OSError as exc:
            self.sync_failed(exc)
            raise

    def sync_journal(self) -> None:
        self.fs.fdatasync(self.fd)

    def sync_failed(self, exc: OSError) -> None:
        self.broken = str(exc)

    def close(self) -> None:
        try:
            if self.fd >= 0 and not self.broken:
                self.flush()
        finally:
            self.release()

    def release(self) -> None:
        super().close()
        self.broken = ""
        if self.fd >= 0:
            self.fs.close(self.fd)
            self.fd = -1
        self.lock_file.release()

    # A whole new state

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        with storage_errors(self.directory, "replace the state", "the old one stays"):
            self.check_sound()
            whole = whole_of(_Maps(batches))
            self.number += 1
            try:
                self.write_journal([whole])
                fd = self.fs.open(self.journal(self.number), os.O_RDWR | os.O_APPEND)
                fd, self.fd = self.fd, fd
                self.fs.close(fd)
                self.write_mark()
            except OSError as exc:
                # Which of both is in force is for a restart to find out.
                self.broken = str(exc)
                raise
            self.swap(*build_maps([whole]))

    def write_journal(self, batches: list[WriteBatch]) -> None:
        """Write a new journal, durably but for its entry in the directory."""
        path = self.journal(self.number)
        content = b"".join(map(record_of, batches))
        self.end = len(content)
        fd = self.fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            if content:
                write_all(self.fs, fd, content)
            self.fs.fsync(fd)
        finally:
            self.fs.close(fd)


class _Maps(RamStore):
    def __init__(self, batches: Iterable[WriteBatch]) -> None:
        super().__init__()
        self.swap(*build_maps(batches))


def record_of(batch: WriteBatch) -> bytes:
    payload = encode([list(batch.data.items()), list(batch.internal.items())])
    return len(payload).to_bytes(4) + zlib.crc32(payload).to_bytes(4) + payload


def checked(payload: bytes) -> bytes:
    """Return the content that `read_checked_file` reads."""
    length = len(payload).to_bytes(4)
    return b"DSMC" + length + zlib.crc32(payload, zlib.crc32(length)).to_bytes(4) + payload


class SoundMarkedMachine(Machine):
    """The store above, unchanged."""

    def __init__(self, directory: Path) -> None:
        super().__init__(MarkedStore(directory))


class SoundMarkedSyncedMachine(Machine):
    """The same, durable when `apply_chunk` returns."""

    def __init__(self, directory: Path) -> None:
        super().__init__(MarkedStore(directory, sync_each=True))
