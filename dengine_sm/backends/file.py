"""The backend `file`: state in memory, a framed log and a checkpoint on disk."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import attrs

from dengine_sm.backends.file_store import FileStore
from dengine_sm.hookspecs import Backend, not_transient
from dengine_sm.kv import KeyValueStateMachine
from dengine_sm.model import Durability, Limits


def _at_least_a_page(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 4096:
        raise ValueError(f"{attribute.name}: expected at least 4096 bytes, observed {value}")


@attrs.frozen
class FileOptions:
    """`[state_machine.options]` of the backend `file`."""

    durability: Durability = attrs.field(default=Durability.ON_FLUSH, validator=not_transient)
    """`on_flush`: synced by the node's flushes; `per_apply`: synced before each apply returns."""
    segment_bytes: int = attrs.field(default=64 << 20, validator=_at_least_a_page)
    """Size at which a log file is closed and the next one begun."""
    checkpoint_bytes: int = attrs.field(default=128 << 20, validator=_at_least_a_page)
    """Bytes logged since the last checkpoint that make the next one due."""


def create_file(data_dir: Path, options: FileOptions | None = None) -> KeyValueStateMachine:
    """Return a key-value machine on a directory; nothing is touched before `start`."""
    options = options or FileOptions()
    store = FileStore(
        data_dir,
        sync_every_write=options.durability is Durability.PER_APPLY,
        segment_bytes=options.segment_bytes,
        checkpoint_bytes=options.checkpoint_bytes,
    )
    return KeyValueStateMachine(store)


def file_backend() -> Backend:
    """Describe the backend to the loader."""
    return Backend(
        "file",
        create_file,
        options=FileOptions,
        durability=attrgetter("durability"),
        summary="state in memory, every chunk in a checksummed log, checkpoints in the background",
        limits=Limits(),
        keeps_state_in_memory=True,
    )
