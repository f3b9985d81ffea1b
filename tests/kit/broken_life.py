"""Machines broken in construction, start and stop (LIFE-1 to LIFE-5)."""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks
from buffered_store import BufferedStore

from dengine_sm.errors import NotRunningError, StorageError, StorageLockedError
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.kv.ram import LayeredMap
from dengine_sm.model import Durability

TRANSIENT = Durability.TRANSIENT


# LIFE-1


@breaks("LIFE-1")
class MakesItsDirectoryAtOnce(SoundFileMachine):
    """Makes its directory, and the lock's file in it, in the constructor."""

    def __init__(self, directory):
        directory.mkdir(exist_ok=True)
        (directory / "LOCK").touch()
        super().__init__(directory)


@breaks("LIFE-1")
class OpensItsDirectoryAtOnce(SoundFileMachine):
    """Holds a descriptor of its directory from construction on."""

    def __init__(self, directory):
        self.fd = -1
        with suppress(FileNotFoundError):
            self.fd = os.open(directory, os.O_RDONLY)
        super().__init__(directory)

    def __del__(self):
        if self.fd >= 0:
            os.close(self.fd)


@breaks("LIFE-1", durability=TRANSIENT)
class BeginsItsThreadAtOnce(SoundMemoryMachine):
    """Begins a thread in the constructor."""

    def __init__(self, directory):
        super().__init__(directory)
        self.gone = threading.Event()
        threading.Thread(target=self.gone.wait, daemon=True).start()

    def __del__(self):
        self.gone.set()


@breaks("LIFE-1", durability=TRANSIENT)
class RunsBeforeItIsStarted(SoundMemoryMachine):
    """Runs as soon as it is constructed."""

    def __init__(self, directory):
        super().__init__(directory)
        self.start()


@breaks("LIFE-1")
class NeedsItsDirectory(SoundFileMachine):
    """Leaves it to others to make its directory."""

    def start(self):
        if not self._store.directory.is_dir():
            raise StorageError("there is no such directory")
        super().start()


@breaks("LIFE-1")
class TidiesUpWhenConstructed(SoundFileMachine):
    """Removes the manifest's temporary file, or writes one, in the constructor."""

    def __init__(self, directory):
        super().__init__(directory)
        if (directory / "MANIFEST").exists():
            (directory / "MANIFEST.tmp").touch()


# LIFE-2


@breaks("LIFE-2", durability=TRANSIENT)
class StartsAfreshWhileRunning(SoundMemoryMachine):
    """Opens its store once more when it is started while running."""

    def start(self):
        if self.is_running():
            super().stop()
        super().start()


@breaks("LIFE-2", durability=TRANSIENT)
class StopsOnlyOnce(SoundMemoryMachine):
    """Raises when it is stopped a second time."""

    def stop(self):
        if not self.is_running():
            raise NotRunningError("stopped already")
        super().stop()


@breaks("LIFE-2", durability=TRANSIENT)
class StartsFiveTimes(SoundMemoryMachine):
    """Has a pool that does not outlive its fifth restart."""

    starts = 0

    def start(self):
        if not self.is_running():
            self.starts += 1
            if self.starts > 5:
                raise RuntimeError("cannot schedule new futures after shutdown")
        super().start()


@breaks("LIFE-2")
class GivesUpAfterAFailedStart(SoundFileMachine):
    """Never starts again once the directory was locked."""

    is_given_up = False

    def start(self):
        if self.is_given_up:
            raise StorageError("the lock could not be taken")
        try:
            super().start()
        except StorageLockedError:
            self.is_given_up = True
            raise


@breaks("LIFE-2")
class RunsAfterAFailedStart(SoundFileMachine):
    """Counts itself as running before it has the lock."""

    def start(self):
        try:
            super().start()
        except StorageLockedError:
            self._running = True
            raise


# LIFE-3


@breaks("LIFE-3", durability=TRANSIENT)
class FindsNothingWhileStopped(SoundMemoryMachine):
    """Returns None for every key while stopped."""

    def get(self, key):
        return super().get(key) if self.is_running() else None


@breaks("LIFE-3", durability=TRANSIENT)
class KnowsItsPlaceWhileStopped(SoundMemoryMachine):
    """Still answers last_applied after stop."""

    def last_applied(self):
        if self.is_running():
            self.place = super().last_applied()
        elif not hasattr(self, "place"):
            raise NotRunningError("never started")
        return self.place


@breaks("LIFE-3", durability=TRANSIENT)
class NotesMetadataWhileStopped(SoundMemoryMachine):
    """Takes snapshot metadata while stopped."""

    def update_last_snapshot_metadata(self, snapshot_metadata):
        if self.is_running():
            super().update_last_snapshot_metadata(snapshot_metadata)


