"""What a check says: violated, not bound, or not to be checked here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from dengine_sm.conformance.clauses import sentence_of, source_of


class Violation(AssertionError):  # noqa: N818 - the contract's word for it
    """A machine breaks a clause."""

    def __init__(
        self, clause: str, *, expected: str, observed: str, history: Sequence[str] = ()
    ) -> None:
        super().__init__(clause, expected, observed)
        self.clause = clause
        self.expected = expected
        self.observed = observed
        self.history = tuple(history)
        """What led here, one call a line, oldest first."""

    def __str__(self) -> str:
        lines = [
            f"{self.clause} violated: {sentence_of(self.clause)}",
            f"  expected  {self.expected}",
            f"  observed  {self.observed}",
            f"  contract  {source_of(self.clause)}",
        ]
        if self.history:
            lines += ["  history"] + [f"    {line}" for line in self.history]
        return "\n".join(lines)


class NotBoundError(Exception):
    """The clause does not bind this machine; the message says why."""


class CannotCheckError(Exception):
    """The check cannot run here; the message says what is missing. Never a pass."""


def violates(
    clause: str, *, expected: object, observed: object, history: Sequence[str] = ()
) -> NoReturn:
    """Raise a `Violation`; texts are shown as they are, other values as their repr."""
    __tracebackhide__ = True
    raise Violation(
        clause, expected=_shown(expected), observed=_shown(observed), history=history
    ) from None


def expect_equal(
    clause: str, what: str, expected: object, observed: object, history: Sequence[str] = ()
) -> None:
    """Violate the clause unless both are equal; `what` says what was compared."""
    __tracebackhide__ = True
    if expected != observed:
        violates(
            clause,
            expected=f"{what}: {_shorten(repr(expected))}",
            observed=f"{what}: {_shorten(repr(observed))}",
            history=history,
        )


def expect_true(
    clause: str, expected: str, observed: object, *, holds: bool, history: Sequence[str] = ()
) -> None:
    """Violate the clause unless `holds`."""
    __tracebackhide__ = True
    if not holds:
        violates(clause, expected=expected, observed=observed, history=history)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else _shorten(repr(value))


def _shorten(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else f"{text[: limit - 20]}... ({len(text)} characters)"
