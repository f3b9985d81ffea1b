"""The backend `lmdb` of dengine_sm: a key-value state machine on LMDB."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from dengine_sm import Backend, Limits, hookimpl
from dengine_sm.kv import KeyValueStateMachine
from dengine_sm_lmdb.options import LMDBOptions

__all__ = ["LMDBOptions", "create_lmdb", "dengine_sm_backends"]


def create_lmdb(data_dir: Path, options: LMDBOptions | None = None) -> KeyValueStateMachine:
    """Return a key-value machine on a directory; nothing is touched before `start`."""
    # Here, not above: listing backends must not load the native library.
    from dengine_sm_lmdb.store import LMDBStore

    return KeyValueStateMachine(LMDBStore(data_dir, options))


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Describe the backend to the loader."""
    return [
        Backend(
            "lmdb",
            create_lmdb,
            options=LMDBOptions,
            durability=attrgetter("durability"),
            summary="state in a memory-mapped copy-on-write B+ tree, reads without locks",
            limits=Limits(),
            detects_damage=False,
        )
    ]