@breaks("LIFE-3", durability=TRANSIENT)
class InstallsWhileStopped(SoundMemoryMachine):
    """Looks at the snapshot and returns, while stopped."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        if self.is_running():
            await super().apply_snapshot_from_file(metadata, snapshot_path)


@breaks("LIFE-3", durability=TRANSIENT)
class CrashesWhileStopped(SoundMemoryMachine):
    """Uses its engine's handle when it saves after stop: the process dies."""

    def save_hard_state(self):
        # In a process of the kit's own only: those lead their session.
        if not self.is_running() and os.getsid(0) == os.getpid():
            ctypes.string_at(0)
        super().save_hard_state()


@breaks("LIFE-3", durability=TRANSIENT)
class BreaksOffReadsWhenItStops(SoundMemoryMachine):
    """A read under way while it stops finds a cursor that is closed."""

    is_closing = False

    def len(self):
        if self.is_closing and self.is_running():
            raise ValueError("cursor is closed")
        return super().len()

    def start(self):
        self.is_closing = False
        super().start()

    def stop(self):
        self.is_closing = True
        let_others_run(self)
        super().stop()


class EmptiedStore(RamStore):
    """Drops its rows before it is closed."""

    def close(self):
        if self._data is not None:
            self.swap(LayeredMap(), LayeredMap())
            let_others_run(self)
        super().close()


@breaks("LIFE-3", durability=TRANSIENT)
class IsEmptyWhileItStops(KeyValueStateMachine):
    """Frees its rows while reads are still answered."""

    def __init__(self, _directory):
        super().__init__(EmptiedStore(), limits=LIMITS)


def let_others_run(_machine):
    """Give other threads some turns."""
    turns = threading.Event()
    turns.wait(0.01)


# LIFE-4


class UnflushedLostStore(BufferedStore):
    """Closes without logging what was not flushed."""

    def close(self):
        self.pending.clear()
        super().close()


@breaks("LIFE-4")
class DropsWhatIsUnflushedOnStop(KeyValueStateMachine):
    """Loses on stop what was applied since the last flush."""

    def __init__(self, directory):
        super().__init__(UnflushedLostStore(directory), limits=LIMITS)


@breaks("LIFE-4")
class DropsUnsavedMetadataOnStop(SoundFileMachine):
    """Forgets on stop which snapshot is the newest, unless that was saved."""

    def stop(self):
        self._snapshot_saved = True
        super().stop()


@breaks("LIFE-4")
class KeepsTheFirstMetadataOverARestart(SoundFileMachine):
    """Writes on stop the metadata that it had when it was started, if any."""

    found = None

    def start(self):
        is_new = not self.is_running()
        super().start()
        if is_new:
            self.found = self._snapshot

    def stop(self):
        if self.is_running() and self.found is not None:
            self._snapshot = self.found
        super().stop()


@breaks("LIFE-4")
class StartsAnOldObjectWhereItStopped(SoundFileMachine):
    """An object that is started again takes the terms from before it was stopped."""

    kept = None

    def start(self):
        is_new = not self.is_running()
        super().start()
        if is_new and self.kept is not None:
            self._terms = self.kept

    def stop(self):
        if self.is_running() and self.kept is None:
            self.kept = self._terms
        super().stop()


# LIFE-5


class SavedAtCloseStore(BufferedStore):
    """Logs nothing before it is closed."""

    def flush(self):
        self._open_log()


@breaks("LIFE-5")
class SavesWhenStopped(KeyValueStateMachine):
    """Writes to the disk when it is stopped, and only then."""

    def __init__(self, directory):
        super().__init__(SavedAtCloseStore(directory), limits=LIMITS)


@breaks("LIFE-5")
class CutsItsLogWhenCollected(SoundFileMachine):
    """Sets its log files, when the object is collected, to the size they had when it stopped."""

    def __init__(self, directory):
        self.sizes = {}
        super().__init__(directory)

    def stop(self):
        was_running = self.is_running()
        super().stop()
        if was_running:
            files = (self._store.directory / "log").iterdir()
            self.sizes = {file: file.stat().st_size for file in files}

    def __del__(self):
        for file, size in self.sizes.items():
            with suppress(OSError):
                if file.stat().st_size > size:
                    os.truncate(file, size)


@breaks("LIFE-5")
class NeedsToHaveBeenStopped(SoundFileMachine):
    """Does not start on a directory that its last user did not stop on."""

    @property
    def mark(self):
        return self._store.directory / "MANIFEST.tmp"

    def start(self):
        if not self.is_running():
            super().start()
            if self.mark.exists():
                super().stop()
                raise StorageError("the directory was not closed; repair it first")
            self.mark.touch()

    def stop(self):
        if self.is_running():
            self.mark.unlink(missing_ok=True)
        super().stop()
