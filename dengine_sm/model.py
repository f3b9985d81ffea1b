"""The values that the contract speaks of: frozen, hashable, comparable.

Source: CONTRACT §1.
"""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

CHECKSUM_BYTES = 32


@attrs.frozen(order=True)
class LogId:
    """Identity of a log entry, ordered by `(term, index)`.

    Source: Raft paper §5.3; CONTRACT §1.
    """

    ZERO: ClassVar[LogId]

    term: int
    """Raft term, from 1; 0 only in `LogId.ZERO`."""
    index: int
    """Position in the log, from 1; 0 only in `LogId.ZERO`."""


LogId.ZERO = LogId(0, 0)


@attrs.frozen
class Entry:
    """A committed log entry."""

    index: int
    term: int
    timestamp_ms: int
    """Milliseconds since the epoch, stamped once by whoever appended the entry."""
    data: bytes
    """The command; empty for an entry that only advances the applied id."""

    @property
    def log_id(self) -> LogId:
        """The entry's identity."""
        return LogId(self.term, self.index)


class Outcome(enum.Enum):
    """What became of an entry."""

    APPLIED = "applied"
    REJECTED = "rejected"
    """A precondition failed or the command is malformed: deterministic, state unchanged."""
    DUPLICATE = "duplicate"
    """At or below the applied id already; state unchanged."""


@attrs.frozen
class ApplyResult:
    """The result of one entry."""

    index: int
    outcome: Outcome
    value: bytes | None = None
    """What the machine answers; its meaning is the machine's own."""

    @property
    def succeeded(self) -> bool:
        """Whether the outcome is `APPLIED`."""
        return self.outcome is Outcome.APPLIED


def _check_checksum(_instance: object, _attribute: object, checksum: bytes) -> None:
    if len(checksum) != CHECKSUM_BYTES or not any(checksum):
        raise ValueError(
            f"checksum: expected {CHECKSUM_BYTES} bytes that are not all zero, "
            f"observed {bytes(checksum).hex() or 'no bytes'}"
        )


@attrs.frozen
class SnapshotMetadata:
    """What identifies a snapshot."""

    last_included: LogId
    """The entry the snapshot ends with."""
    checksum: bytes = attrs.field(validator=_check_checksum)
    """32 bytes over everything in the snapshot directory; never all zero."""
    format: str
    """Names the layout of the snapshot directory, such as `kv-portable/1`."""


@attrs.frozen
class ScanResult:
    """A range read at one point in time."""

    entries: tuple[tuple[bytes, bytes], ...]
    """`(key, value)` pairs, sorted by key bytes."""
    last_applied: LogId
    """The id of exactly the state that was read."""


class Durability(enum.Enum):
    """When what was applied survives a crash. Source: CONTRACT §3."""

    PER_APPLY = "per_apply"
    """When `apply_chunk` returns."""
    ON_FLUSH = "on_flush"
    """At the latest when `flush` returns; a crash may lose a tail of whole chunks."""
    TRANSIENT = "transient"
    """Never; the node restores the machine from snapshot and log."""


class ReadConsistency(enum.Enum):
    """What a read through a node may miss."""

    LINEARIZABLE = "linearizable"
    """Nothing that was acknowledged before the read began."""
    EVENTUAL = "eventual"
    """The newest entries; answered from the local state without asking the log."""


@attrs.frozen
class Limits:
    """How much a key-value machine accepts; the same on every replica."""

    max_key_bytes: int = 64 * 1024
    """A larger key is `REJECTED` (READ-4)."""
    max_value_bytes: int = 16 * 1024 * 1024
    """A larger value is `REJECTED` (READ-4)."""
    max_sessions: int = attrs.field(default=4096, validator=attrs.validators.ge(1))
    """One session more drives out the one whose last use is longest ago."""
