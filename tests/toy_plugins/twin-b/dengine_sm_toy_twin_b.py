"""One of two distributions that register the name `twin`."""

from __future__ import annotations

from dengine_sm import Backend, Durability, Limits, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Offer the backend `twin`."""
    return [
        Backend(
            "twin",
            lambda data_dir, options: KeyValueStateMachine(RamStore()),
            durability=Durability.TRANSIENT,
            limits=Limits(),
        )
    ]
