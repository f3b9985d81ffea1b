"""The key-value state machine over any storage.

Everything the contract asks, written once: results, duplicates, gaps, term history,
applied id in the same atomic batch as the data, time to live by log time, sessions of
clients, snapshots in the portable format.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

from dengine_sm.bookkeeping import TermHistory, check_advance, check_chunk
from dengine_sm.codec import (
    decode,
    encode,
    pack_snapshot_metadata,
    unpack_snapshot_metadata,
)
from dengine_sm.errors import (
    ConcurrentApplyError,
    CorruptionError,
    NotRunningError,
    SnapshotCorruptionError,
    SnapshotLabelError,
    StaleSnapshotError,
    StateMachinePoisonedError,
    StorageError,
)
from dengine_sm.kv.execution import Execution, first_deadline
from dengine_sm.kv.results import ChunkResults
from dengine_sm.kv.rows import (
    APPLIED,
    SNAPSHOT,
    TERMS,
    entries_of,
    installed_batches,
    unpack_applied,
)
from dengine_sm.kv.sessions import count_sessions, stored_sessions
from dengine_sm.kv.store import KeyValueStore, WriteBatch
from dengine_sm.kv.workers import Workers
from dengine_sm.model import (
    ApplyResult,
    Entry,
    Limits,
    LogId,
    ScanResult,
    SnapshotMetadata,
)
from dengine_sm.snapshot import (
    PORTABLE_FORMAT,
    read_portable,
    verify_snapshot,
    write_portable,
)


class KeyValueStateMachine:
    """A `StateMachine` for the command set `kv/1`; also SupportsGetMulti, SupportsScanPrefix.

    Args:
        store: the storage, not open yet.
        limits: larger keys and values are `REJECTED`; the same on every replica.
    """

    def __init__(self, store: KeyValueStore, *, limits: Limits | None = None) -> None:
        self._store = store
        if type(self).get is KeyValueStateMachine.get:
            # The store's own method: a call between them costs as much as the read.
            self.get = store.get  # type: ignore[method-assign]  # same signature
        self._limits = limits or Limits()
        self._running = False
        self._poisoned: StorageError | None = None
        self._applying = threading.Lock()
        self._writing = threading.Lock()
        self._workers = Workers()
        self._applied_row: tuple[bytes | None, LogId] = (None, LogId.ZERO)
        self._snapshot: SnapshotMetadata | None = None
        self._snapshot_saved = True
        self._terms = TermHistory()
        self._clock_ms = 0
        self._timed_keys = 0
        self._next_deadline = 0
        self._session_count = 0

    # Life

    def start(self) -> None:
        """Open the store and read the bookkeeping; see the contract."""
        if self._running:
            return
        self._store.open()
        try:
            self._load_bookkeeping()
        except BaseException:
            self._store.close()
            raise
        self._poisoned = None
        self._workers.open()
        self._running = True

    def stop(self) -> None:
        """Finish work under way, save, close; see the contract."""
        if not self._running:
            return
        self._workers.close()
        self._running = False
        try:
            if self._poisoned is None and not self._snapshot_saved:
                self._write(WriteBatch(internal=self._snapshot_row()))
        finally:
            try:
                self._store.close()
            except StorageError:
                # A failure that the caller has been told of already is not a new one.
                if self._poisoned is None:
                    raise

    def is_running(self) -> bool:
        """Tell whether the machine is started."""
        return self._running

    def _require_running(self) -> None:
        if not self._running:
            raise NotRunningError("the state machine is stopped; nothing was read or changed")

    def _load_bookkeeping(self) -> None:
        store = self._store
        try:
            applied = store.get_internal(APPLIED)
            if applied is None:
                self._clock_ms = self._timed_keys = 0
            else:
                _, _, self._clock_ms, self._timed_keys = decode(applied)
            terms = store.get_internal(TERMS)
            self._terms = TermHistory.unpack(decode(terms)) if terms else TermHistory()
            snapshot = store.get_internal(SNAPSHOT)
            self._snapshot = unpack_snapshot_metadata(decode(snapshot)) if snapshot else None
        except (ValueError, TypeError) as exc:
            raise CorruptionError(
                f"the bookkeeping rows are damaged: {exc}; nothing was changed",
                path=Path(getattr(store, "directory", ".")),
                offset=0,
            ) from exc
        self._snapshot_saved = True
        self._next_deadline = first_deadline(store)
        self._session_count = count_sessions(store)

    # Reads

    def get(self, key: bytes) -> bytes | None:
        """Read one value."""
        return self._store.get(key)

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read several values at one point in time."""
        self._require_running()
        return self._store.get_multi(keys)

    def scan_prefix(
        self, prefix: bytes, *, limit: int | None = None, start_after: bytes | None = None
    ) -> ScanResult:
        """List entries in key order at one point in time."""
        self._require_running()
        if limit is not None and limit < 0:
            raise ValueError(f"limit: expected 0 or more, observed {limit}")
        start = prefix
        if start_after is not None and start_after >= prefix:
            start = start_after + b"\0"
        view = self._store.view()
        try:
            entries = tuple(islice(view.scan(start, _end_of_prefix(prefix)), limit))
            row = view.get_internal(APPLIED)
        finally:
            view.close()
        return ScanResult(entries, unpack_applied(row))

    def len(self) -> int:
        """Return the number of live keys."""
        self._require_running()
        return self._store.count()

    def is_empty(self) -> bool:
        """Tell whether there is no live key."""
        return self.len() == 0

    def last_applied(self) -> LogId:
        """Return the applied id, from the same store as the data (APPLY-2)."""
        row = self._store.get_internal(APPLIED)
        cached_row, cached = self._applied_row
        if row == cached_row:
            return cached
        applied = unpack_applied(row)
        self._applied_row = (row, applied)
        return applied

    def entry_term(self, entry_id: int) -> int | None:
        """Return the term of an applied entry."""
        return self._terms.term_of(entry_id, self.last_applied())

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """Return the newest snapshot's metadata."""
        self._require_running()
        return self._snapshot

    # Apply

    async def apply_chunk(self, chunk: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Apply committed entries; see the contract."""
        self._require_running()
        with _Exclusive(self._applying):
            self._require_sound()
            applied = self.last_applied()
            start = check_chunk(chunk, applied)
            if start == len(chunk):
                return ChunkResults(chunk[0].index, start, start) if chunk else []
            entries = chunk[start:] if start else chunk
            execution = self._new_execution()
            execution.run(entries)
            terms = self._terms.copy() if entries[-1].term != self._terms.last_term else None
            if terms is not None:
                terms.extend(entries)
            await self._write_in_worker_if_blocking(
                lambda: self._commit(execution, entries[-1].log_id, terms)
            )
            rejected = {start + position for position in execution.rejected}
            values = execution.values
            if start and values:
                values = {start + position: value for position, value in values.items()}
            return ChunkResults(chunk[0].index, len(chunk), start, rejected, values)

    def _new_execution(self) -> Execution:
        return Execution(
            self._store,
            self._limits,
            clock_ms=self._clock_ms,
            timed_keys=self._timed_keys,
            next_deadline=self._next_deadline,
            sessions=self._session_count,
        )

    def _commit(self, execution: Execution, applied: LogId, terms: TermHistory | None) -> None:
        internal = execution.batch.internal
        internal[APPLIED] = encode(
            [applied.term, applied.index, execution.clock_ms, execution.timed_keys]
        )
        if terms is not None:
            internal[TERMS] = encode(terms.pack())
            # Before the write: what is new in them lies beyond the applied id, where nobody
            # looks yet; after it a reader could ask for a new entry's term and get an old one.
            self._terms = terms
        self._write(execution.batch)
        self._clock_ms = execution.clock_ms
        self._timed_keys = execution.timed_keys
        self._next_deadline = execution.next_deadline
        self._session_count = execution.session_count

    def _require_sound(self) -> None:
        if self._poisoned is not None:
            raise StateMachinePoisonedError(
                f"the state machine refuses to go on after a storage failure ({self._poisoned}); "
                f"state left at {self.last_applied()}; stop and start it again"
            ) from self._poisoned

    def _write(self, batch: WriteBatch) -> None:
        with self._writing:
            try:
                self._store.write(batch)
            except StorageError as exc:
                self._poisoned = exc
                raise

    # Place in the log

    def update_last_applied(self, last_applied: LogId) -> None:
        """Advance the applied id."""
        self._require_running()
        with _Exclusive(self._applying):
            self._require_sound()
            current = self.last_applied()
            if not check_advance(current, last_applied):
                return
            execution = self._new_execution()
            terms = self._terms.copy()
            changed = terms.skip_to(current, last_applied)
            self._commit(execution, last_applied, terms if changed else None)

    def persist_last_applied(self, last_applied: LogId) -> None:
        """Advance the applied id durably."""
        self.update_last_applied(last_applied)
        self.flush()

    def update_last_snapshot_metadata(self, snapshot_metadata: SnapshotMetadata) -> None:
        """Record the newest snapshot in memory."""
        self._require_running()
        self._snapshot = snapshot_metadata
        self._snapshot_saved = False

    def persist_last_snapshot_metadata(self, snapshot_metadata: SnapshotMetadata) -> None:
        """Record the newest snapshot durably."""
        self.update_last_snapshot_metadata(snapshot_metadata)
        self.save_hard_state()

    def _snapshot_row(self) -> dict[bytes, bytes | None]:
        snapshot = self._snapshot
        return {SNAPSHOT: None if snapshot is None else encode(pack_snapshot_metadata(snapshot))}

    def save_hard_state(self) -> None:
        """Make applied id, term history and snapshot metadata durable."""
        self._require_running()
        if not self._snapshot_saved:
            self._require_sound()
            self._snapshot_saved = True
            try:
                self._write(WriteBatch(internal=self._snapshot_row()))
            except BaseException:
                self._snapshot_saved = False
                raise
        self.flush()

    def flush(self) -> None:
        """Make everything applied durable."""
        self._require_running()
        self._require_sound()
        try:
            self._store.flush()
        except StorageError as exc:
            self._poisoned = exc
            raise

    async def flush_async(self) -> None:
        """Make everything applied durable, in a worker thread."""
        self._require_running()
        await self._workers.run("flush", self.flush)

    async def reset(self) -> None:
        """Go back to the initial state, durably."""
        self._require_running()
        with _Exclusive(self._applying):
            await self._workers.run("write", lambda: self._replace([WriteBatch()]))

    def _replace(self, batches: Iterable[WriteBatch]) -> None:
        with self._writing:
            self._store.replace_all(batches)
            self._load_bookkeeping()
            self._poisoned = None

    # Snapshots

    async def generate_snapshot_data(self, new_snapshot_dir: Path, last_included: LogId) -> bytes:
        """Write a portable snapshot; see the contract."""
        self._require_running()
        view = self._store.view()
        try:
            row = view.get_internal(APPLIED)
            applied = unpack_applied(row)
            if applied != last_included:
                raise SnapshotLabelError(
                    f"snapshot of {last_included}: expected the applied id {applied}; "
                    "nothing was written",
                    path=new_snapshot_dir,
                    expected=applied,
                    observed=last_included,
                )
            clock_ms, timed_keys = decode(row)[2:] if row else (0, 0)
            cancelled = threading.Event()
            checksum = await self._workers.run(
                "snapshot",
                lambda: write_portable(
                    new_snapshot_dir,
                    last_included=last_included,
                    clock_ms=clock_ms,
                    sessions=list(stored_sessions(view)),
                    entries=entries_of(view, timed_keys),
                    should_stop=lambda: self._workers.closing or cancelled.is_set(),
                ),
                on_cancel=cancelled.set,
            )
        finally:
            view.close()
        newest = self._snapshot
        if newest is None or newest.last_included <= last_included:
            self.update_last_snapshot_metadata(
                SnapshotMetadata(last_included, checksum, PORTABLE_FORMAT)
            )
        return checksum

    async def apply_snapshot_from_file(
        self, metadata: SnapshotMetadata, snapshot_path: Path
    ) -> None:
        """Install a portable snapshot; see the contract."""
        self._require_running()
        with _Exclusive(self._applying):
            applied = self.last_applied()
            if metadata.last_included < applied:
                raise StaleSnapshotError(
                    f"snapshot {str(snapshot_path)!r} ends at {metadata.last_included}, before "
                    f"last_applied {applied}; nothing changed",
                    path=snapshot_path,
                    expected=applied,
                    observed=metadata.last_included,
                )
            await self._workers.run("write", lambda: self._install(metadata, snapshot_path))

    def _install(self, metadata: SnapshotMetadata, directory: Path) -> None:
        verify_snapshot(directory, metadata, formats=(PORTABLE_FORMAT,))
        snapshot = read_portable(directory)
        if snapshot.last_included != metadata.last_included:
            raise SnapshotCorruptionError(
                f"snapshot {str(directory)!r} holds the state at {snapshot.last_included}: "
                f"expected {metadata.last_included}; nothing changed",
                path=directory,
                expected=metadata.last_included,
                observed=snapshot.last_included,
            )
        self._replace(installed_batches(metadata, snapshot))

    async def _write_in_worker_if_blocking(self, work: Callable[[], None]) -> None:
        if self._store.writes_block:
            await self._workers.run("write", work)
        else:
            work()


class _Exclusive:
    """Hold a lock or refuse with `ConcurrentApplyError` (APPLY-10)."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ConcurrentApplyError(
                "another apply, install or reset is under way; nothing was applied"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _end_of_prefix(prefix: bytes) -> bytes | None:
    """Return the least key greater than all keys with the prefix; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
