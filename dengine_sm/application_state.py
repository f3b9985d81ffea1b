"""What an application machine holds in memory, and the frames that lead to it.

A frame is one of two CBOR arrays: `[0, [[index, term, timestamp_ms, data], ...]]`, the new
entries of a chunk; or `[1, [term, index], snapshot metadata or null]`, when applied id or
metadata moved without entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import attrs

from dengine_sm.bookkeeping import TermHistory, check_advance, check_chunk
from dengine_sm.codec import (
    decode,
    encode,
    pack_log_id,
    pack_snapshot_metadata,
    unpack_log_id,
    unpack_snapshot_metadata,
)
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome, SnapshotMetadata

CHUNK = 0
PLACE = 1


class Application(Protocol):
    """A deterministic state in memory; what a custom machine's author writes.

    One thread changes it at a time, and never while another reads. It uses no clock,
    randomness or environment: time is `Entry.timestamp_ms` (DET-2). A method
    `query(request: bytes) -> bytes` is optional.
    """

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        """Carry out one command; `data` is never empty, time never goes back.

        Malformed data gives `REJECTED`, with the state unchanged (APPLY-7). An exception
        is a defect: the chunk is undone and the machine refuses to go on.
        """
        ...

    def get(self, key: bytes) -> bytes | None:
        """Return what the application keeps under a key, or None."""
        ...

    def dump(self) -> Iterable[bytes]:
        """Return the state as records, pinned at the call: later applies do not show.

        The records are consumed in another thread, meanwhile entries are applied. Equal
        states should give equal records: iterate in sorted order.
        """
        ...

    def load(self, records: Iterable[bytes]) -> None:
        """Replace the state by what `dump` returned.

        Called: on a new object, before anything else.

        Raises:
            ValueError: the records are none of this application.
        """
        ...

    def len(self) -> int:
        """Return the number of entries in the state; 0 in a new object."""
        ...


class ApplicationFailure(Exception):  # noqa: N818 - internal; wraps whatever was raised
    """An application's `apply` raised, or returned something else than a result."""


@attrs.define
class MachineState:
    """The application and its place in the log; they change together."""

    application: Application
    terms: TermHistory = attrs.field(factory=TermHistory)
    last_applied: LogId = LogId.ZERO
    clock_ms: int = 0
    """Largest timestamp applied so far."""
    snapshot_metadata: SnapshotMetadata | None = None

    def apply(self, entries: Sequence[Entry]) -> list[ApplyResult]:
        """Apply new entries in order.

        Raises:
            ApplicationFailure: the application raised; this state is not to be used.
        """
        results = []
        for entry in entries:
            self.clock_ms = max(self.clock_ms, entry.timestamp_ms)
            outcome, value = Outcome.APPLIED, None
            if entry.data:
                given = Entry(entry.index, entry.term, self.clock_ms, bytes(entry.data))
                outcome, value = _apply_one(self.application, given)
            results.append(ApplyResult(entry.index, outcome, value))
        if entries:
            self.terms.extend(entries)
            self.last_applied = entries[-1].log_id
        return results

    def advance(self, last_applied: LogId) -> None:
        """Move the applied id past entries that were not seen."""
        if check_advance(self.last_applied, last_applied):
            self.terms.skip_to(self.last_applied, last_applied)
            self.last_applied = last_applied

    def replay(self, frame: bytes) -> None:
        """Apply a frame of the log.

        Raises:
            ValueError: it is no frame.
            LogGapError: it does not follow this state; `LogOrderError` likewise.
        """
        match decode(frame):
            case [0, [*rows]]:
                entries = [_entry(row) for row in rows]
                if check_chunk(entries, self.last_applied):
                    raise ValueError(f"entry {entries[0].log_id} is there a second time")
                self.apply(entries)
            case [1, log_id, metadata]:
                self.advance(unpack_log_id(log_id))
                self.snapshot_metadata = _metadata(metadata)
            case _:
                raise ValueError(f"not a frame of an application machine: {frame[:40]!r}")

    def pack_place(self) -> list[Any]:
        """Return all but the application as an array."""
        metadata = self.snapshot_metadata
        return [
            pack_log_id(self.last_applied),
            self.clock_ms,
            self.terms.pack(),
            None if metadata is None else pack_snapshot_metadata(metadata),
        ]

    def unpack_place(self, place: Any) -> None:
        """Take over what `pack_place` returned.

        Raises:
            ValueError: the item is something else.
        """
        match place:
            case [last_applied, int(clock_ms), terms, metadata]:
                self.last_applied = unpack_log_id(last_applied)
                self.clock_ms = clock_ms
                self.terms = TermHistory.unpack(terms)
                self.snapshot_metadata = _metadata(metadata)
            case _:
                raise ValueError(f"place in the log: expected 4 fields, observed {place!r}")


def _apply_one(application: Application, entry: Entry) -> tuple[Outcome, bytes | None]:
    try:
        outcome, value = application.apply(entry)
    except MemoryError:
        raise
    except Exception as exc:
        raise ApplicationFailure(
            f"entry {entry.log_id}: apply raised {type(exc).__name__}: {exc}"
        ) from exc
    if outcome not in (Outcome.APPLIED, Outcome.REJECTED):
        raise ApplicationFailure(
            f"entry {entry.log_id}: apply returned {outcome!r}, expected APPLIED or REJECTED"
        )
    return outcome, value


def encode_chunk(entries: Sequence[Entry]) -> bytes:
    """Return the frame of a chunk's new entries."""
    return encode([CHUNK, [[e.index, e.term, e.timestamp_ms, bytes(e.data)] for e in entries]])


def encode_place(last_applied: LogId, metadata: SnapshotMetadata | None) -> bytes:
    """Return the frame of an applied id and snapshot metadata."""
    packed = None if metadata is None else pack_snapshot_metadata(metadata)
    return encode([PLACE, pack_log_id(last_applied), packed])


def _entry(row: Any) -> Entry:
    match row:
        case [int(index), int(term), int(timestamp_ms), bytes(data)]:
            return Entry(index, term, timestamp_ms, data)
    raise ValueError(f"entry: expected 4 fields, observed {row!r}")


def _metadata(item: Any) -> SnapshotMetadata | None:
    return None if item is None else unpack_snapshot_metadata(item)
