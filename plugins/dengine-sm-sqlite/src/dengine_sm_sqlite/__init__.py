"""The backend `sqlite`: the state in one file that any SQLite tool can read.

`sqlite3` is imported by the factory, not here: listing backends stays light.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import attrs

from dengine_sm import Backend, Durability, Limits, hookimpl, not_transient
from dengine_sm.kv import KeyValueStateMachine

__all__ = ["SQLiteOptions", "create_sqlite", "dengine_sm_backends"]

_LEAST = {"cache_bytes": 256 << 10, "checkpoint_bytes": 64 << 10}


def _at_least(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    least = _LEAST[attribute.name]
    if value < least:
        raise ValueError(f"{attribute.name}: expected at least {least} bytes, observed {value}")


@attrs.frozen
class SQLiteOptions:
    """`[state_machine.options]` of the backend `sqlite`."""

    durability: Durability = attrs.field(default=Durability.ON_FLUSH, validator=not_transient)
    """`on_flush`: synced by the node's flushes; `per_apply`: synced before each apply returns."""
    cache_bytes: int = attrs.field(default=8 << 20, validator=_at_least)
    """Page cache of the writer and of each reader; a handful of readers are kept."""
    checkpoint_bytes: int = attrs.field(default=64 << 20, validator=_at_least)
    """Size of the write-ahead log that starts a checkpoint in the background."""


def create_sqlite(data_dir: Path, options: SQLiteOptions | None = None) -> KeyValueStateMachine:
    """Return a key-value machine on a directory; nothing is touched before `start`."""
    from dengine_sm_sqlite.store import SQLiteStore

    options = options or SQLiteOptions()
    store = SQLiteStore(
        data_dir,
        sync_every_write=options.durability is Durability.PER_APPLY,
        cache_bytes=options.cache_bytes,
        checkpoint_bytes=options.checkpoint_bytes,
    )
    return KeyValueStateMachine(store)


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Describe the backend to the loader."""
    return [
        Backend(
            "sqlite",
            create_sqlite,
            options=SQLiteOptions,
            durability=attrgetter("durability"),
            summary="state in one SQLite file (WAL), readable with the sqlite3 shell",
            limits=Limits(),
            keeps_state_in_memory=False,
            detects_damage=False,
        )
    ]
