"""Machines broken in whom a directory belongs to, and in what they leave behind (LIFE-6 to 8)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks

from dengine_sm.backends.file_store import FileStore
from dengine_sm.errors import (
    CorruptionError,
    NotRunningError,
    SnapshotCorruptionError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.files import DirectoryLock
from dengine_sm.kv import KeyValueStateMachine
from dengine_sm.model import Durability

TRANSIENT = Durability.TRANSIENT


class OnFile(KeyValueStateMachine):
    """A machine over a file store with another lock."""

    lock = DirectoryLock

    def __init__(self, directory):
        store = FileStore(directory, segment_bytes=8192)
        store._lock = type(self).lock(directory)
        super().__init__(store, limits=LIMITS)


# LIFE-6


class NoLock:
    """Takes nothing."""

    def __init__(self, directory):
        self.directory = directory

    def acquire(self):
        pass

    def release(self):
        pass


class LockOfThisProcess(NoLock):
    """Known to this process only."""

    taken: ClassVar[set[Path]] = set()

    def acquire(self):
        if self.directory in self.taken:
            raise StorageLockedError("another machine here has it", path=self.directory)
        self.taken.add(self.directory)

    def release(self):
        self.taken.discard(self.directory)


class LockFile(NoLock):
    """A file that is there while the directory is in use."""

    @property
    def path(self):
        return self.directory / "LOCK"

    def acquire(self):
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            raise StorageLockedError("LOCK is there", path=self.directory) from None

    def release(self):
        self.path.unlink(missing_ok=True)


class LockedForEver(DirectoryLock):
    """Is not given back."""

    def release(self):
        pass


class LockThatSignsFirst(DirectoryLock):
    """Writes down who holds it before it is taken."""

    def acquire(self):
        with suppress(FileNotFoundError), self.path.open("w") as file:
            file.write(f"requested by {os.getpid()}, {id(self)}\n")
        super().acquire()


class RecordLock(NoLock):
    """A record lock of POSIX: the process loses it when it closes any descriptor of the file."""

    taken: ClassVar[set[Path]] = set()
    fd = -1

    def acquire(self):
        fd = os.open(self.directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if self.directory in self.taken:
                raise BlockingIOError
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise StorageLockedError("LOCK is locked", path=self.directory) from None
        self.fd = fd
        self.taken.add(self.directory)

    def release(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.taken.discard(self.directory)


@breaks("LIFE-6")
class LocksNothing(OnFile):
    """Lets two machines run on one directory."""

    lock = NoLock


@breaks("LIFE-6")
class LocksInItsProcessOnly(OnFile):
    """Lets a machine of another process run on its directory."""

    lock = LockOfThisProcess


@breaks("LIFE-6")
class LeavesItsLockFileWhenKilled(OnFile):
    """Is locked out by the lock's file of a process that was killed."""

    lock = LockFile


@breaks("LIFE-6")
class KeepsItsLock(OnFile):
    """Keeps the directory locked after stop."""

    lock = LockedForEver


@breaks("LIFE-6")
class SignsALockItHasNot(OnFile):
    """Overwrites the lock's file of the machine that has the directory open."""

    lock = LockThatSignsFirst


@breaks("LIFE-6")
class LosesItsLockToTheRefused(OnFile):
    """Loses its lock when a second machine in its process is refused."""

    lock = RecordLock


@breaks("LIFE-6")
class UnlocksInAReset(SoundFileMachine):
    """Gives the lock up when it is reset."""

    async def reset(self):
        await super().reset()
        self._store._lock.release()


@breaks("LIFE-6")
class CallsALockAStorageError(SoundFileMachine):
    """Says only that the disk refused when the directory is locked."""

    def start(self):
        try:
            super().start()
        except StorageLockedError as exc:
            raise StorageError(str(exc)) from None


# LIFE-7


class GreedyStore(FileStore):
    """Takes any directory."""

    def _refuse_foreign_directory(self):
        pass


class LockingStore(FileStore):
    """Locks a directory before it looks at it."""

    def _refuse_foreign_directory(self):
        self.directory.mkdir(exist_ok=True)
        self._lock.acquire()
        try:
            super()._refuse_foreign_directory()
        except BaseException:
            self._lock.release()
            raise


