"""Machines broken in installing a snapshot (SNAP-4 to SNAP-6)."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import attrs
from broken_base import SoundFileMachine, SoundMemoryMachine, breaks
from broken_snapshot import TRANSIENT

from dengine_sm.errors import SnapshotCorruptionError, SnapshotError, StaleSnapshotError
from dengine_sm.kv import WriteBatch
from dengine_sm.kv.execution import AFTER_DEADLINE_OF, AFTER_DUE_AT, DEADLINE_OF, DUE_AT
from dengine_sm.kv.rows import SNAPSHOT, installed_batches
from dengine_sm.model import LogId
from dengine_sm.snapshot import (
    read_manifest,
    read_portable,
)
from dengine_sm.snapshot.portable import ENTRIES_NAME

# SNAP-4


def trusted(metadata, directory):
    """Return the metadata that a directory would be verified with, whatever it holds."""
    manifest, checksum = read_manifest(directory)
    return attrs.evolve(
        metadata,
        checksum=checksum,
        format=manifest.format,
        last_included=manifest.last_included,
    )


@breaks("SNAP-4", **TRANSIENT)
class InstallsWithoutVerifying(SoundMemoryMachine):
    """Takes a snapshot for what it says it is."""

    def _install(self, metadata, directory):
        self._replace(installed_batches(metadata, read_portable(directory)))


@breaks("SNAP-4", **TRANSIENT)
class ManifestNotCovered(SoundMemoryMachine):
    """Verifies the files that the manifest lists, and not the manifest."""

    def _install(self, metadata, directory):
        super()._install(trusted(metadata, directory), directory)
        self.update_last_snapshot_metadata(metadata)


@breaks("SNAP-4", **TRANSIENT)
class ExtraFilesOverlooked(SoundMemoryMachine):
    """Looks at the files that it knows, not at what else there is."""

    def _install(self, metadata, directory):
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("manifest.cbor", ENTRIES_NAME):
                with suppress(FileNotFoundError, NotADirectoryError):
                    shutil.copy(directory / name, scratch)
            super()._install(metadata, Path(scratch))


@breaks("SNAP-4", **TRANSIENT)
class TruncatedSnapshotAccepted(SoundMemoryMachine):
    """Reads as far as it gets."""

    def _install(self, metadata, directory):
        snapshot = read_portable(directory)
        blocks = self.readable(snapshot.blocks)
        self._replace(installed_batches(metadata, attrs.evolve(snapshot, blocks=blocks)))

    def readable(self, blocks):
        with suppress(SnapshotCorruptionError):
            yield from blocks


@breaks("SNAP-4", **TRANSIENT)
class InstallErrorsSwallowed(SoundMemoryMachine):
    """Goes on with the old state and says nothing."""

    def _install(self, metadata, directory):
        with suppress(SnapshotError):
            super()._install(metadata, directory)


@breaks("SNAP-4", **TRANSIENT)
class DamagedSnapshotEmptiesTheState(SoundMemoryMachine):
    """Makes room first and verifies afterwards."""

    def _install(self, metadata, directory):
        self._replace([])
        super()._install(metadata, directory)


@breaks("SNAP-4", **TRANSIENT)
class MetadataOfARefusedSnapshotStays(SoundMemoryMachine):
    """Publishes the metadata before it verifies."""

    def _install(self, metadata, directory):
        self.update_last_snapshot_metadata(metadata)
        super()._install(metadata, directory)


@breaks("SNAP-4")
class RefusedSnapshotStrikesAtTheRestart(SoundFileMachine):
    """Marks the directory for an install before it verifies, and begins afresh over the mark."""

    @property
    def mark(self):
        return self._store.directory / "LOCK.install"

    def _install(self, metadata, directory):
        self.mark.touch()
        super()._install(metadata, directory)
        self.mark.unlink()

    def start(self):
        super().start()
        if self.mark.exists():
            self._replace([])


@breaks("SNAP-4", **TRANSIENT)
class MissingFilesAreAnIOError(SoundMemoryMachine):
    """Lets the errors of open() through where a file is missing."""

    def _install(self, metadata, directory):
        for name in ("manifest.cbor", ENTRIES_NAME):
            (directory / name).open("rb").close()
        super()._install(metadata, directory)


# SNAP-5


class KeepsRows(SoundMemoryMachine):
    """Installs, and then brings back bookkeeping of its own."""

    def kept(self) -> dict[bytes, bytes | None]:
        raise NotImplementedError

    def _install(self, metadata, directory):
        kept = self.kept()
        super()._install(metadata, directory)
        self._store.write(WriteBatch(internal=kept))
        self._load_bookkeeping()


@breaks("SNAP-5", **TRANSIENT)
class InstallMerges(SoundMemoryMachine):
    """Adds the snapshot's entries to its own."""

    def _install(self, metadata, directory):
        own = dict(self._store.scan(b"", None))
        super()._install(metadata, directory)
        missing = {key: value for key, value in own.items() if self._store.get(key) is None}
        self._store.write(WriteBatch(missing))


