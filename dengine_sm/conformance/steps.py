"""What a random history puts into its log, in words that a reader understands."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dengine_sm.conformance.workload import Workload
from dengine_sm.kv.commands import (
    Command,
    CompareAndSwap,
    Delete,
    InSession,
    OpenSession,
    Put,
    decode_command,
)

JUMPS_MS = (0, 0, 1, 20, 400, 6000, -40, -9000)


@attrs.frozen(repr=False)
class Step:
    """One entry to come: its command, the jump of its timestamp, whether its term is new."""

    data: bytes
    jump_ms: int
    is_new_term: bool
    words: str
    """The command, readable."""

    def __repr__(self) -> str:
        jump = f" {self.jump_ms:+} ms" if self.jump_ms else ""
        return f"{self.words}{jump}{' in a new term' if self.is_new_term else ''}"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Show the words; hypothesis would show how the value was drawn."""
        printer.text(repr(self))


def steps(workload: Workload) -> SearchStrategy[Step]:
    """Return a strategy for one entry."""
    is_key_value = workload.is_key_value

    def step(drawn: tuple[bytes, int, int]) -> Step:
        data, jump_ms, lot = drawn
        return Step(data, jump_ms, lot == 1, command_in_words(data, is_key_value=is_key_value))

    # One entry in six begins a term.
    drawn = st.tuples(workload.commands(), st.sampled_from(JUMPS_MS), st.integers(0, 5))
    return drawn.map(step)


def command_in_words(data: bytes, *, is_key_value: bool) -> str:
    """Return a command for a reader."""
    if not data:
        return "no command"
    if not is_key_value:
        text = data.decode(errors="replace")
        return text if text.isprintable() else repr(data)
    try:
        command = decode_command(data)
    except ValueError:
        return f"malformed {data!r}"
    return "no command" if command is None else _in_words(command)


def _in_words(command: Command) -> str:
    match command:
        case Put(key, value, None):
            return f"Put({key!r}, {value!r})"
        case Put(key, value, ttl_ms):
            return f"Put({key!r}, {value!r}, ttl_ms={ttl_ms})"
        case Delete(key):
            return f"Delete({key!r})"
        case CompareAndSwap(key, expected, new):
            return f"CompareAndSwap({key!r}, {expected!r}, {new!r})"
        case OpenSession():
            return "OpenSession()"
        case InSession(session_id, sequence, change):
            return f"InSession({session_id}, {sequence}, {_in_words(change)})"
