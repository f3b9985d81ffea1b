"""The commit log Protocol: the second plug point, beside the state machine.

A commit log orders commands and makes them durable; a node follows it. It may be a
file on this machine (`dengine_sm.log.embedded`) or replicated by an external engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

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


class CommitLog(Protocol):
    """An ordered, durable sequence of committed entries.

    All methods are called from one event loop; several calls of `append`,
    `read_barrier` and `follow` may be under way at once. Indices begin at 1 and have
    no gaps; `(term, index)` never goes back; `timestamp_ms` never goes back.
    """

    @property
    def reads_need_barrier(self) -> bool:
        """Whether another process can append to this log.

        If not, whatever was acknowledged was applied by this node first, and reading
        the local state is linearizable as it is.
        """
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
        not take the commands back.

        Args:
            payloads: at least one command; kept in order and without others between.

        Raises:
            CommitLogError: nothing was appended.
            ProposalOutcomeUnknown: the commands may or may not be in the log.
        """
        ...

    def follow(self, first_index: int) -> AsyncIterator[Sequence[Entry]]:
        """Yield committed entries from `first_index` on, in order, without end.

        Ends when the log is closed.

        Raises:
            LogGapError: entries from `first_index` on were purged.
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
        """Offer a snapshot archive to other nodes that follow this log."""
        ...

    async def fetch_snapshot(self, newer_than: LogId, directory: Path) -> Path | None:
        """Fetch the newest published archive into a directory.

        Returns:
            The archive's path, or None when none is newer than `newer_than`.
        """
        ...
