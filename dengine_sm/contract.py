"""The state machine contract: twenty methods, and what they promise.

A class is a state machine by having these methods; it need not inherit. Every promise
carries the id of a clause, which the conformance kit checks under the same name.

**Who calls what.** One task calls `apply_chunk`, `apply_snapshot_from_file`, `reset`,
`update_*`, `persist_*` and `save_hard_state`, and begins `generate_snapshot_data`; these
never overlap, except that a generation that has begun goes on beside later applies.
`flush`, `flush_async` and all reads may come from any thread at any time.

**Promises of the machine as a whole**

Life:
    LIFE-1: constructing a machine leaves its directory alone; `start` opens and recovers.
    LIFE-2: `start` and `stop` are idempotent and alternate without limit.
    LIFE-3: while stopped, whatever reads or changes state raises `NotRunningError`.
    LIFE-4: reopening after `stop` finds everything, unless the machine is TRANSIENT.
    LIFE-5: nothing relies on `stop`, `__del__` or `atexit` having run.
    LIFE-6: a running machine locks its directory; `stop` and process death unlock it.
    LIFE-7: a foreign or newer directory is refused with `StorageFormatError`, untouched.
    LIFE-8: fifty cycles of use, failures included, leak nothing.

Crash, for machines that are not TRANSIENT:
    CRASH-1: killed at any instant and started again, the state is exactly the one that
        belongs to the applied id found.
    CRASH-2: that id is at least the last one promised durable: by `apply_chunk` (PER_APPLY)
        or by `flush`, `flush_async`, `persist_last_applied`, `save_hard_state` (ON_FLUSH).
    CRASH-3: it is the end of a chunk.
    CRASH-4: a kill during recovery changes nothing about that.
    CRASH-5: a torn last write recovers to the end of a chunk; earlier damage raises
        `CorruptionError` with file and offset; damage is never taken for data.
    CRASH-6: what was promised durable survives the loss of everything not synced.
    CRASH-7: replaying the log from any index up to applied + 1 gives the same state.
    CRASH-8: a full or failing disk gives `StorageError`, and a restart once it is cured
        is right; a failed sync is never retried as if it had worked.

Reads:
    READ-1: any thread may read, during applies and snapshots; it sees whole chunks.
    READ-2: `get_multi` and `scan_prefix` are one point in time, with its exact id.
    READ-3: an empty value is a value.
    READ-4: keys and values are any bytes; limits are declared and `REJECTED`.
    READ-5: a storage failure raises; it is never "absent".
    READ-6: during an install a read sees the old state or the new, or `NotRunningError`.
    READ-7: returned bytes stay valid and unchanged for ever.

Determinism:
    DET-1: equal logs give equal states and results, wherever and however they are applied.
    DET-2: applying and installing look at no clock, randomness, environment or network;
        time is the entry's stamp, clamped so that it never goes back.
    DET-3: expiry is a function of the log: a key is gone once an entry stamped at or after
        its deadline is applied, and not before; a plain put clears the deadline.

Source: d-engine server guide 0.1.4, "Implementing Custom State Machines"; CONTRACT.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dengine_sm.model import ApplyResult, Entry, LogId, ScanResult, SnapshotMetadata

CONTRACT_VERSION = 1


class StateMachine(Protocol):
    """A replicated state machine; the module's docstring has the common promises."""

    def start(self) -> None:
        """Open the storage, recover, become running.

        Guarantees: LIFE-1, LIFE-2, LIFE-6, LIFE-7, CRASH-4, CRASH-5.

        Raises:
            StorageLockedError: another machine has the directory open; nothing changed.
            StorageFormatError: another backend's or a newer directory; nothing changed.
            CorruptionError: damage that no crash explains; nothing changed.
            StorageError: the disk refused.
        """
        ...

    def stop(self) -> None:
        """Flush, close, release every lock; no longer running afterwards.

        Called: also after a failure, and twice.

        Guarantees: LIFE-2, LIFE-4, LIFE-6, LIFE-8.
        """
        ...

    def is_running(self) -> bool:
        """Tell whether the machine is between `start` and `stop`; always answers (LIFE-3)."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """Read one value; None when the key is absent.

        Called: by any thread.

        Guarantees: READ-1, READ-3 to READ-7.

        Raises:
            NotRunningError: the machine is stopped.
            StorageError: the storage failed.
        """
        ...

    def entry_term(self, entry_id: int) -> int | None:
        """Return the term of the log entry at an index.

        Guarantees:
            LOG-2: exact from the last included index of the newest installed snapshot
                (or 1) up to `last_applied().index`, across restarts; None outside.
        """
        ...

    async def apply_chunk(self, chunk: Sequence[Entry]) -> Sequence[ApplyResult]:
        """Apply committed entries in log order.

        Called: by one task, never overlapping itself; reads may overlap.

        Args:
            chunk: committed entries with consecutive indices, in any sequence: commit logs
                hand on an `EntryBlock`. Those at or below the applied index are skipped.

        Returns:
            One result per entry, in order; the sequence belongs to the caller.

        Guarantees:
            APPLY-1: one result per entry, in order, with the entry's index.
            APPLY-2: on return `last_applied()` is the id of the last entry; state and
                applied id change together, for every observer.
            APPLY-3: if this raises, both are as before, in memory and on disk; after an
                I/O failure later calls raise `StateMachinePoisonedError` until a restart.
            APPLY-4: an entry sees what earlier ones of its chunk did; where a log is cut
                into chunks changes nothing.
            APPLY-5: an entry at or below the applied index is a `DUPLICATE`, whatever its
                content; a chunk may mix duplicates and new entries.
            APPLY-6: a gap or a falling term raises; nothing is applied.
            APPLY-7: a malformed command is `REJECTED`; the index advances.
            APPLY-8: an empty chunk gives an empty sequence; empty data only advances.
            APPLY-9: no buffer is kept or changed.
            APPLY-10: overlapping calls are serialised or refused.

        Raises:
            NotRunningError: the machine is stopped.
            LogGapError: an index is missing before or inside the chunk.
            LogOrderError: a term is lower than the one before it.
            ConcurrentApplyError: another call is under way.
            StateMachinePoisonedError: an earlier write failed.
            StorageError: the disk refused.

        Source: Raft paper Figure 2 (lastApplied); Raft dissertation §5.2.
        """
        ...

    def len(self) -> int:
        """Return the number of live entries in the state."""
        ...

    def is_empty(self) -> bool:
        """Tell whether `len()` is 0."""
        ...

    def update_last_applied(self, last_applied: LogId) -> None:
        """Advance the applied id in memory, past entries that carry no command.

        Guarantees: LOG-1: equal is a no-op; the id never goes back.

        Raises:
            LogOrderError: the id is lower than `last_applied()`; nothing changed.
        """
        ...

    def last_applied(self) -> LogId:
        """Return the id of the last entry applied; `LogId.ZERO` at first.

        Guarantees: LOG-1: never goes back, except through `reset`.
        """
        ...

    def persist_last_applied(self, last_applied: LogId) -> None:
        """Advance the applied id, durably.

        Guarantees:
            LOG-1: equal moves nothing; the id never goes back.
            LOG-3: the id, and everything at or below it, survives a kill right after.

        Raises:
            LogOrderError: the id is lower than `last_applied()`; nothing changed.
        """
        ...

    def update_last_snapshot_metadata(self, snapshot_metadata: SnapshotMetadata) -> None:
        """Record, in memory, which snapshot is the newest."""
        ...

    def snapshot_metadata(self) -> SnapshotMetadata | None:
        """Return the newest snapshot's metadata, or None."""
        ...

    def persist_last_snapshot_metadata(self, snapshot_metadata: SnapshotMetadata) -> None:
        """Record durably which snapshot is the newest.

        Guarantees: SNAP-10: it survives a kill right after.
        """
        ...

    async def apply_snapshot_from_file(
        self, metadata: SnapshotMetadata, snapshot_path: Path
    ) -> None:
        """Install a snapshot: replace the whole state.

        Args:
            metadata: what the snapshot must match.
            snapshot_path: the directory that `generate_snapshot_data` filled.

        Guarantees:
            SNAP-4: validates first; anything missing, extra or altered raises.
            SNAP-5: nothing earlier is left; `last_applied()` and
                `snapshot_metadata().last_included` are the snapshot's.
            SNAP-6: a snapshot older than `last_applied()` raises; one at it is allowed.
            SNAP-7: killed at any instant: the whole old state or the whole new one.
            SNAP-8: the source is not changed, and may be deleted right after.
            SNAP-9: the tail of the log then leads where the whole log would have.
            SNAP-13: no memory in proportion to the snapshot, unless the machine
                declares that it keeps its state in memory.

        Raises:
            SnapshotCorruptionError: the directory does not match; nothing changed.
            SnapshotFormatError: unknown layout; nothing changed.
            StaleSnapshotError: older than the applied id; nothing changed.
            StorageError: the disk refused; nothing changed.
        """
        ...

    async def generate_snapshot_data(self, new_snapshot_dir: Path, last_included: LogId) -> bytes:
        """Write a snapshot of the state at `last_included`.

        Args:
            new_snapshot_dir: a directory that does not exist yet, or is empty.
            last_included: must equal `last_applied()` when the call begins.

        Returns:
            A checksum of 32 bytes over everything in the directory.

        Guarantees:
            SNAP-1: the view is pinned before the first suspension.
            SNAP-2: afterwards `snapshot_metadata()` has this id, checksum and format.
            SNAP-3: applies and reads go on meanwhile.
            SNAP-11: in the portable format equal states give identical bytes.
            SNAP-12: failed or cancelled, the live state is untouched and the directory
                absent or removable.
            SNAP-13: memory stays bounded, as for installing.

        Raises:
            SnapshotLabelError: `last_included` is not the applied id; nothing written.
            StorageError: the disk refused.
        """
        ...

    def save_hard_state(self) -> None:
        """Make durable what the machine knows about its place in the log.

        Guarantees: LOG-4: applied id, term history and snapshot metadata survive a kill.
        """
        ...

    def flush(self) -> None:
        """Make everything applied so far durable before returning (CRASH-2).

        Called: by any thread.
        """
        ...

    async def flush_async(self) -> None:
        """Do what `flush` does without blocking the event loop."""
        ...

    async def reset(self) -> None:
        """Go back to the initial state, durably.

        Guarantees:
            RESET-1: empty, `LogId.ZERO`, no snapshot metadata, expiries or term history,
                also after a kill and restart.
            RESET-2: killed meanwhile: the old state or the initial one.
        """
        ...


class SupportsGetMulti(Protocol):
    """A machine that reads several keys at one point in time."""

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values in key order (READ-2)."""
        ...


class SupportsScanPrefix(Protocol):
    """A machine that lists keys in order."""

    def scan_prefix(
        self, prefix: bytes, *, limit: int | None = None, start_after: bytes | None = None
    ) -> ScanResult:
        """Return entries whose key begins with `prefix`, sorted by key bytes (READ-2).

        Args:
            prefix: empty for everything.
            limit: at most so many entries; None for all.
            start_after: only keys greater than this one, to go on after a page.
        """
        ...


class SupportsQuery(Protocol):
    """A machine with a read language of its own."""

    def query(self, request: bytes) -> bytes:
        """Answer a read-only request in the machine's own language."""
        ...