class TidyStore(FileStore):
    """Puts what it does not know aside."""

    def _refuse_foreign_directory(self):
        try:
            super()._refuse_foreign_directory()
        except StorageFormatError:
            aside = Path(tempfile.mkdtemp(dir=self.directory.parent))
            for path in self.directory.iterdir():
                path.rename(aside / path.name)


class PickyStore(FileStore):
    """Knows one engine whose files it must not touch."""

    def _refuse_foreign_directory(self):
        if not {"CURRENT", "data.mdb"}.isdisjoint(os.listdir(self.directory)):
            super()._refuse_foreign_directory()


@breaks("LIFE-7")
class TakesForeignDirectories(KeyValueStateMachine):
    """Begins an empty state beside the files of another backend."""

    def __init__(self, directory):
        super().__init__(GreedyStore(directory), limits=LIMITS)


@breaks("LIFE-7")
class LocksForeignDirectories(KeyValueStateMachine):
    """Leaves its lock's file in the directory of another backend."""

    def __init__(self, directory):
        super().__init__(LockingStore(directory), limits=LIMITS)


@breaks("LIFE-7")
class PutsForeignFilesAside(KeyValueStateMachine):
    """Moves the files of another backend out of its way."""

    def __init__(self, directory):
        super().__init__(TidyStore(directory), limits=LIMITS)


@breaks("LIFE-7")
class KnowsTwoForeignersOnly(KeyValueStateMachine):
    """Refuses the directories of engines that its author had heard of."""

    def __init__(self, directory):
        super().__init__(PickyStore(directory), limits=LIMITS)


@breaks("LIFE-7")
class CallsForeignDirectoriesDamaged(SoundFileMachine):
    """Says of another backend's directory that it is damaged."""

    def start(self):
        try:
            super().start()
        except StorageFormatError as exc:
            raise CorruptionError(str(exc), path=exc.path, offset=0) from None


# LIFE-8


@breaks("LIFE-8")
class LeaksADescriptorWhenLockedOut(SoundFileMachine):
    """Leaves a descriptor open when it does not start."""

    def start(self):
        fd = os.open("/dev/null", os.O_RDONLY)
        super().start()
        os.close(fd)


@breaks("LIFE-8", durability=TRANSIENT)
class LeaksAThread(SoundMemoryMachine):
    """Begins a thread in start that nobody ends."""

    def start(self):
        if not self.is_running():
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        super().start()


@breaks("LIFE-8", durability=TRANSIENT)
class LeavesItsChildrenAlone(SoundMemoryMachine):
    """Starts a process with each reset and never waits for it."""

    async def reset(self):
        os.posix_spawn("/bin/true", ["true"], {})
        await super().reset()


@breaks("LIFE-8", durability=TRANSIENT)
class LeavesTemporaryFiles(SoundMemoryMachine):
    """Unpacks each snapshot into a temporary directory, which stays."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        tempfile.mkdtemp(prefix="unpacked-")
        await super().apply_snapshot_from_file(metadata, snapshot_path)


@breaks("LIFE-8", durability=TRANSIENT)
class LeaksWhenASnapshotIsCancelled(SoundMemoryMachine):
    """Does not close what it wrote to when a snapshot is cancelled."""

    async def generate_snapshot_data(self, new_snapshot_dir, last_included):
        fd = os.open("/dev/null", os.O_RDONLY)
        try:
            checksum = await super().generate_snapshot_data(new_snapshot_dir, last_included)
        except asyncio.CancelledError:
            raise
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return checksum


@breaks("LIFE-8", durability=TRANSIENT)
class LeaksADamagedSnapshot(SoundMemoryMachine):
    """Keeps the files of a snapshot open when that turns out to be damaged."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        try:
            await super().apply_snapshot_from_file(metadata, snapshot_path)
        except SnapshotCorruptionError:
            os.open(snapshot_path, os.O_RDONLY)
            raise


@breaks("LIFE-8")
class LeavesFilesBesideItsDirectory(SoundFileMachine):
    """Writes a report beside its directory each time it is stopped."""

    def stop(self):
        if self.is_running():
            with suppress(NotRunningError):
                tempfile.mkstemp(prefix="report-", dir=self._store.directory.parent)
        super().stop()


@breaks("LIFE-8")
class LeavesTemporaryFilesInside(SoundFileMachine):
    """Leaves the temporary files of its flushes in its directory."""

    def flush(self):
        super().flush()
        fd, _ = tempfile.mkstemp(suffix=".tmp", dir=self._store.directory)
        os.close(fd)
