"""What a run found: frozen values, JSON-able as they are."""

from __future__ import annotations

import enum
from typing import Any

import attrs


class Status(enum.Enum):
    """What became of a check, or of a clause."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Could not be checked here; never a pass."""
    NOT_BOUND = "not bound"
    """The clause does not bind this machine, such as survival a TRANSIENT one."""
    KNOWN_FAILURE = "known failure"
    """Failed, and the backend's author had said so; not a pass."""


@attrs.frozen
class CheckResult:
    """The outcome of one check."""

    check: str
    clause: str
    """The clause that the check is named after."""
    status: Status
    time_s: float
    violated: str = ""
    """The clause found violated; empty when none was, or when the check broke down."""
    reason: str = ""
    """Why it is skipped or not bound, or the failure in one line."""
    expected: str = ""
    observed: str = ""
    history: tuple[str, ...] = ()
    """What led to the failure, one call a line: shrunk where hypothesis found it."""
    details: str = ""
    """The whole text of the failure, with the traceback."""
    evidence: dict[str, Any] = attrs.field(factory=dict)
    """What was done: kills, points swept, examples."""


@attrs.frozen
class ClauseResult:
    """The outcome of one clause: the worst of its checks."""

    clause: str
    sentence: str
    status: Status
    time_s: float
    checks: tuple[str, ...]
    reason: str = ""


@attrs.frozen
class Report:
    """One run of the kit over one backend."""

    backend: str
    version: str
    distribution: str
    options: dict[str, Any]
    durability: str
    workload: str
    contract_version: int
    kit_version: str
    python: str
    machine: str
    """Operating system, processor and number of cores."""
    profile: str
    seed: int
    started_at: str
    """ISO 8601, UTC."""
    time_s: float
    is_complete: bool
    """False when only some clauses were asked for, or the run was interrupted."""
    clauses: tuple[ClauseResult, ...]
    checks: tuple[CheckResult, ...]
    abilities: tuple[str, ...] = ()
    """Optional methods of the machine, and what the backend declares of itself."""

    @property
    def is_passed(self) -> bool:
        """Whether every clause passed or does not bind the machine."""
        good = (Status.PASSED, Status.NOT_BOUND)
        return all(result.status in good for result in self.clauses)

    def count(self, status: Status) -> int:
        """Return how many clauses have a status."""
        return sum(result.status is status for result in self.clauses)
