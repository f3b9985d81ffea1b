"""Machines broken in what a full, read-only or failing disk leaves."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from broken_base import SoundFileMachine, breaks
from plain_stores import JournalStore, LazyStore, Machine, write_whole

from dengine_sm.backends.file_store import FileStore
from dengine_sm.errors import StorageError
from dengine_sm.files.filesystem import storage_errors
from dengine_sm.kv import RamStore, WriteBatch
from dengine_sm.kv.ram import build_maps


class IgnoresErrorsStore(FileStore):
    def write(self, batch: WriteBatch) -> None:
        try:
            super().write(batch)
        except StorageError:
            self._ram.write(batch)


@breaks("CRASH-8")
class IgnoresThatTheDiskIsFull(Machine):
    """A write that fails is left out, without a word."""

    def __init__(self, directory: Path) -> None:
        super().__init__(IgnoresErrorsStore(directory))


@breaks("CRASH-8")
class GoesOnAfterAnError(SoundFileMachine):
    """Applies go on after a storage failure."""

    def _require_sound(self) -> None:
        pass


class FlushesWhenPoisoned(Machine):
    """Refuses applies after a storage failure, but no flush."""

    def flush(self) -> None:
        self._poisoned, failure = None, self._poisoned
        try:
            super().flush()
        finally:
            self._poisoned = self._poisoned or failure


class AppliesBeforeWritingStore(FileStore):
    def write(self, batch: WriteBatch) -> None:
        self._ram.write(batch)
        super().write(batch)


@breaks("CRASH-8")
class AdvancesAlthoughTheWriteFails(Machine):
    """The state in memory changes before a write that then fails."""

    def __init__(self, directory: Path) -> None:
        super().__init__(AppliesBeforeWritingStore(directory))


class RetryingStore(FileStore):
    def flush(self) -> None:
        self._log._broken = None
        super().flush()


@breaks("CRASH-8")
class RetriesAFailedSync(FlushesWhenPoisoned):
    """A flush after a failed one syncs once more, and that works."""

    def __init__(self, directory: Path) -> None:
        super().__init__(RetryingStore(directory))


class SwallowsSyncErrorsStore(JournalStore):
    def flush(self) -> None:
        with contextlib.suppress(StorageError):
            super().flush()


@breaks("CRASH-8")
class SwallowsSyncErrors(Machine):
    """A sync that fails is taken for a success."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SwallowsSyncErrorsStore(directory))


class LeavesItTornStore(JournalStore):
    def recover(self, batches: list[WriteBatch], end: int) -> None:
        RamStore.open(self)
        self.swap(*build_maps(batches))

    def append(self, frame: bytes) -> None:
        with storage_errors(self.path, "append", "its end is torn"):
            write_whole(self.fd, frame)


@breaks("CRASH-8")
class BuriesATornRecord(Machine):
    """What a full disk left of a record stays; later records come after it and are lost."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LeavesItTornStore(directory))


class OSErrorStore(JournalStore):
    def append(self, frame: bytes) -> None:
        end = os.fstat(self.fd).st_size
        try:
            write_whole(self.fd, frame)
        except OSError:
            os.ftruncate(self.fd, end)
            raise


@breaks("CRASH-8")
class LetsOSErrorsThrough(Machine):
    """A full disk is an OSError, no StorageError."""

    def __init__(self, directory: Path) -> None:
        super().__init__(OSErrorStore(directory))


@breaks("CRASH-8")
class DropsWhatAFlushCouldNotWrite(FlushesWhenPoisoned):
    """A flush that fails forgets what it had to write; the next one has nothing to do."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LazyStore(directory))


class EmptyIfUnreadableStore(FileStore):
    def open(self) -> None:
        try:
            super().open()
        except StorageError:
            self._ram.open()

    def write(self, batch: WriteBatch) -> None:
        if self._log is None:
            self._ram.write(batch)
        else:
            super().write(batch)

    def flush(self) -> None:
        if self._log is not None:
            super().flush()


@breaks("CRASH-8")
class BeginsEmptyOnAReadOnlyDirectory(Machine):
    """A directory that cannot be opened for writing is taken for an empty one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(EmptyIfUnreadableStore(directory))
