"""Several calls of a machine in one message; runs in the machine's own process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def call_several(machine: Any, calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Call sync methods, `[name, *arguments]` each, one after the other."""
    return [getattr(machine, name)(*arguments) for name, *arguments in calls]
