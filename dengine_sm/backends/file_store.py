"""A `KeyValueStore` with its state in memory and every write batch in a framed log.

On disk: `LOCK`, `MANIFEST` (which checkpoint is in force, and where in the log to go on
from it), `log/` (one record per write batch), `checkpoint-N/` (a framed log that holds a
whole state). A checkpoint takes over by the atomic replacement of `MANIFEST`; so does an
installed snapshot.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.codec import decode_prefix, encode
from dengine_sm.errors import CorruptionError, NotRunningError, StorageError, StorageFormatError
from dengine_sm.files import (
    DirectoryLock,
    FileSystem,
    FramedLog,
    default_file_system,
    make_directories,
    names_in,
    read_checked_file,
    sync_directory,
    write_checked_file,
)
from dengine_sm.kv.ram import LayeredMap, RamStore, RamView
from dengine_sm.kv.store import ReadView, WriteBatch

FORMAT = "dengine-sm-file"
VERSION = 1
MANIFEST = "MANIFEST"
LOCK = "LOCK"
LOG = "log"
CHECKPOINT = "checkpoint-"
_BLOCK_ENTRIES = 512
_SYNC_BEHIND_BYTES = 8 << 20
"""Unsynced bytes that start a sync in the background, so that closing a full log file
never has more than that to sync while an apply waits."""

logger = logging.getLogger("dengine_sm.backends.file")


@attrs.frozen
class _Manifest:
    ready: bool
    """False only while a new directory is being laid out."""
    checkpoint: int
    """Number of the checkpoint in force; 0 for none."""
    log_start: int
    """First log record to replay on top of it."""

    def encode(self) -> bytes:
        return encode([FORMAT, VERSION, int(self.ready), self.checkpoint, self.log_start])


class FileStore:
    """See the module's docstring; the Protocol is `KeyValueStore`.

    Args:
        directory: owned by this store; made by `open`.
        sync_every_write: durable when `write` returns, not only after `flush`.
        segment_bytes: size of a log file.
        checkpoint_bytes: bytes logged that make a checkpoint due.
        fs: the file system to write through.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sync_every_write: bool = False,
        segment_bytes: int = 64 << 20,
        checkpoint_bytes: int = 128 << 20,
        fs: FileSystem | None = None,
    ) -> None:
        self.directory = directory
        self.writes_block = sync_every_write
        self._segment_bytes = segment_bytes
        self._checkpoint_bytes = checkpoint_bytes
        self._fs = fs or default_file_system()
        self._lock = DirectoryLock(directory, LOCK, self._fs)
        self._ram = RamStore()
        # Reads go straight to memory: one call less on the hottest path.
        self.get = self._ram.get
        self.get_multi = self._ram.get_multi
        self.scan = self._ram.scan
        self.count = self._ram.count
        self.get_internal = self._ram.get_internal
        self.scan_internal = self._ram.scan_internal
        self._log: FramedLog | None = None
        self._manifest = _Manifest(False, 0, 1)
        self._logged_bytes = self._unsynced_bytes = 0
        self._syncing: threading.Thread | None = None
        self._checkpointing: threading.Thread | None = None
        self._stop_checkpoint = threading.Event()
        self._broken: str | None = None

    # Opening

    def open(self) -> None:
        """Lock the directory and recover; a no-op while open."""
        if self._log is not None:
            return
        self._refuse_foreign_directory()
        make_directories(self.directory, self._fs)
        self._lock.acquire()
        try:
            self._recover()
        except BaseException:
            self._release()
            raise

    def _refuse_foreign_directory(self) -> None:
        """Refuse before the first change: not even a lock file is left behind (LIFE-7)."""
        names = names_in(self.directory)
        if MANIFEST in names:
            self._read_manifest()
            return
        found = names - {LOCK, f"{MANIFEST}.tmp"}
        foreign = {name for name in found if name != LOG and not name.startswith(CHECKPOINT)}
        if found and not foreign:
            raise CorruptionError(
                f"data directory {str(self.directory)!r} has data but no {MANIFEST}; "
                "nothing was changed",
                path=self.directory / MANIFEST,
                offset=0,
            )
        if foreign:
            some = ", ".join(repr(name) for name in sorted(foreign)[:3])
            raise StorageFormatError(
                f"data directory {str(self.directory)!r} is not one of the backend 'file': it "
                f"holds {some}; expected an empty directory or a {MANIFEST}; nothing changed",
                path=self.directory,
                expected=FORMAT,
                observed=some,
            )

    def _read_manifest(self) -> _Manifest:
        path = self.directory / MANIFEST
        payload = read_checked_file(path, self._fs)
        match decode_prefix(payload):
            case [str(name), int(version), *fields] if name == FORMAT and version == VERSION:
                return _Manifest(bool(fields[0]), fields[1], fields[2])
            case [str(name), int(version), *_]:
                raise StorageFormatError(
                    f"{str(path)!r} is of format {name!r} version {version}: expected "
                    f"{FORMAT!r} version {VERSION} at most; nothing changed",
                    path=path,
                    expected=f"{FORMAT} {VERSION}",
                    observed=f"{name} {version}",
                )
        raise StorageFormatError(
            f"{str(path)!r} is no manifest of the backend 'file'; nothing changed",
            path=path,
            expected=FORMAT,
        )

    def _write_manifest(self, manifest: _Manifest) -> None:
        write_checked_file(self.directory / MANIFEST, manifest.encode(), self._fs)
        self._manifest = manifest

    def _switch_to(self, manifest: _Manifest) -> None:
        """Put another manifest in force; if that fails, the old one stays in force."""
        old = self._manifest
        try:
            self._write_manifest(manifest)
        except StorageError:
            self._switch_back_to(old)
            raise

    def _switch_back_to(self, old: _Manifest) -> None:
        """Undo a switch that failed: the new file may be in place, only not durably."""
        try:
            if self._read_manifest() != old:
                self._write_manifest(old)
        except StorageError as exc:
            self._broken = str(exc)

    def _recover(self) -> None:
        if (self.directory / MANIFEST).exists():
            self._manifest = self._read_manifest()
            # A killed process may have renamed it in, and not synced its entry.
            sync_directory(self.directory, self._fs)
        else:
            self._write_manifest(_Manifest(False, 0, 1))
        log = FramedLog(self.directory / LOG, segment_bytes=self._segment_bytes, fs=self._fs)
        report = log.open(1, must_exist=self._manifest.ready)
        if report.truncated_bytes:
            logger.warning(
                "cut %d torn bytes off %s: the last write before the crash was not finished",
                report.truncated_bytes,
                report.truncated_path,
            )
        try:
            data, internal = self._load_state(log)
        except BaseException:
            log.close()
            raise
        self._remove_other_checkpoints()
        if not self._manifest.ready:
            self._write_manifest(_Manifest(True, 0, 1))
        self._ram.open()
        self._ram.swap(data, internal)
        self._logged_bytes = log.size_bytes
        self._broken = None
        self._log = log

    def _load_state(self, log: FramedLog) -> tuple[LayeredMap, LayeredMap]:
        manifest = self._manifest
        if not log.first_sequence <= manifest.log_start <= log.next_sequence:
            raise CorruptionError(
                f"log {str(log.directory)!r} holds records {log.first_sequence} to "
                f"{log.last_sequence}: expected record {manifest.log_start}, where the "
                "checkpoint ends; nothing was changed",
                path=log.directory,
                offset=0,
            )
        data, internal = LayeredMap(), LayeredMap()
        if manifest.checkpoint:
            for batch in _read_checkpoint(self._checkpoint_path(manifest.checkpoint), self._fs):
                data.write(batch.data)
                internal.write(batch.internal)
        for record in log.read(manifest.log_start):
            batch = _decode_batch(record.payload, log.directory)
            data.write(batch.data)
            internal.write(batch.internal)
        return data, internal

    def close(self) -> None:
        """Sync, release everything; idempotent."""
        log = self._log
        if log is None:
            return
        self._join_checkpoint()
        if self._syncing is not None:
            self._syncing.join()
            self._syncing = None
        try:
            # After a failed write the caller has its error, and a broken log cannot sync.
            if log.synced_sequence < log.last_sequence:
                log.sync()
        finally:
            self._release()

    def _release(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()
        self._ram.close()
        self._lock.release()

    # Writing

    def _open_log(self) -> FramedLog:
        if self._log is None:
            raise NotRunningError("the file store is closed; nothing was written")
        if self._broken is not None:
            # What is written now might be replayed on top of another checkpoint.
            raise StorageError(
                f"{str(self.directory)!r}: which {MANIFEST} is in force is unknown "
                f"({self._broken}); expected to be closed and opened again; nothing was written",
                path=self.directory,
            )
        return self._log

    def write(self, batch: WriteBatch) -> None:
        """Log a batch, then apply it in memory."""
        log = self._open_log()
        record = _encode_batch(batch)
        sequence = log.append(record)
        if self.writes_block:
            try:
                log.sync()
            except StorageError:
                # What was refused must not come back after a restart (APPLY-3).
                with contextlib.suppress(StorageError):
                    log.undo_append(sequence)
                raise
        self._ram.write(batch)
        self._logged_bytes += len(record)
        self._unsynced_bytes += len(record)
        if self._unsynced_bytes >= _SYNC_BEHIND_BYTES and not self.writes_block:
            self._sync_behind(log)
        if self._logged_bytes >= self._checkpoint_bytes:
            self._begin_checkpoint(log)

    def _sync_behind(self, log: FramedLog) -> None:
        if self._syncing is not None and self._syncing.is_alive():
            return
        self._unsynced_bytes = 0

        def sync() -> None:
            try:
                log.sync()
            except StorageError as exc:
                # The log is broken now; the next write says so to its caller.
                logger.warning("background sync failed: %s", exc)

        self._syncing = threading.Thread(target=sync, name="dengine-sm-sync")
        self._syncing.start()

    def flush(self) -> None:
        """Sync the log."""
        log = self._open_log()
        try:
            log.sync()
        except StorageError:
            # Closed by a stop() in another thread, which synced: not a failure of the disk.
            if self._log is not log:
                raise NotRunningError("the file store is closed; nothing was flushed") from None
            raise

    def view(self) -> ReadView:
        """Pin the state in memory."""
        return self._ram.view()

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        """Write the new state as a checkpoint, switch to it, then forget the old one."""
        log = self._open_log()
        self._join_checkpoint()
        log.sync()
        number = self._manifest.checkpoint + 1
        data, internal = LayeredMap(), LayeredMap()

        def tee() -> Iterator[WriteBatch]:
            for batch in batches:
                data.write(batch.data)
                internal.write(batch.internal)
                yield batch

        self._write_checkpoint(number, tee())
        self._switch_to(_Manifest(True, number, log.next_sequence))
        self._ram.swap(data, internal)
        self._logged_bytes = 0
        self._drop_what_is_covered(log)

    # Checkpoints

    def _checkpoint_path(self, number: int) -> Path:
        return self.directory / f"{CHECKPOINT}{number:08d}"

    def _begin_checkpoint(self, log: FramedLog) -> None:
        if self._checkpointing is not None and self._checkpointing.is_alive():
            return
        self._logged_bytes = 0
        view = self._ram.view()
        self._stop_checkpoint.clear()
        self._checkpointing = threading.Thread(
            target=self._checkpoint,
            args=(log, view, log.next_sequence),
            name="dengine-sm-checkpoint",
        )
        self._checkpointing.start()

    def _checkpoint(self, log: FramedLog, view: RamView, log_start: int) -> None:
        number = self._manifest.checkpoint + 1
        try:
            self._write_checkpoint(number, _view_batches(view))
            log.sync()
            self._switch_to(_Manifest(True, number, log_start))
            self._drop_what_is_covered(log)
        except _CheckpointStopped:
            shutil.rmtree(self._checkpoint_path(number), ignore_errors=True)
        except StorageError as exc:
            # Nothing is lost: the log still holds everything, and the next one is due later.
            logger.warning("checkpoint %d failed, the log is kept: %s", number, exc)
        finally:
            view.close()

    def _join_checkpoint(self) -> None:
        if self._checkpointing is not None:
            self._stop_checkpoint.set()
            self._checkpointing.join()
            self._checkpointing = None
            self._stop_checkpoint.clear()

    def _write_checkpoint(self, number: int, batches: Iterable[WriteBatch]) -> None:
        path = self._checkpoint_path(number)
        shutil.rmtree(path, ignore_errors=True)
        log = FramedLog(path, segment_bytes=1 << 40, fs=self._fs)
        log.open(1)
        try:
            count = unsynced = 0
            for batch in batches:
                if self._stop_checkpoint.is_set():
                    raise _CheckpointStopped
                record = _encode_batch(batch)
                log.append(record)
                count += 1
                unsynced += len(record)
                if unsynced >= _SYNC_BEHIND_BYTES:
                    # In portions: one sync of it all would make the log's syncs wait.
                    log.sync()
                    unsynced = 0
            log.append(encode([count]))
            log.sync()
        except BaseException:
            log.close()
            shutil.rmtree(path, ignore_errors=True)
            raise
        log.close()
        sync_directory(self.directory, self._fs)

    def _drop_what_is_covered(self, log: FramedLog) -> None:
        self._remove_other_checkpoints()
        try:
            log.purge(self._manifest.log_start - 1)
        except StorageError as exc:
            logger.warning("the log could not be purged, the next checkpoint tries again: %s", exc)

    def _remove_other_checkpoints(self) -> None:
        current = self._checkpoint_path(self._manifest.checkpoint)
        for path in self.directory.glob(f"{CHECKPOINT}*"):
            if path != current:
                shutil.rmtree(path, ignore_errors=True)


class _CheckpointStopped(Exception):  # noqa: N818 - control flow, not an error
    """The store is closing or being replaced."""


def _encode_batch(batch: WriteBatch) -> bytes:
    data, internal = batch.data, batch.internal
    return encode([list(data), list(data.values()), list(internal), list(internal.values())])


def _decode_batch(payload: bytes, path: Path) -> WriteBatch:
    try:
        keys, values, internal_keys, internal_values = decode_prefix(payload)
        return WriteBatch(
            dict(zip(keys, values, strict=True)),
            dict(zip(internal_keys, internal_values, strict=True)),
        )
    except Exception as exc:
        raise CorruptionError(
            f"{str(path)!r} holds a record that is no write batch: {exc}; nothing was changed",
            path=path,
            offset=0,
        ) from exc


def _read_checkpoint(path: Path, fs: FileSystem | None) -> Iterator[WriteBatch]:
    """Yield the batches of a checkpoint.

    Raises:
        CorruptionError: it is missing, damaged or shorter than it was.
    """
    log = FramedLog(path, fs=fs)
    log.open(1, must_exist=True)
    try:
        last = log.last_sequence
        count: Any = None
        for record in log.read(1):
            if record.sequence < last:
                yield _decode_batch(record.payload, path)
            else:
                count = decode_prefix(record.payload)
        if count != [last - 1]:
            raise CorruptionError(
                f"checkpoint {str(path)!r} ends after {last} records without its trailer: its end "
                "is lost; expected a whole state; none was loaded",
                path=path,
                offset=log.size_bytes,
            )
    finally:
        log.close()


def _view_batches(view: RamView) -> Iterator[WriteBatch]:
    for data in view.blocks(_BLOCK_ENTRIES):
        yield WriteBatch(data)
    for internal in view.internal_blocks(_BLOCK_ENTRIES):
        yield WriteBatch(internal=internal)
