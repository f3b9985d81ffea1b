"""What the kit applies to a machine, and what must come of it.

A machine that is not key-value brings a `Workload` of its own: commands, a model in plain
Python, and how to look at the state. `KeyValueWorkload` is the default.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dengine_sm.contract import StateMachine
from dengine_sm.model import Entry, LogId, Outcome


class Model(Protocol):
    """The machine as the specification has it, by the simplest means; no storage."""

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        """Carry out one entry and return the outcome and value that are due.

        Called: for every index once and in order; `data` may be empty or malformed, and
        `timestamp_ms` may go back.
        """
        ...

    def observe(self) -> Any:
        """Return what `Workload.observe` must see now; comparable with `==`."""
        ...

    def len(self) -> int:
        """Return what the machine's `len` must return now."""
        ...


class Workload(Protocol):
    """Commands for a machine, a model of it, and ways to look at its state."""

    @property
    def name(self) -> str:
        """Shown in reports, such as `kv/1`."""
        ...

    @property
    def is_key_value(self) -> bool:
        """Whether the commands are `kv/1`; checks of that command set need it."""
        ...

    def commands(self) -> SearchStrategy[bytes]:
        """Return a strategy for the data of one entry.

        Few distinct keys, so that commands meet; some that are rejected, some malformed,
        now and then empty.
        """
        ...

    def model(self) -> Model:
        """Return a model in the initial state."""
        ...

    def observe(self, machine: StateMachine) -> Any:
        """Read the whole state, or all of it that the commands can reach."""
        ...

    def observe_at_once(self, machine: StateMachine) -> tuple[Any, LogId | None] | None:
        """Read several parts of the state at one point in time.

        Returns:
            The same as `observe`, and the id it belongs to if the read tells; None when
            the machine has no such read.
        """
        ...


FIRST_TIMESTAMP_MS = 1_700_000_000_000


def sample_log(workload: Workload, count: int, seed_: int, *, first_index: int = 1) -> list[Entry]:
    """Return `count` entries of a workload; equal seeds give equal logs.

    Terms rise now and then, and timestamps jump, also back.
    """
    return log_of(sample_commands(workload, count, seed_), seed_, first_index=first_index)


def log_of(commands: Sequence[bytes], seed_: int, *, first_index: int = 1) -> list[Entry]:
    """Return commands as entries with terms that rise and timestamps that jump."""
    entries = []
    term, now_ms = 1 + seed_ % 3, FIRST_TIMESTAMP_MS
    for position, data in enumerate(commands):
        # A fixed mixture of the position, so that no generator's version matters.
        mixed = ((position + 1) * 2654435761 + seed_ * 40503) & 0xFFFFFFFF
        term += mixed % 11 == 0
        now_ms += (0, 1, 1, 5, 20, 20, 300, -40, 5000)[(mixed >> 8) % 9]
        entries.append(Entry(first_index + position, term, now_ms, data))
    return entries


def sample_commands(workload: Workload, count: int, seed_: int) -> list[bytes]:
    """Return `count` commands drawn from the workload's strategy; equal seeds, equal commands."""
    try:
        hash(workload)
    except TypeError:
        return _draw(workload, count, seed_)
    return list(_drawn_once(workload, count, seed_))  # type: ignore[arg-type]  # it can


@functools.lru_cache(maxsize=64)
def _drawn_once(workload: Workload, count: int, seed_: int) -> tuple[bytes, ...]:
    """Draw once for all checks and all machines of this process: it is a third of their time."""
    return tuple(_draw(workload, count, seed_))


def _draw(workload: Workload, count: int, seed_: int) -> list[bytes]:
    drawn: list[bytes] = []

    @seed(seed_)
    @settings(
        max_examples=count // 12 + 3,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(workload.commands(), min_size=12, max_size=12))
    def draw(commands: list[bytes]) -> None:
        drawn.extend(commands)

    draw()
    # The first example is always the simplest one.
    drawn = drawn[12:] or drawn
    # A strategy with fewer values than asked for ends early: go round.
    while 0 < len(drawn) < count:
        drawn.extend(drawn[: count - len(drawn)])
    return drawn[:count]
