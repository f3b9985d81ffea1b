"""A backend whose machine has no `flush_async`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dengine_sm import Backend, Durability, Limits, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore


class MissingMethod:
    """Hands everything but one method to a whole machine."""

    def __init__(self) -> None:
        self._whole = KeyValueStateMachine(RamStore())

    def __getattr__(self, name: str) -> Any:
        if name == "flush_async":
            raise AttributeError(name)
        return getattr(self._whole, name)


def create(data_dir: Path, options: object) -> Any:
    """Return the machine."""
    return MissingMethod()


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Offer the backend `missing-method`."""
    return [Backend("missing-method", create, durability=Durability.TRANSIENT, limits=Limits())]
