"""The commit log Protocol: the second plug point, beside the state machine.

A commit log orders commands and makes them durable; a node follows it. It may be a
file on this machine (`dengine_sm.log.embedded`) or replicated by an external engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from dengine_sm.model import Entry, LogId, SnapshotMetadata


@attrs.frozen
class LogIdRange:
    """Consecutive log ids of one term: what one `append` was given."""

    term: int
    first_index: int
    count: int
    """Number of entries, at least 1."""

    @property
    def last_index(self) -> int:
        """Index of the last entry of the range."""
        return self.first_index + self.count - 1


@attrs.frozen
class SnapshotMark:
    """A place in a shared log at which every node takes a snapshot.

    Snapshots of equal states at one id are byte-identical (SNAP-11), so the log can
    compare what its nodes hold.
    """

    index: int
    """The snapshot holds everything up to and including this entry."""


class CommitLog(Protocol):
    """An ordered, durable sequence of committed entries.

    All methods are called from one event loop; several calls of `append` and
    `read_barrier` may be under way at once, and one `follow`. Indices begin at 1 and have
    no gaps; `(term, index)` never goes back; `timestamp_ms` never goes back.
    """

    @property
    def is_shared(self) -> bool:
        """Whether other nodes append to this log; it is a `SharedCommitLog` then.

        If not, whatever was acknowledged was applied by this node first, and reading
        the local state is linearizable as it is.
        """
        ...

    @property
    def appends_in_flight(self) -> int:
        """How many calls of `append` at once give the best throughput, from 1."""
        ...

    @property
    def max_append_bytes(self) -> int:
        """Most bytes of payloads that one `append` takes; known once the log is open."""
        ...

    async def open(self) -> None:
        """Open and recover; the term rises.

        Raises:
            StorageLockedError: another process has the log open.
            CorruptionError: committed entries are damaged.
            StorageError: the disk refused.
        """
        ...

    async def close(self) -> None:
        """Finish appends under way, end followers, release everything; idempotent."""
        ...

    def first_index(self) -> int:
        """Return the index of the oldest entry kept; last + 1 when there is none."""
        ...

    def last_log_id(self) -> LogId:
        """Return the id of the newest committed entry known here, purged or not."""
        ...

    async def append(self, payloads: Sequence[bytes]) -> LogIdRange:
        """Append commands; return once they are committed and durable.

        Calls under way at once share a sync (group commit). Cancelling the caller does
        not take the commands back. A shared log knows the ids only when it has read the
        commands back, which needs somebody who follows it.

        Args:
            payloads: at least one command; kept in order and without others between.

        Raises:
            CommitLogError: nothing was appended.
            ProposalOutcomeUnknown: the commands may or may not be in the log.
        """
        ...

    def follow(self, first_index: int) -> AsyncIterator[Sequence[Entry] | SnapshotMark]:
        """Yield committed entries from `first_index` on, in order, without end.

        A shared log yields a mark behind the entries that the snapshot is to hold. Ends
        when the log is closed.

        Raises:
            LogGapError: entries from `first_index` on were purged, or cannot be had; a
                newer published snapshot may help.
            CommitLogError: the log ends before `first_index - 1`, or failed.
            StateDivergenceError: this node's state is not that of the others.
            CorruptionError: an entry is damaged.
        """
        ...

    async def read_barrier(self) -> int:
        """Return an index that covers everything acknowledged before the call.

        A state that has applied it may answer a linearizable read. Source: Raft
        dissertation §6.4.
        """
        ...

    async def purge(self, up_to: LogId) -> None:
        """Drop entries up to and including `up_to`; what is kept may begin earlier.

        Raises:
            CommitLogError: `up_to` is beyond the last entry; nothing was dropped.
        """
        ...

    async def advance_to(self, log_id: LogId) -> None:
        """Make the next index `log_id.index + 1` at least, in a term of at least its term.

        For a log that lags behind an installed snapshot; a no-op for one that does not.
        """
        ...

    async def publish_snapshot(self, metadata: SnapshotMetadata, archive: Path) -> None:
        """Offer a snapshot archive to other nodes that follow this log.

        A shared log compares the checksum with theirs, and may keep another node's
        archive instead.
        """
        ...

    async def fetch_snapshot(self, newer_than: LogId, directory: Path) -> Path | None:
        """Fetch the newest published archive into a directory.

        Returns:
            The archive's path, or None when none is newer than `newer_than`.
        """
        ...


class SharedCommitLog(CommitLog, Protocol):
    """A commit log that several nodes follow and append to."""

    async def request_snapshot(self) -> None:
        """Put a `SnapshotMark` into the log, for every node that follows it.

        Raises:
            CommitLogError: the mark may or may not be in the log.
        """
        ...

    async def describe(self) -> Mapping[str, Any]:
        """Return what the log knows of its servers, replicas and nodes.

        Returns:
            A mapping that JSON can hold, for people and their scripts.

        Raises:
            CommitLogError: the servers did not answer.
        """
        ...
