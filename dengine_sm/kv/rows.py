"""Rows of a key-value machine: its bookkeeping, its state as snapshots hold it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dengine_sm.bookkeeping import TermHistory
from dengine_sm.codec import decode, encode, pack_snapshot_metadata
from dengine_sm.kv.execution import (
    AFTER_DEADLINE_OF,
    DEADLINE_OF,
    DUE_AT,
    pack_deadline,
    unpack_deadline,
)
from dengine_sm.kv.sessions import session_rows
from dengine_sm.kv.store import ReadView, WriteBatch
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import PortableSnapshot

APPLIED = b"m/applied"
TERMS = b"m/terms"
SNAPSHOT = b"m/snapshot"


def unpack_applied(row: bytes | None) -> LogId:
    """Return the applied id of the row `APPLIED`; zero when there is none."""
    if row is None:
        return LogId.ZERO
    term, index, *_ = decode(row)
    return LogId(term, index)


def entries_of(view: ReadView, timed_keys: int) -> Iterator[tuple[bytes, bytes, int | None]]:
    """Join data and deadlines of a view; both come in key order."""
    if not timed_keys:
        for key, value in view.scan(b"", None):
            yield key, value, None
        return
    deadlines = view.scan_internal(DEADLINE_OF, AFTER_DEADLINE_OF)
    nothing: tuple[Any, Any] = (None, None)
    row, deadline = next(deadlines, nothing)
    for key, value in view.scan(b"", None):
        if row is not None and row[len(DEADLINE_OF) :] == key:
            yield key, value, unpack_deadline(deadline)
            row, deadline = next(deadlines, nothing)
        else:
            yield key, value, None


def installed_batches(
    metadata: SnapshotMetadata, snapshot: PortableSnapshot
) -> Iterator[WriteBatch]:
    """Yield what replaces a state by that of a snapshot, the bookkeeping last."""
    timed_keys = 0
    for block in snapshot.blocks:
        internal: dict[bytes, bytes | None] = {}
        for position, deadline_ms in block.deadlines.items():
            key, packed = block.keys[position], pack_deadline(deadline_ms)
            internal[DEADLINE_OF + key] = packed
            internal[DUE_AT + packed + key] = b""
        timed_keys += len(block.deadlines)
        yield WriteBatch(dict(zip(block.keys, block.values, strict=True)), internal)
    last = metadata.last_included
    yield WriteBatch(
        internal={
            APPLIED: encode([last.term, last.index, snapshot.clock_ms, timed_keys]),
            TERMS: encode(TermHistory.starting_at(last).pack()),
            SNAPSHOT: encode(pack_snapshot_metadata(metadata)),
            **session_rows(snapshot.sessions),
        }
    )
