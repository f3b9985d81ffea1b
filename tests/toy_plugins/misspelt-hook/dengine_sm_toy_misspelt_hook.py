"""A plugin whose hook lacks a letter."""

from __future__ import annotations

from dengine_sm import Backend, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore


@hookimpl
def dengine_sm_backend() -> list[Backend]:
    """Offer a backend, if anybody asked."""
    return [Backend("misspelt", lambda data_dir, options: KeyValueStateMachine(RamStore()))]
