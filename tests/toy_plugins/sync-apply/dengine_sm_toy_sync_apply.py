"""A backend whose `apply_chunk` is a plain function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dengine_sm import ApplyResult, Backend, Durability, Entry, Limits, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore


class SyncApply(KeyValueStateMachine):
    """Applies without being awaited."""

    def apply_chunk(self, chunk: Sequence[Entry]) -> Sequence[ApplyResult]:  # type: ignore[override]  # the toy's fault
        """Return nothing."""
        return []


def create(data_dir: Path, options: object) -> Any:
    """Return the machine."""
    return SyncApply(RamStore())


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Offer the backend `sync-apply`."""
    return [Backend("sync-apply", create, durability=Durability.TRANSIENT, limits=Limits())]
