"""Between the commit log and the state machine: apply, read, snapshot, install, purge."""

from __future__ import annotations

import asyncio
import heapq
import logging
import shutil
import time
from collections.abc import AsyncGenerator, Sequence
from itertools import chain, count
from pathlib import Path

from dengine_sm.bookkeeping import check_chunk
from dengine_sm.contract import StateMachine
from dengine_sm.entries import payloads_of
from dengine_sm.errors import (
    CommitLogError,
    ContractViolationError,
    LogGapError,
    SnapshotError,
    StorageError,
)
from dengine_sm.kv.results import ChunkResults
from dengine_sm.log.contract import CommitLog
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome, SnapshotMetadata
from dengine_sm.snapshot import (
    PublishedSnapshot,
    SnapshotPolicy,
    SnapshotProgress,
    SnapshotStore,
    read_archive_header,
)

logger = logging.getLogger("dengine_sm.handler")

_BACK_OFF_S = 5.0
"""Pause after a failed snapshot, doubled up to a minute while failures go on."""
_BACK_OFF_MAX_S = 60.0


class StateMachineHandler:
    """Feeds one state machine from one commit log.

    The handler is the only caller of the machine's writing methods, and calls one at a
    time (CONTRACT §6). It filters duplicates and refuses gaps before the machine sees
    them, and checks what the machine answers.

    Args:
        machine: started by `restore`'s caller before `restore`.
        log: open.
        snapshots: open; on the same file system as nothing in particular.
        policy: when `should_snapshot` says yes.
        keep_log_entries: entries kept behind the newest snapshot at a purge.
        apply_chunk_entries: most entries in one `apply_chunk` of the machine.
    """

    def __init__(
        self,
        machine: StateMachine,
        log: CommitLog,
        snapshots: SnapshotStore,
        *,
        policy: SnapshotPolicy,
        keep_log_entries: int = 1000,
        apply_chunk_entries: int = 1024,
    ) -> None:
        self.machine = machine
        self.snapshots = snapshots
        self._log = log
        self._policy = policy
        self._keep_log_entries = keep_log_entries
        self._chunk_entries = apply_chunk_entries
        self._turn = asyncio.Lock()
        self._snapshotting = asyncio.Lock()
        self._applied = LogId.ZERO
        self._commit_index = 0
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiter_ids = count()
        self._entries_since = self._bytes_since = 0
        self._last_snapshot_s = time.monotonic()
        self._not_before_s = 0.0
        self._back_off_s = _BACK_OFF_S

    # Start

    async def restore(self) -> None:
        """Bring the machine to where the log can take it on.

        An empty machine, or one behind the log's first index, gets the newest snapshot
        that is intact.

        Raises:
            LogGapError: the machine is behind the log, and no snapshot covers the gap.
            CommitLogError: the machine is ahead of a log that is not empty.
        """
        self._applied = self.machine.last_applied()
        first = self._log.first_index()
        if self._applied == LogId.ZERO or self._applied.index + 1 < first:
            await self._install_newest()
        if self._applied.index + 1 < first:
            raise LogGapError(
                f"the state machine is at {self._applied}, the log begins at index {first}, and "
                "no intact snapshot covers what is between; restore the data directory from a "
                "backup; nothing was changed",
                expected_index=self._applied.index + 1,
                observed_index=first,
            )
        if self._log.is_shared and self._applied != LogId.ZERO:
            # It may be another stream by now: then this is no state of it.
            await self._log.advance_to(self._applied)
        last = self._log.last_log_id()
        # A shared log finds out while it is followed: what it has read so far is no end.
        if self._applied.index > last.index and not self._log.is_shared:
            if last != LogId.ZERO:
                raise CommitLogError(
                    f"the state machine is at {self._applied}, but the log ends at {last}: "
                    "expected a log that holds everything applied; the log is of another "
                    "machine, or was replaced by an older copy; nothing was changed"
                )
            await self._log.advance_to(self._applied)
        self._commit_index = max(self._applied.index, self._log.last_log_id().index)
        self._entries_since = self._applied.index - await self._newest_index()

    async def install_published(self) -> bool:
        """Install the newest snapshot that nodes of a shared log published; False if none is newer.

        Raises:
            StorageError: the disk refused; nothing changed.
        """
        before = self._applied
        await self._install_newest()
        return self._applied > before

    async def _install_newest(self) -> None:
        published = await asyncio.to_thread(self.snapshots.list)
        fetched = await self._log.fetch_snapshot(self._applied, self.snapshots.directory)
        if fetched is not None:
            published.append(await asyncio.to_thread(self.snapshots.adopt, fetched))
        for snapshot in sorted(published, key=lambda one: one.metadata.last_included, reverse=True):
            if snapshot.metadata.last_included <= self._applied:
                return
            try:
                await self._install(snapshot)
            except SnapshotError as exc:
                logger.warning("snapshot %s is not usable: %s", snapshot.path, exc)
            else:
                return

    async def _newest_index(self) -> int:
        newest = await asyncio.to_thread(self.snapshots.newest)
        return newest.metadata.last_included.index if newest else 0

    # Apply

    @property
    def last_applied(self) -> LogId:
        """Id of the last entry applied."""
        return self._applied

    @property
    def commit_index(self) -> int:
        """Highest index known committed."""
        return self._commit_index

    def update_pending(self, commit_index: int) -> None:
        """Note that entries up to an index are committed; lower than before is ignored."""
        self._commit_index = max(self._commit_index, commit_index)

    def pending_range(self) -> tuple[int, int] | None:
        """Return the indices `[lo, hi)` committed and not applied, or None."""
        if self._commit_index <= self._applied.index:
            return None
        return self._applied.index + 1, self._commit_index + 1

    async def apply_chunk(self, entries: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Apply committed entries, in chunks of a size that keeps the event loop lively.

        Returns:
            One result per entry; `DUPLICATE` for those that had been applied.

        Raises:
            LogGapError: an index is missing; nothing was applied.
            ContractViolationError: the machine's answer breaks APPLY-1 or APPLY-2; what
                it did is unknown, and the node must stop.
            DEngineError: the machine failed; what was applied before stays applied.
        """
        parts = [part async for part in self.apply_in_chunks(entries)]
        return parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))

    async def apply_in_chunks(
        self, entries: Sequence[Entry]
    ) -> AsyncGenerator[Sequence[ApplyResult]]:
        """Apply as `apply_chunk` does; yield the results of every chunk once it is applied."""
        if not entries:
            return
        start = check_chunk(entries, self._applied)
        if start:
            yield [ApplyResult(entry.index, Outcome.DUPLICATE) for entry in entries[:start]]
        elif len(entries) <= self._chunk_entries:
            yield await self._apply(entries)
            return
        for position in range(start, len(entries), self._chunk_entries):
            yield await self._apply(entries[position : position + self._chunk_entries])
            await asyncio.sleep(0)

    async def _apply(self, chunk: Sequence[Entry]) -> Sequence[ApplyResult]:
        async with self._turn:
            results = await self.machine.apply_chunk(chunk)
            self._check_answer(chunk, results)
            self._applied = chunk[-1].log_id
        self._entries_since += len(chunk)
        self._bytes_since += sum(map(len, payloads_of(chunk)))
        self.update_pending(self._applied.index)
        self._wake_waiters()
        return results

    def _check_answer(self, chunk: Sequence[Entry], results: Sequence[ApplyResult]) -> None:
        first, last = chunk[0].index, chunk[-1].log_id
        if isinstance(results, ChunkResults):
            right = results.first_index == first and len(results) == len(chunk)
        else:
            right = [result.index for result in results] == [entry.index for entry in chunk]
        if not right:
            self._violates(
                "APPLY-1", f"{len(chunk)} results from index {first} on", f"{len(results)} results"
            )
        observed = self.machine.last_applied()
        if observed != last:
            self._violates("APPLY-2", f"last_applied {last}", str(observed))

    def _violates(self, clause: str, expected: str, observed: str) -> None:
        name = type(self.machine).__name__
        text = f"{clause}: expected {expected}, observed {observed}"
        raise ContractViolationError(
            f"state machine {name!r} breaks the contract while applying: {text}",
            name=name,
            findings=[text],
        )

    async def wait_applied(self, index: int, timeout_s: float | None = None) -> LogId:
        """Wait until an index is applied, by an apply or an install.

        Returns:
            The applied id by then.

        Raises:
            TimeoutError: it was not applied in time.
        """
        if self._applied.index < index:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiters, (index, next(self._waiter_ids), future))
            async with asyncio.timeout(timeout_s):
                await future
        return self._applied

    def _wake_waiters(self) -> None:
        while self._waiters and self._waiters[0][0] <= self._applied.index:
            _, _, future = heapq.heappop(self._waiters)
            if not future.done():
                future.set_result(None)

    def fail_waiters(self, error: BaseException) -> None:
        """Give an error to everybody who waits for an index."""
        for _, _, future in self._waiters:
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()

    # Snapshots

    def should_snapshot(self) -> bool:
        """Tell whether the policy asks for a snapshot now."""
        now_s = time.monotonic()
        if self._snapshotting.locked() or now_s < self._not_before_s:
            return False
        progress = SnapshotProgress(
            self._entries_since, self._bytes_since, now_s - self._last_snapshot_s
        )
        return self._policy.should_snapshot(progress)

    @property
    def is_writing_snapshot(self) -> bool:
        """Whether a snapshot is being written."""
        return self._snapshotting.locked()

    async def wait_snapshot_written(self) -> None:
        """Wait until no snapshot is being written."""
        async with self._snapshotting:
            pass

    async def create_snapshot(
        self, pinned: asyncio.Event | None = None
    ) -> PublishedSnapshot | None:
        """Write, publish and record a snapshot of the state now; applies go on.

        Afterwards older snapshots are cleaned up and the log is purged.

        Args:
            pinned: set once the state that the snapshot holds is pinned.

        Returns:
            The snapshot; None when the newest one holds the same state already.

        Raises:
            StorageError, SnapshotError: nothing was published or purged.
        """
        async with self._snapshotting:
            directory = self.snapshots.temporary_directory()
            try:
                return await self._create_snapshot(directory, pinned or asyncio.Event())
            except (StorageError, SnapshotError, CommitLogError):
                self._not_before_s = time.monotonic() + self._back_off_s
                self._back_off_s = min(self._back_off_s * 2, _BACK_OFF_MAX_S)
                raise
            finally:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _create_snapshot(
        self, directory: Path, pinned: asyncio.Event
    ) -> PublishedSnapshot | None:
        async with self._turn:
            last_included = self._applied
            if last_included.index <= await self._newest_index():
                return None
            entries, size = self._entries_since, self._bytes_since
            generating = asyncio.ensure_future(
                self.machine.generate_snapshot_data(directory, last_included)
            )
            # One step of the loop: the machine pins its view before it first suspends.
            await asyncio.sleep(0)
            pinned.set()
        try:
            checksum = await asyncio.shield(generating)
        except asyncio.CancelledError:
            generating.cancel()
            await asyncio.wait([generating])
            raise
        written = self.machine.snapshot_metadata()
        if written is None or written.checksum != checksum:
            self._violates("SNAP-2", f"snapshot_metadata() with {checksum.hex()}", str(written))
        metadata = SnapshotMetadata(last_included, checksum, written.format if written else "")
        published = await asyncio.to_thread(self.snapshots.publish, directory, metadata)
        async with self._turn:
            await asyncio.to_thread(self.machine.persist_last_snapshot_metadata, metadata)
        self._entries_since -= entries
        self._bytes_since -= size
        self._last_snapshot_s = time.monotonic()
        self._back_off_s = _BACK_OFF_S
        await self._log.publish_snapshot(metadata, published.path)
        await self.cleanup_snapshots()
        await self.purge()
        return published

    async def install_snapshot(self, archive: Path) -> SnapshotMetadata:
        """Install a snapshot archive that came from elsewhere; the archive is taken over.

        Raises:
            SnapshotError: damaged, unknown or stale; nothing changed.
            CommitLogError: it is not of the shared log that the node follows; nothing changed.
            StorageError: the disk refused; nothing changed.
        """
        if self._log.is_shared:
            header = await asyncio.to_thread(read_archive_header, archive)
            await self._log.advance_to(header.metadata.last_included)
        published = await asyncio.to_thread(self.snapshots.adopt, archive)
        await self._install(published)
        await self._log.advance_to(self._applied)
        return published.metadata

    async def _install(self, published: PublishedSnapshot) -> None:
        extraction = self.snapshots.extract(published)
        directory = await asyncio.to_thread(extraction.__enter__)
        try:
            async with self._turn:
                await self.machine.apply_snapshot_from_file(published.metadata, directory)
                self._applied = self.machine.last_applied()
        finally:
            await asyncio.to_thread(extraction.__exit__, None, None, None)
        self._entries_since = self._bytes_since = 0
        self.update_pending(self._applied.index)
        self._wake_waiters()

    async def cleanup_snapshots(self) -> list[Path]:
        """Delete all but the newest snapshots; return what was deleted."""
        return await asyncio.to_thread(self.snapshots.cleanup)

    async def purge(self) -> None:
        """Purge the log behind the newest snapshot, and never what is not durable.

        The machine is flushed first: for a machine on disk the log must keep whatever a
        crash could take from it.
        """
        newest = await asyncio.to_thread(self.snapshots.newest)
        if newest is None:
            return
        durable = self._applied
        await self.machine.flush_async()
        covered = min(newest.metadata.last_included.index, durable.index)
        index = min(covered - self._keep_log_entries, self._log.last_log_id().index)
        if index >= self._log.first_index():
            await self._log.purge(LogId(newest.metadata.last_included.term, index))
