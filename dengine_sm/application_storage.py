"""The directory of an application machine: manifest, checkpoint, log of chunks.

`application.manifest` says which `checkpoint-<n>/` is valid (a snapshot directory) and
which frame of `log/` is the first that it does not contain. It is replaced last and at
once, so every crash finds a whole old state or a whole new one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.application_snapshot import PinnedState, load_snapshot, write_snapshot
from dengine_sm.application_state import Application, ApplicationFailure, MachineState
from dengine_sm.codec import decode, encode
from dengine_sm.errors import (
    CorruptionError,
    LogGapError,
    LogOrderError,
    SnapshotError,
    StorageError,
    StorageFormatError,
)
from dengine_sm.files import (
    DirectoryLock,
    FileSystem,
    FramedLog,
    default_file_system,
    make_directories,
    read_checked_file,
    sync_directory,
    write_checked_file,
)
from dengine_sm.files.filesystem import storage_errors
from dengine_sm.model import SnapshotMetadata
from dengine_sm.snapshot import verify_snapshot

VERSION = 1
MANIFEST_NAME = "application.manifest"
LOCK_NAME = "LOCK"

_KIND = "dengine-sm application"


@attrs.frozen
class Manifest:
    """What the directory's state consists of."""

    is_complete: bool
    """False while the directory is being created and holds nothing yet."""
    next_sequence: int = 1
    """First frame of the log that the checkpoint does not contain."""
    place: Any = None
    """`MachineState.pack_place` of the checkpoint; None for the initial state."""
    checkpoint: str | None = None
    """Name of the checkpoint's directory."""
    checksum: bytes = b""
    """The checkpoint's."""
    serial: int = 0
    """Number of the newest checkpoint."""


