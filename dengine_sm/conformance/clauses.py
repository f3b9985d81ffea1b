"""The clauses of the contract, read from where they are written: `contract.py`."""

from __future__ import annotations

import functools
import inspect
import re

import attrs

from dengine_sm import contract

GROUPS = ("LIFE", "APPLY", "LOG", "CRASH", "SNAP", "READ", "DET", "RESET")
_START = re.compile(rf"^(?P<id>(?:{'|'.join(GROUPS)})-\d+): (?P<text>.*)$")


@attrs.frozen
class Clause:
    """One numbered promise."""

    id: str
    sentence: str
    source: str
    """Dotted name of the docstring that holds it."""


def clauses() -> dict[str, Clause]:
    """Return every clause by id, in the contract's order: life first, reset last."""
    return dict(_clauses())


def sentence_of(clause: str) -> str:
    """Return a clause's sentence; empty for what is no clause."""
    found = _clauses().get(clause)
    return found.sentence if found else ""


def source_of(clause: str) -> str:
    """Return where a clause is written."""
    found = _clauses().get(clause)
    return f"{found.source}, {clause}" if found else clause


@functools.cache
def _clauses() -> dict[str, Clause]:
    found = _in_docstring(contract.__doc__ or "", "dengine_sm.contract")
    for name, method in vars(contract.StateMachine).items():
        source = f"dengine_sm.contract.StateMachine.{name}"
        for item in _in_docstring(inspect.getdoc(method) or "", source).values():
            found.setdefault(item.id, item)
    return {item.id: item for item in sorted(found.values(), key=lambda item: _place(item.id))}


def _place(clause: str) -> tuple[int, int]:
    group, _, number = clause.partition("-")
    return GROUPS.index(group), int(number)


def _in_docstring(text: str, source: str) -> dict[str, Clause]:
    """Collect `ID: sentence` lines with the lines that go on, deeper indented."""
    found: dict[str, Clause] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        # "Guarantees: LIFE-1, LIFE-2" only refers; "Guarantees: LOG-1: equal ..." states.
        start = _START.match(line.strip().removeprefix("Guarantees: "))
        if start is None:
            continue
        parts = [start["text"]]
        depth = len(line) - len(line.lstrip())
        for more in lines[number + 1 :]:
            stripped = more.strip()
            if not stripped or len(more) - len(more.lstrip()) <= depth or _START.match(stripped):
                break
            parts.append(stripped)
        found[start["id"]] = Clause(start["id"], " ".join(parts), source)
    return found