@breaks("SNAP-5", **TRANSIENT)
class OwnMetadataStays(KeepsRows):
    """Keeps the metadata of its own newest snapshot, or none."""

    def kept(self):
        return {SNAPSHOT: self._store.get_internal(SNAPSHOT)}


@breaks("SNAP-5", **TRANSIENT)
class OwnTermsStay(SoundMemoryMachine):
    """Keeps its history of terms, and appends the snapshot's."""

    def _install(self, metadata, directory):
        terms = self._terms.pack()
        super()._install(metadata, directory)
        self._terms = self._terms.unpack([*terms, *self._terms.pack()])


@breaks("SNAP-5", **TRANSIENT)
class OwnDeadlinesStay(KeepsRows):
    """Keeps the deadlines of its own keys beside those of the snapshot."""

    def kept(self):
        rows = dict(self._store.scan_internal(DEADLINE_OF, AFTER_DEADLINE_OF))
        return rows | dict(self._store.scan_internal(DUE_AT, AFTER_DUE_AT))


@breaks("SNAP-5", **TRANSIENT)
class OwnClockStays(SoundMemoryMachine):
    """Keeps its clock where that is ahead of the snapshot's."""

    def _install(self, metadata, directory):
        clock_ms = self._clock_ms
        super()._install(metadata, directory)
        self._clock_ms = max(clock_ms, self._clock_ms)


@breaks("SNAP-5")
class InstallForgottenByRestart(SoundFileMachine):
    """Installs in memory, and leaves the disk for later."""

    def _replace(self, batches):
        self._store._ram.replace_all(batches)
        self._load_bookkeeping()


# SNAP-6


class OwnOrder(SoundMemoryMachine):
    """Decides in its own way which snapshots are too old."""

    def is_stale(self, last_included: LogId, applied: LogId) -> bool:
        raise NotImplementedError

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        self._require_running()
        if self.is_stale(metadata.last_included, self.last_applied()):
            raise StaleSnapshotError(f"older than {self.last_applied()}")
        await asyncio.to_thread(self._install, metadata, snapshot_path)


@breaks("SNAP-6", **TRANSIENT)
class StaleSnapshotInstalled(OwnOrder):
    """Installs whatever it is given."""

    def is_stale(self, last_included, applied):
        return False


@breaks("SNAP-6", **TRANSIENT)
class TermsComparedOnly(OwnOrder):
    """Takes a snapshot of the same term for new, whatever its index."""

    def is_stale(self, last_included, applied):
        return last_included.term < applied.term


@breaks("SNAP-6", **TRANSIENT)
class IndicesComparedOnly(OwnOrder):
    """Takes a higher index for newer, whatever its term."""

    def is_stale(self, last_included, applied):
        return last_included.index < applied.index


@breaks("SNAP-6", **TRANSIENT)
class EqualSnapshotRefused(OwnOrder):
    """Refuses a snapshot at exactly the applied id."""

    def is_stale(self, last_included, applied):
        return last_included <= applied


@breaks("SNAP-6", **TRANSIENT)
class StaleSnapshotPassedOver(SoundMemoryMachine):
    """Leaves an old snapshot alone and says nothing."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        with suppress(StaleSnapshotError):
            await super().apply_snapshot_from_file(metadata, snapshot_path)


@breaks("SNAP-6", **TRANSIENT)
class StaleSnapshotSetsTheMetadata(SoundMemoryMachine):
    """Refuses an old snapshot, and keeps its metadata."""

    async def apply_snapshot_from_file(self, metadata, snapshot_path):
        self.update_last_snapshot_metadata(metadata)
        await super().apply_snapshot_from_file(metadata, snapshot_path)