class ApplicationStorage:
    """Durable storage of one application; its owner serialises all but `sync`."""

    def __init__(
        self, directory: Path, format_name: str, fs: FileSystem | None = None, *, segment_bytes: int
    ) -> None:
        self.directory = directory
        self.format = format_name
        self._fs: FileSystem = fs or default_file_system()
        self._lock = DirectoryLock(directory, LOCK_NAME, fs)
        self._log = FramedLog(directory / "log", segment_bytes=segment_bytes, fs=fs)
        self._manifest = Manifest(is_complete=False)
        self._serial = 0

    @property
    def next_sequence(self) -> int:
        """Sequence of the next frame."""
        return self._log.next_sequence

    @property
    def log_bytes(self) -> int:
        """Size of the log on disk."""
        return self._log.size_bytes

    def open(self) -> None:
        """Lock, check and recover the directory.

        Raises:
            StorageLockedError: in use; nothing changed.
            StorageFormatError: another backend's, or newer; nothing changed.
            CorruptionError: damaged; nothing changed.
            StorageError: the disk refused.
        """
        with storage_errors(self.directory, "open the directory", "opening again is safe"):
            self._refuse_foreign()
            make_directories(self.directory, self._fs)
            self._lock.acquire()
            try:
                self._refuse_foreign()
                self._open_locked()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the log and unlock, without syncing; idempotent."""
        self._log.close()
        self._lock.release()

    def _refuse_foreign(self) -> None:
        """Raise for a directory that is not ours, before anything in it changes."""
        if not self.directory.exists():
            return
        if (self.directory / MANIFEST_NAME).exists():
            self._read_manifest()
            return
        ours_at_birth = {LOCK_NAME, f"{MANIFEST_NAME}.tmp"}
        others = sorted({path.name for path in self.directory.iterdir()} - ours_at_birth)
        if others:
            raise self._format_error(f"no '{MANIFEST_NAME}' but {', '.join(others[:5])}")

    def _format_error(self, observed: str) -> StorageFormatError:
        return StorageFormatError(
            f"directory '{self.directory}' has {observed}: expected an empty one, or one of "
            f"application format {self.format!r} in version {VERSION}; nothing was changed",
            path=self.directory,
            expected=self.format,
            observed=observed,
        )

    def _open_locked(self) -> None:
        exists = (self.directory / MANIFEST_NAME).exists()
        self._manifest = self._read_manifest() if exists else Manifest(is_complete=False)
        if not self._manifest.is_complete:
            self._write_manifest(Manifest(is_complete=False))
            self._log.open()
            self._write_manifest(Manifest(is_complete=True))
        else:
            # A killed process may have renamed the manifest in, and not synced its entry.
            self._fs.sync_directory(self.directory)
            self._log.open(must_exist=True)
        self._serial = self._manifest.serial
        if self._log.next_sequence < self._manifest.next_sequence:
            raise self._corrupt(
                self._log.directory,
                f"the log ends before frame {self._log.next_sequence}, "
                f"the checkpoint before frame {self._manifest.next_sequence}",
            )
        self._reap_checkpoints()

    def _read_manifest(self) -> Manifest:
        path = self.directory / MANIFEST_NAME
        payload = read_checked_file(path, self._fs)
        try:
            match decode(payload):
                case [kind, int(version), *_] if kind != _KIND or version != VERSION:
                    raise self._format_error(f"{kind!r} in version {version}")
                case [_, _, str(format_name), *_] if format_name != self.format:
                    raise self._format_error(f"application format {format_name!r}")
                case [_, _, _, *fields] if len(fields) == len(attrs.fields(Manifest)):
                    return Manifest(*fields)
        except ValueError as exc:
            raise self._corrupt(path, f"the manifest is damaged: {exc}") from exc
        raise self._corrupt(path, "the manifest has an unknown form")

    def _write_manifest(self, manifest: Manifest) -> None:
        fields = [_KIND, VERSION, self.format, *attrs.astuple(manifest, recurse=False)]
        write_checked_file(self.directory / MANIFEST_NAME, encode(fields), self._fs)
        self._manifest = manifest

    def _corrupt(self, path: Path, problem: str) -> CorruptionError:
        return CorruptionError(f"'{path}': {problem}; nothing was read", path=path, offset=0)

    def load(
        self, factory: Callable[[], Application], *, before: int | None = None
    ) -> MachineState:
        """Return the state of checkpoint and log, up to the end or before a frame.

        Raises:
            CorruptionError: the checkpoint or a frame is damaged.
            StorageError: the disk refused, or the application no longer takes a frame.
        """
        state = MachineState(factory())
        manifest = self._manifest
        if manifest.place is not None:
            state.unpack_place(manifest.place)
        if manifest.checkpoint is not None:
            path = self.directory / manifest.checkpoint
            expected = SnapshotMetadata(state.last_applied, manifest.checksum, self.format)
            try:
                verify_snapshot(path, expected, formats=(self.format,))
                load_snapshot(path, self.format, state.application)
            except (SnapshotError, ValueError) as exc:
                raise self._corrupt(path, f"the checkpoint is damaged: {exc}") from exc
        for record in self._log.read(manifest.next_sequence):
            if record.sequence == before:
                break
            self._replay(state, record.sequence, record.payload)
        return state

    def _replay(self, state: MachineState, sequence: int, frame: bytes) -> None:
        try:
            state.replay(frame)
        except ApplicationFailure as exc:
            raise ReplayError(
                f"directory '{self.directory}': the application raised on frame {sequence} of "
                f"the log: {exc}; nothing was changed",
                path=self.directory,
                sequence=sequence,
            ) from exc
        except (ValueError, LogGapError, LogOrderError) as exc:
            raise self._corrupt(
                self._log.directory, f"frame {sequence} does not follow: {exc}"
            ) from exc

    def append(self, frame: bytes) -> int:
        """Append a frame, not durably yet; return its sequence.

        Raises:
            StorageError: the disk refused; the log is as before.
        """
        return self._log.append(frame)

    def undo_append(self, sequence: int) -> None:
        """Take back the newest frame, durably."""
        self._log.undo_append(sequence)

    def sync(self) -> None:
        """Make every frame appended before the call durable; any thread."""
        self._log.sync()

    def switch(self, place: Any, state: PinnedState | None, next_sequence: int) -> None:
        """Make `state`, then the frames from `next_sequence` on, what the directory holds.

        Durable on return. None is the initial state.

        Raises:
            StorageError: the directory holds what it held, or already the new state.
        """
        self._log.sync()
        self._serial += 1
        name, checksum = None, b""
        if state is not None:
            name = f"checkpoint-{self._serial}"
            checksum = write_snapshot(self.directory / name, self.format, state, self._fs)
            sync_directory(self.directory, self._fs)
        self._write_manifest(Manifest(True, next_sequence, place, name, checksum, self._serial))
        self._reap_checkpoints()
        self._log.purge(next_sequence - 1)

    def _reap_checkpoints(self) -> None:
        """Remove checkpoints that the manifest does not name."""
        for path in self.directory.glob("checkpoint-*"):
            if path.name != self._manifest.checkpoint:
                shutil.rmtree(path, ignore_errors=True)


class ReplayError(StorageError):
    """The application raised on a frame that is in the log."""

    def __init__(self, message: str, *, path: Path, sequence: int) -> None:
        super().__init__(message, path=path)
        self.sequence = sequence
