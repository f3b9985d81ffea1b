"""Machines whose installs go wrong at a kill or afterwards (SNAP-7 to SNAP-10)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import attrs
from broken_base import SoundFileMachine, SoundMemoryMachine, breaks
from broken_snapshot import TRANSIENT, HandWritten

from dengine_sm.kv import WriteBatch
from dengine_sm.kv.execution import AFTER_DEADLINE_OF, DEADLINE_OF, DUE_AT
from dengine_sm.kv.rows import APPLIED, SNAPSHOT, TERMS, installed_batches
from dengine_sm.snapshot import (
    PORTABLE_FORMAT,
    read_portable,
    verify_snapshot,
)
from dengine_sm.snapshot.portable import ENTRIES_NAME

# SNAP-7


@breaks("SNAP-7")
class InstallsInTwoSteps(SoundFileMachine):
    """Empties the state, then writes the new one block by block."""

    def _install(self, metadata, directory):
        verify_snapshot(directory, metadata, formats=[PORTABLE_FORMAT])
        self._replace([])
        for batch in installed_batches(metadata, read_portable(directory)):
            self._store.write(batch)
            self._store.flush()
        self._load_bookkeeping()


@breaks("SNAP-7")
class InstallsTheAppliedIdLast(SoundFileMachine):
    """Replaces the data, and writes where in the log it belongs afterwards."""

    def _install(self, metadata, directory):
        verify_snapshot(directory, metadata, formats=[PORTABLE_FORMAT])
        *data, place = installed_batches(metadata, read_portable(directory))
        names = (APPLIED, TERMS, SNAPSHOT)
        former = WriteBatch(internal={name: self._store.get_internal(name) for name in names})
        self._store.replace_all([*data, former])
        self._store.flush()
        self._store.write(place)
        self._store.flush()
        self._load_bookkeeping()


@breaks("SNAP-7")
class InstallsTheMetadataLater(SoundFileMachine):
    """Leaves the metadata of the installed snapshot to save_hard_state."""

    def _install(self, metadata, directory):
        verify_snapshot(directory, metadata, formats=[PORTABLE_FORMAT])
        former = self._snapshot_row()
        batches = installed_batches(metadata, read_portable(directory))
        self._replace(WriteBatch(b.data, b.internal | former) for b in batches)
        self.update_last_snapshot_metadata(metadata)


# SNAP-8


@breaks("SNAP-8")
class ReadsTheSourceLater(SoundFileMachine):
    """Keeps the source's path, and reads the state from it at the next start."""

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        (self._store.directory / "source").write_bytes(str(directory).encode())

    def start(self):
        super().start()
        source = self._store.directory / "source"
        if source.exists():
            with Path(source.read_text()).joinpath(ENTRIES_NAME).open("rb") as stream:
                stream.read()


@breaks("SNAP-8", **TRANSIENT)
class MovesTheSource(SoundMemoryMachine):
    """Takes the files of the source for its own."""

    def _install(self, metadata, directory):
        with tempfile.TemporaryDirectory() as scratch:
            copy = shutil.copytree(directory, Path(scratch) / "copy")
            super()._install(metadata, copy)
        for path in directory.iterdir():
            path.unlink()


@breaks("SNAP-8", **TRANSIENT)
class LeavesALockInTheSource(SoundMemoryMachine):
    """Locks the source while it installs, and leaves the lock file there."""

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        (directory / "LOCK").touch()


@breaks("SNAP-8", **TRANSIENT)
class RewritesTheSource(SoundMemoryMachine):
    """Opens the source for writing, as an engine does with its own files."""

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        path = directory / ENTRIES_NAME
        content = path.read_bytes()
        path.write_bytes(content)


# SNAP-9


@breaks("SNAP-9", **TRANSIENT)
class DeadlinesLostInSnapshots(HandWritten):
    """Writes keys and values, and no deadlines."""

    def entries(self, view, timed_keys):
        return super().entries(view, 0)


@breaks("SNAP-9", **TRANSIENT)
class ClockLostInSnapshots(HandWritten):
    """Writes deadlines, and not the clock that they are measured by."""

    def clock_of(self, view):
        return 0, super().clock_of(view)[1]


@breaks("SNAP-9", **TRANSIENT)
class SessionsLostInSnapshots(HandWritten):
    """Writes keys, values and deadlines, and no sessions."""

    def sessions(self, view):
        return []


@breaks("SNAP-9", **TRANSIENT)
class DeadlinesLaterAfterInstall(SoundMemoryMachine):
    """Gives every key some time more when it installs."""

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        rows = {}
        for key, value in list(self._store.scan_internal(DEADLINE_OF, AFTER_DEADLINE_OF)):
            later = (int.from_bytes(value) + 5000).to_bytes(8)
            user_key = key[len(DEADLINE_OF) :]
            rows |= {key: later, DUE_AT + value + user_key: None, DUE_AT + later + user_key: b""}
        self._store.write(WriteBatch(internal=rows))
        self._load_bookkeeping()


@breaks("SNAP-9", **TRANSIENT)
class EmptyValuesLostInSnapshots(HandWritten):
    """Takes an empty value for none."""

    def entries(self, view, timed_keys):
        return (row for row in super().entries(view, timed_keys) if row[1])


@breaks("SNAP-9", **TRANSIENT)
class TailSkipsTheFirstEntryAfterAnInstall(SoundMemoryMachine):
    """Takes the first entry after an install for a part of the snapshot."""

    skip = False

    def _install(self, metadata, directory):
        super()._install(metadata, directory)
        self.skip = True

    async def apply_chunk(self, chunk):
        if self.skip and chunk:
            self.skip = False
            chunk = [attrs.evolve(chunk[0], data=b""), *chunk[1:]]
        return await super().apply_chunk(chunk)


# SNAP-10


@breaks("SNAP-10")
class MetadataOnlyInMemory(SoundFileMachine):
    """Writes the metadata when it is stopped, not before."""

    def save_hard_state(self):
        self.flush()


@breaks("SNAP-10")
class OnlyPersistWritesTheMetadata(SoundFileMachine):
    """Leaves what update_last_snapshot_metadata and generating set to a clean stop."""

    def persist_last_snapshot_metadata(self, snapshot_metadata):
        self.update_last_snapshot_metadata(snapshot_metadata)
        super().save_hard_state()

    def save_hard_state(self):
        self.flush()


@breaks("SNAP-10")
class FirstMetadataPersists(SoundFileMachine):
    """Writes the metadata of the first snapshot only."""

    def save_hard_state(self):
        if self._store.get_internal(SNAPSHOT) is None:
            super().save_hard_state()
        self.flush()
