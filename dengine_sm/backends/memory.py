"""The backend `memory`: state in memory only, restored by the node at every start."""

from __future__ import annotations

from pathlib import Path

from dengine_sm.hookspecs import Backend, NoOptions
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.model import Durability, Limits


def create_memory(
    data_dir: Path | None = None, options: NoOptions | None = None
) -> KeyValueStateMachine:
    """Return a key-value machine that survives nothing; both arguments are ignored."""
    return KeyValueStateMachine(RamStore())


def memory_backend() -> Backend:
    """Describe the backend to the loader."""
    return Backend(
        "memory",
        create_memory,
        durability=Durability.TRANSIENT,
        summary="state in memory, restored from snapshot and log at every start",
        limits=Limits(),
        keeps_state_in_memory=True,
    )
