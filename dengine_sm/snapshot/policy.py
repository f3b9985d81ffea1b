"""When to take a snapshot: small rules that compose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import attrs
from attrs.validators import gt, min_len


@attrs.frozen
class SnapshotProgress:
    """What happened since the newest snapshot, or since the beginning."""

    entries_since: int
    bytes_since: int
    seconds_since: float


class SnapshotPolicy(Protocol):
    """Decides whether it is time for a snapshot."""

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due; looks at nothing but `progress`."""
        ...


def _policies(policies: Iterable[SnapshotPolicy]) -> tuple[SnapshotPolicy, ...]:
    return tuple(policies)


@attrs.frozen
class EveryEntries:
    """Due once so many entries were applied."""

    count: int = attrs.field(validator=gt(0))

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due."""
        return progress.entries_since >= self.count


@attrs.frozen
class EveryBytes:
    """Due once so many bytes of commands were applied."""

    count: int = attrs.field(validator=gt(0))

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due."""
        return progress.bytes_since >= self.count


@attrs.frozen
class EverySeconds:
    """Due once so many seconds went by, if anything was applied meanwhile."""

    seconds: float = attrs.field(validator=gt(0))

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due."""
        return progress.entries_since > 0 and progress.seconds_since >= self.seconds


@attrs.frozen
class AnyOf:
    """Due as soon as one of its policies says so; never, if it has none."""

    policies: tuple[SnapshotPolicy, ...] = attrs.field(converter=_policies)

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due."""
        return any(policy.should_snapshot(progress) for policy in self.policies)


@attrs.frozen
class AllOf:
    """Due when all of its policies, at least one, say so."""

    policies: tuple[SnapshotPolicy, ...] = attrs.field(converter=_policies, validator=min_len(1))

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due."""
        return all(policy.should_snapshot(progress) for policy in self.policies)


@attrs.frozen
class Never:
    """Never due; snapshots are taken by hand."""

    def should_snapshot(self, progress: SnapshotProgress) -> bool:
        """Tell whether a snapshot is due."""
        return False
