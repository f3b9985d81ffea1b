"""A backend whose `apply_chunk` wants more than the contract gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dengine_sm import ApplyResult, Backend, Durability, Entry, Limits, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore


class WrongSignature(KeyValueStateMachine):
    """Asks for a second argument, and scans without options."""

    async def apply_chunk(self, chunk: Sequence[Entry], fsync: bool) -> Sequence[ApplyResult]:  # type: ignore[override]  # the toy's fault
        """Apply."""
        return await super().apply_chunk(chunk)

    def scan_prefix(self, prefix: bytes) -> Any:  # type: ignore[override]  # the toy's fault
        """Scan."""
        return super().scan_prefix(prefix)


def create(data_dir: Path, options: object) -> Any:
    """Return the machine."""
    return WrongSignature(RamStore())


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Offer the backend `wrong-signature`."""
    return [Backend("wrong-signature", create, durability=Durability.TRANSIENT, limits=Limits())]
