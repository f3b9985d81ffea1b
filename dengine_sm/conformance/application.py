"""The workload of a custom machine whose model is an `Application`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from hypothesis.strategies import SearchStrategy

from dengine_sm.application import Application
from dengine_sm.contract import StateMachine
from dengine_sm.model import Entry, LogId, Outcome


class ApplicationModel:
    """An application in memory, asked the same questions as the machine."""

    def __init__(
        self, application: Application, observe: Callable[[Application | StateMachine], Any]
    ) -> None:
        self.application = application
        self._observe = observe
        self._clock_ms = 0

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        """Carry out one entry, with the time clamped (DET-2)."""
        self._clock_ms = max(self._clock_ms, entry.timestamp_ms)
        if not entry.data:
            return Outcome.APPLIED, None
        return self.application.apply(attrs.evolve(entry, timestamp_ms=self._clock_ms))

    def observe(self) -> Any:
        """Ask the application."""
        return self._observe(self.application)

    def len(self) -> int:
        """Return the number of entries."""
        return self.application.len()


@attrs.frozen
class ApplicationWorkload:
    """Commands for an `Application`, which is its own model.

    What it proves is everything around the application: that the machine, its disk and its
    snapshots never part from what the application in plain memory does.
    """

    name: str
    application_factory: Callable[[], Application]
    strategy: SearchStrategy[bytes]
    """Data of one entry: what applies, what is rejected, what is malformed."""
    look: Callable[[Any], Any]
    """Reads the state through `get` or `query`, from a machine or an application alike."""
    is_key_value: bool = False
    look_is_atomic: bool = False
    """Whether `look` is a single read, hence one point in time."""

    def commands(self) -> SearchStrategy[bytes]:
        """Return the strategy."""
        return self.strategy

    def model(self) -> ApplicationModel:
        """Return a new application."""
        return ApplicationModel(self.application_factory(), self.look)

    def observe(self, machine: StateMachine) -> Any:
        """Ask the machine."""
        return self.look(machine)

    def observe_at_once(self, machine: StateMachine) -> tuple[Any, LogId | None] | None:
        """Ask the machine, if one question is enough."""
        return (self.look(machine), None) if self.look_is_atomic else None
