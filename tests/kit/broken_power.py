"""Machines broken in what a power loss leaves, or a disk that fails at single calls."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from broken_base import breaks
from marked_store import MarkedStore, checked
from plain_stores import Machine

from dengine_sm.codec import encode
from dengine_sm.errors import StorageError
from dengine_sm.files.filesystem import write_all
from dengine_sm.kv import WriteBatch
from dengine_sm.model import Durability

# Power loss


class NeverSyncedStore(MarkedStore):
    def sync_journal(self) -> None:
        pass


@breaks("CRASH-6")
class FlushesWithoutASync(Machine):
    """A flush syncs the mark, but no record."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NeverSyncedStore(directory))


class ClosesUnsyncedStore(MarkedStore):
    def close(self) -> None:
        self.release()


@breaks("CRASH-6")
class StopsWithoutASync(Machine):
    """`stop` leaves to the kernel what was not flushed before."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ClosesUnsyncedStore(directory))


class NoEntriesStore(MarkedStore):
    def sync_directory(self) -> None:
        pass


@breaks("CRASH-6")
class ForgetsToSyncTheDirectory(Machine):
    """New files are synced, their entries in the directory are not."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NoEntriesStore(directory))


class WrongFileStore(MarkedStore):
    def sync_journal(self) -> None:
        fd = self.fs.open(self.mark_path, os.O_RDONLY)
        try:
            self.fs.fsync(fd)
        finally:
            self.fs.close(fd)


@breaks("CRASH-6")
class SyncsTheWrongFile(Machine):
    """A flush syncs another file than the one it has written."""

    def __init__(self, directory: Path) -> None:
        super().__init__(WrongFileStore(directory))


class EarlyRenameStore(MarkedStore):
    def create_aside(self, path: Path, content: bytes) -> Path:
        aside = path.with_name(path.name + ".tmp")
        fd = self.fs.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self.fs, fd, content)
        finally:
            self.fs.close(fd)
        return aside


@breaks("CRASH-6")
class RenamesBeforeItSyncs(Machine):
    """The new mark takes the place of the old one before its content is durable."""

    def __init__(self, directory: Path) -> None:
        super().__init__(EarlyRenameStore(directory))


class InPlaceStore(MarkedStore):
    def write_mark(self) -> None:
        content = checked(encode([self.number, self.end]))
        fd = self.fs.open(self.mark_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self.fs, fd, content)
            self.fs.fsync(fd)
        finally:
            self.fs.close(fd)
        self.sync_directory()
        self.marked = self.end


@breaks("CRASH-6")
class OverwritesItsMarkInPlace(Machine):
    """The mark is emptied and written anew: for a moment there is none."""

    def __init__(self, directory: Path) -> None:
        super().__init__(InPlaceStore(directory))


class SyncsLaterStore(MarkedStore):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.writes = 0

    def write(self, batch: WriteBatch) -> None:
        super().write(batch)
        self.writes += 1
        if self.writes % 4 == 0:
            self.flush()


@breaks("CRASH-6", durability=Durability.PER_APPLY)
class AcknowledgesBeforeItSyncs(Machine):
    """Declares PER_APPLY, and syncs every fourth time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SyncsLaterStore(directory))


class NewJournalUnsyncedStore(MarkedStore):
    def write_journal(self, batches: list[WriteBatch]) -> None:
        fs, self.fs = self.fs, _NoFsync(self.fs)
        try:
            super().write_journal(batches)
        finally:
            self.fs = fs


class _NoFsync:
    def __init__(self, fs: object) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> object:
        return getattr(self._fs, name)

    def fsync(self, fd: int) -> None:
        pass


@breaks("CRASH-6")
class InstallsWithoutASync(Machine):
    """An installed state, or an empty one after a reset, takes over before it is durable."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NewJournalUnsyncedStore(directory))


class TrustsTheCacheStore(MarkedStore):
    """What a restart finds counts as durable, though only the page cache may hold it."""

    def flush(self) -> None:
        if self.end > self.found:
            super().flush()

    def recover(self) -> None:
        self.found = 1 << 40
        super().recover()
        self.found = self.end


@breaks("CRASH-6")
class TakesWhatItFindsForDurable(Machine):
    """What a killed process left unsynced is never synced by the next one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(TrustsTheCacheStore(directory))


# A failing disk


class ShortWriteStore(MarkedStore):
    def append(self, record: bytes) -> None:
        self.fs.write(self.fd, record)
        self.end += len(record)


@breaks("CRASH-8")
class TakesAShortWriteForWhole(Machine):
    """Does not look how many bytes a write has taken."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ShortWriteStore(directory))


class FullIsFineStore(MarkedStore):
    def append(self, record: bytes) -> None:
        with suppress(OSError):
            super().append(record)


@breaks("CRASH-8")
class LosesWhatFindsNoSpace(Machine):
    """A record that finds no space is left out, and the chunk acknowledged."""

    def __init__(self, directory: Path) -> None:
        super().__init__(FullIsFineStore(directory))


class TriesAgainStore(MarkedStore):
    def sync_failed(self, exc: OSError) -> None:
        pass


@breaks("CRASH-8")
class SyncsOnceMoreAndBelievesIt(Machine):
    """A flush that follows a failed one syncs again, and returns."""

    def __init__(self, directory: Path) -> None:
        super().__init__(TriesAgainStore(directory))

    def flush(self) -> None:
        self._require_running()
        self._store.flush()


class LeavesHalfStore(MarkedStore):
    def take_back(self, end: int) -> None:
        pass

    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        later = any(self.record_at(content, later)[1] for later in range(at + 1, len(content)))
        if later:
            raise self.corrupt(self.journal(self.number), at, "holds a damaged record")
        self.torn = len(content)
        return []

    def read_journal(self, content: bytes) -> list[WriteBatch]:
        self.torn = 0
        batches = super().read_journal(content)
        self.end = max(self.end, self.torn)
        return batches


@breaks("CRASH-8")
class LeavesHalfARecordBehind(Machine):
    """What a failed write has left stays in the journal, in front of what comes later."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LeavesHalfStore(directory))


class BareErrorStore(MarkedStore):
    def open(self) -> None:
        try:
            super().open()
        except StorageError as exc:
            raise exc.__cause__ or exc from None


@breaks("CRASH-8")
class LetsPermissionErrorsThrough(Machine):
    """A directory that may not be written is an OSError, no StorageError."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BareErrorStore(directory))
