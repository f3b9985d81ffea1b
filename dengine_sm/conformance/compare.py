"""What changed between two reports: clauses and checks that got better or worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from dengine_sm.conformance.report_json import as_json
from dengine_sm.conformance.results import Report, Status

FACTS = (
    "backend",
    "version",
    "distribution",
    "options",
    "durability",
    "workload",
    "abilities",
    "profile",
    "seed",
    "contract_version",
    "kit_version",
    "python",
    "machine",
    "is_complete",
)
"""What two runs may differ in, that which explains most first."""

WORSE, BETTER, CHANGED, NEW, REMOVED = "worse", "better", "changed", "new", "removed"

_PROVEN = {
    Status.PASSED: 4,
    # Less than passed: what an earlier version promised and kept, this one does not promise.
    Status.NOT_BOUND: 3,
    Status.SKIPPED: 2,
    Status.KNOWN_FAILURE: 1,
    Status.FAILED: 0,
}


@attrs.frozen
class FactChange:
    """Something that two runs differ in."""

    name: str
    old: Any
    new: Any


@attrs.frozen
class StatusChange:
    """A clause or check whose status differs, or that only one report has."""

    kind: str
    """`worse`, `better`, `changed` (neither: still not proven), `new` or `removed`."""
    name: str
    """Clause id or name of the check."""
    old: Status | None
    new: Status | None
    reason: str = ""
    """The new report's; the old one's for what is removed."""


@attrs.frozen
class Comparison:
    """What changed from an old report to a new one."""

    facts: tuple[FactChange, ...]
    clauses: tuple[StatusChange, ...]
    checks: tuple[StatusChange, ...]
    unchanged: int
    """Clauses of both reports with equal status."""

    @property
    def is_worse(self) -> bool:
        """Whether a clause or check of both reports got worse."""
        return any(change.kind == WORSE for change in (*self.clauses, *self.checks))

    def count(self, kind: str) -> int:
        """Return how many clauses changed in one way."""
        return sum(change.kind == kind for change in self.clauses)


def compare(old: Report, new: Report) -> Comparison:
    """Compare two reports, of one backend or of two.

    A clause that only one of them has, because only some were asked for, is neither
    better nor worse.
    """
    old_clauses = {r.clause: (r.status, r.reason) for r in old.clauses}
    new_clauses = {r.clause: (r.status, r.reason) for r in new.clauses}
    changes = _changes(old_clauses, new_clauses)
    return Comparison(
        facts=tuple(
            FactChange(name, getattr(old, name), getattr(new, name))
            for name in FACTS
            if getattr(old, name) != getattr(new, name)
        ),
        clauses=changes,
        checks=_changes(
            {r.check: (r.status, r.reason) for r in old.checks},
            {r.check: (r.status, r.reason) for r in new.checks},
        ),
        unchanged=len(set(old_clauses) & set(new_clauses))
        - sum(change.kind in (WORSE, BETTER, CHANGED) for change in changes),
    )


def summary(comparison: Comparison) -> str:
    """Return how many clauses changed, in one line."""
    kinds = (WORSE, BETTER, CHANGED, NEW, REMOVED)
    counts = [f"{comparison.count(kind)} {kind}" for kind in kinds if comparison.count(kind)]
    return f"clauses: {', '.join([*counts, f'{comparison.unchanged} unchanged'])}"


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON values."""
    told: dict[str, Any] = as_json(attrs.asdict(comparison))
    return {"worse": comparison.is_worse, **told}


_Found = Mapping[str, tuple[Status, str]]


def _changes(old: _Found, new: _Found) -> tuple[StatusChange, ...]:
    """Return the differences, in the order of the new report; what is gone comes last."""
    found = []
    for name, (status, reason) in new.items():
        before = old[name][0] if name in old else None
        if before is not status:
            found.append(StatusChange(_kind(before, status), name, before, status, reason))
    for name, (status, reason) in old.items():
        if name not in new:
            found.append(StatusChange(REMOVED, name, status, None, reason))
    return tuple(found)


def _kind(old: Status | None, new: Status) -> str:
    if old is None:
        return NEW
    if _PROVEN[new] < _PROVEN[old]:
        return WORSE
    # Failed before and only skipped now proves nothing.
    return BETTER if new in (Status.PASSED, Status.NOT_BOUND) else CHANGED
