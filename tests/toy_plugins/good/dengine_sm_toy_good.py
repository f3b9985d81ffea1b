"""A backend as a third party would ship it: key-value, in memory, with an option."""

from __future__ import annotations

from pathlib import Path

import attrs

from dengine_sm import Backend, Durability, Limits, StateMachine, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore


@attrs.frozen
class GoodOptions:
    """`[state_machine.options]` of the backend `good`."""

    max_value_bytes: int = attrs.field(default=1024, validator=attrs.validators.ge(16))


def create(data_dir: Path, options: GoodOptions) -> StateMachine:
    """Return a machine that lives in memory."""
    import sqlite3  # noqa: F401 - stands for a heavy native library, loaded when used

    return KeyValueStateMachine(RamStore(), limits=Limits(max_value_bytes=options.max_value_bytes))


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Offer the backend `good`."""
    return [
        Backend(
            "good",
            create,
            options=GoodOptions,
            durability=Durability.TRANSIENT,
            summary="a toy that keeps the contract",
            limits=Limits(max_value_bytes=1024),
        )
    ]
