"""Custom machines: an author writes apply, get, dump and load; the rest is here.

An `Application` is a plain object in memory. `ApplicationStateMachine` keeps it in step
with a write-ahead log of chunks and a checkpoint, and fulfils the contract around it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dengine_sm.application_snapshot import (
    PinnedState,
    check_installable,
    pin,
    read_snapshot,
    write_in_thread,
)
from dengine_sm.application_state import (
    Application,
    ApplicationFailure,
    MachineState,
    encode_chunk,
    encode_place,
)
from dengine_sm.application_storage import ApplicationStorage, ReplayError
from dengine_sm.bookkeeping import check_advance, check_chunk
from dengine_sm.errors import (
    ConcurrentApplyError,
    DEngineError,
    NotRunningError,
    SnapshotLabelError,
    StateMachinePoisonedError,
    StorageError,
)
from dengine_sm.files import FileSystem
from dengine_sm.model import (
    ApplyResult,
    Durability,
    Entry,
    LogId,
    Outcome,
    SnapshotMetadata,
)

__all__ = ["Application", "ApplicationStateMachine"]

CHECKPOINT_BYTES = 64 * 1024 * 1024

_logger = logging.getLogger(__name__)


class ApplicationStateMachine:
    """A state machine around an `Application`; keeps the state in memory.

    Two locks: `_writer` serialises whoever changes something, `_memory` is held while the
    state in memory changes or is read, never while the disk is waited for.
    """

    def __init__(
        self,
        application_factory: Callable[[], Application],
        data_dir: Path,
        *,
        format: str,
        durability: Durability = Durability.ON_FLUSH,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
        file_system: FileSystem | None = None,
    ) -> None:
        """Describe the machine; the directory is touched by `start` only.

        Args:
            application_factory: makes the application in its initial state.
            data_dir: belongs to this machine; created if absent.
            format: names the records that `dump` writes, such as `ledger/1`.
            durability: `ON_FLUSH` or `PER_APPLY`.
            checkpoint_bytes: log size at which a checkpoint is begun.
            file_system: for tests that break the disk.
        """
        if durability is Durability.TRANSIENT:
            raise ValueError("durability: expected ON_FLUSH or PER_APPLY, observed TRANSIENT")
        self._factory = application_factory
        self._format = format
        self._syncs_each = durability is Durability.PER_APPLY
        self._checkpoint_bytes = checkpoint_bytes
        self._storage = ApplicationStorage(
            data_dir, format, file_system, segment_bytes=min(checkpoint_bytes, CHECKPOINT_BYTES)
        )
        self._writer = threading.Lock()
        self._memory = threading.Lock()
        self._is_open = False
        self._state: MachineState | None = None
        self._poison: str | None = None
        self._place_is_ahead = False
        self._epoch = 0
        self._checkpointer: threading.Thread | None = None
        self._next_checkpoint_bytes = checkpoint_bytes

    # Life

    def start(self) -> None:
        """Open the directory, load the checkpoint, replay the log."""
        with self._writer:
            if self._is_open:
                return
            self._storage.open()
            try:
                state = self._recover()
            except BaseException:
                self._storage.close()
                raise
            self._poison, self._place_is_ahead = None, False
            self._next_checkpoint_bytes = self._storage.log_bytes + self._checkpoint_bytes
            with self._memory:
                self._epoch += 1
                self._state, self._is_open = state, True

    def _recover(self) -> MachineState:
        try:
            return self._storage.load(self._factory)
        except ReplayError as exc:
            # Killed between writing a frame and finding that the application cannot take
            # it: the chunk was not acknowledged, and it is the newest frame.
            if exc.sequence != self._storage.next_sequence - 1:
                raise
            _logger.warning("dropped the newest, unacknowledged chunk: %s", exc)
            state = self._storage.load(self._factory, before=exc.sequence)
            self._storage.switch(state.pack_place(), pin(state), exc.sequence + 1)
            return state

    def stop(self) -> None:
        """Make everything durable, release everything."""
        with self._writer:
            if not self._is_open:
                return
            self._join_checkpointer()
            try:
                if self._poison is None:
                    self._save_place()
                    self._storage.sync()
                else:
                    with suppress(StorageError):
                        self._storage.sync()
            finally:
                with self._memory:
                    self._state, self._is_open = None, False
                self._storage.close()

    def is_running(self) -> bool:
        """Tell whether the machine is started."""
        return self._is_open

    # Reads

    @contextmanager
    def _reading(self) -> Iterator[MachineState]:
        with self._memory:
            yield self._running_state()

    def _running_state(self) -> MachineState:
        state = self._state
        if self._is_open and state is None:
            raise StateMachinePoisonedError(
                f"machine of format {self._format!r} could not restore its state: "
                f"{self._poison}; expected stop() and start()"
            )
        if state is None:
            raise NotRunningError(
                f"machine of format {self._format!r} is stopped: expected start() first; "
                "nothing was read or changed"
            )
        return state

    def get(self, key: bytes) -> bytes | None:
        """Return what the application keeps under a key."""
        with self._reading() as state:
            return state.application.get(key)

    def query(self, request: bytes) -> bytes:
        """Answer a request in the application's own language.

        Raises:
            DEngineError: the application has no `query`.
        """
        with self._reading() as state:
            answer: Callable[[bytes], bytes] | None = getattr(state.application, "query", None)
            if answer is None:
                raise DEngineError(
                    f"application {type(state.application).__name__} has no query method; "
                    "nothing was read"
                )
            return answer(request)

    def len(self) -> int:
        """Return the number of entries in the application."""
        with self._reading() as state:
            return state.application.len()

    def is_empty(self) -> bool:
        """Tell whether `len()` is 0."""
        return self.len() == 0

    def last_applied(self) -> LogId:
        """Return the id of the last entry applied."""
        with self._reading() as state:
            return state.last_applied

    def entry_term(self, entry_id: int) -> int | None:
        """Return the term of the log entry at an index, while known."""
        with self._reading() as state:
            return state.terms.term_of(entry_id, state.last_applied)

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """Return the newest snapshot's metadata."""
        with self._reading() as state:
            return state.snapshot_metadata

    # Apply

    async def apply_chunk(self, chunk: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Log a chunk, then apply it; see the contract."""
        if self._syncs_each:
            return await asyncio.to_thread(self._apply_chunk, chunk)
        return self._apply_chunk(chunk)

    def _apply_chunk(self, chunk: Sequence[Entry]) -> list[ApplyResult]:
        if not self._writer.acquire(blocking=False):
            raise ConcurrentApplyError(
                "apply_chunk: another call that changes the machine is under way; "
                "nothing was applied"
            )
        try:
            state = self._writable_state()
            start = check_chunk(chunk, state.last_applied)
            results = [ApplyResult(e.index, Outcome.DUPLICATE) for e in chunk[:start]]
            if start < len(chunk):
                # A list: the entries of a block are made anew each time they are looked at.
                results += self._log_and_apply(state, list(chunk[start:]))
                self._begin_checkpoint(state)
            return results
        finally:
            self._writer.release()

    def _writable_state(self) -> MachineState:
        state = self._running_state()
        if self._poison is not None:
            raise StateMachinePoisonedError(
                f"machine of format {self._format!r} refuses changes until it is stopped and "
                f"started: {self._poison}; state is at {state.last_applied}"
            )
        return state

    def _log_and_apply(self, state: MachineState, entries: Sequence[Entry]) -> list[ApplyResult]:
        sequence = self._append(encode_chunk(entries), sync=self._syncs_each)
        with self._memory:
            try:
                return state.apply(entries)
            except BaseException as exc:
                self._poison = str(exc) or type(exc).__name__
                # Still under the lock: nobody sees the half-applied state.
                self._state = None
                self._join_checkpointer()
                self._storage.undo_append(sequence)
                self._state = self._storage.load(self._factory)
                if not isinstance(exc, ApplicationFailure):
                    raise
                raise StateMachinePoisonedError(
                    f"{exc}; nothing was applied, and the machine refuses changes until it is "
                    "stopped and started"
                ) from exc.__cause__ or exc

    def _append(self, frame: bytes, *, sync: bool) -> int:
        """Append a frame, durably if `sync`; a failure poisons and leaves no frame."""
        try:
            sequence = self._storage.append(frame)
        except StorageError as exc:
            self._poison = str(exc)
            raise
        if sync:
            try:
                self._sync()
            except StorageError:
                with suppress(StorageError):
                    self._storage.undo_append(sequence)
                raise
        return sequence

    def _sync(self) -> None:
        try:
            self._storage.sync()
        except StorageError as exc:
            self._poison = str(exc)
            raise

    # Place in the log

    def update_last_applied(self, last_applied: LogId) -> None:
        """Advance the applied id past entries that carry no command."""
        with self._writer:
            self._advance(last_applied)

    def persist_last_applied(self, last_applied: LogId) -> None:
        """Advance the applied id and make everything up to it durable."""
        with self._writer:
            self._advance(last_applied)
            self._sync()

    def _advance(self, last_applied: LogId) -> None:
        state = self._writable_state()
        if check_advance(state.last_applied, last_applied):
            # Logged at once: the frame of the next chunk must follow it in the log.
            self._append(encode_place(last_applied, state.snapshot_metadata), sync=False)
            with self._memory:
                state.advance(last_applied)

    def update_last_snapshot_metadata(self, snapshot_metadata: SnapshotMetadata) -> None:
        """Note the newest snapshot in memory."""
        with self._memory:
            self._running_state().snapshot_metadata = snapshot_metadata
            self._place_is_ahead = True

    def persist_last_snapshot_metadata(self, snapshot_metadata: SnapshotMetadata) -> None:
        """Note the newest snapshot durably."""
        self.update_last_snapshot_metadata(snapshot_metadata)
        self.save_hard_state()

    def save_hard_state(self) -> None:
        """Make applied id, terms and snapshot metadata durable."""
        with self._writer:
            self._writable_state()
            self._save_place()
            self._sync()

    def _save_place(self) -> None:
        with self._reading() as state:
            frame = encode_place(state.last_applied, state.snapshot_metadata)
            is_ahead, self._place_is_ahead = self._place_is_ahead, False
        if is_ahead:
            self._append(frame, sync=False)

    # Durability

    def flush(self) -> None:
        """Make everything applied durable."""
        with self._reading():
            self._writable_state()
        try:
            self._sync()
        except StorageError:
            # Closed by a stop() in another thread, which synced: not a failure of the disk.
            with self._reading():
                raise

    async def flush_async(self) -> None:
        """Make everything applied durable, in a worker thread."""
        await asyncio.to_thread(self.flush)

    def _begin_checkpoint(self, state: MachineState) -> None:
        """Start to write a checkpoint when the log has grown enough."""
        if self._storage.log_bytes < self._next_checkpoint_bytes:
            return
        if self._checkpointer is not None and self._checkpointer.is_alive():
            return
        self._next_checkpoint_bytes = self._storage.log_bytes + self._checkpoint_bytes
        try:
            pinned = pin(state)
        except Exception:
            _logger.exception("application of format %r: dump raised", self._format)
            return
        self._checkpointer = threading.Thread(
            target=self._write_checkpoint,
            args=(state.pack_place(), pinned, self._storage.next_sequence),
            name="application-checkpoint",
        )
        self._checkpointer.start()

    def _write_checkpoint(self, place: Any, pinned: PinnedState, next_sequence: int) -> None:
        try:
            self._storage.switch(place, pinned, next_sequence)
        except Exception:
            # Log and older checkpoint are whole; the next one is tried when the log has grown.
            _logger.exception("application of format %r: no checkpoint written", self._format)
        self._next_checkpoint_bytes = self._storage.log_bytes + self._checkpoint_bytes

    def _join_checkpointer(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.join()
            self._checkpointer = None

    # Snapshots

    async def generate_snapshot_data(self, new_snapshot_dir: Path, last_included: LogId) -> bytes:
        """Write the state at `last_included` in a worker thread; see the contract."""
        with self._reading() as state:
            if last_included != state.last_applied:
                raise SnapshotLabelError(
                    f"snapshot of {last_included}: expected last_applied, {state.last_applied}; "
                    "nothing was written",
                    path=new_snapshot_dir,
                    expected=state.last_applied,
                    observed=last_included,
                )
            pinned, epoch = pin(state), self._epoch
        checksum = await write_in_thread(new_snapshot_dir, self._format, pinned)
        with self._memory:
            # After an install, reset or restart it is no longer this state's snapshot.
            if self._state is not None and self._epoch == epoch:
                metadata = SnapshotMetadata(last_included, checksum, self._format)
                self._state.snapshot_metadata = metadata
                self._place_is_ahead = True
        return checksum

    async def apply_snapshot_from_file(
        self, metadata: SnapshotMetadata, snapshot_path: Path
    ) -> None:
        """Install a snapshot; see the contract."""
        await asyncio.to_thread(self._install, metadata, snapshot_path)

    def _install(self, metadata: SnapshotMetadata, path: Path) -> None:
        with self._writer:
            last_applied = self._writable_state().last_applied
            check_installable(metadata, path, self._format, last_applied)
            state = read_snapshot(metadata, path, self._factory)
            self._replace(state, pin(state))

    async def reset(self) -> None:
        """Go back to the initial state, durably."""
        await asyncio.to_thread(self._reset)

    def _reset(self) -> None:
        with self._writer:
            self._writable_state()
            self._replace(MachineState(self._factory()), None)

    def _replace(self, state: MachineState, pinned: PinnedState | None) -> None:
        """Replace the state on disk, then in memory."""
        self._join_checkpointer()
        try:
            self._storage.switch(state.pack_place(), pinned, self._storage.next_sequence)
        except BaseException as exc:
            # Which state the disk holds is for the next start to find out.
            self._poison = str(exc) or type(exc).__name__
            raise
        with self._memory:
            self._epoch += 1
            self._state, self._place_is_ahead = state, False
