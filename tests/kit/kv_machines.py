"""Key-value machines for tests: in memory, or over files that fill up soon."""

from __future__ import annotations

from pathlib import Path

from dengine_sm.backends import create_file, create_memory
from dengine_sm.backends.file import FileOptions
from dengine_sm.kv import KeyValueStateMachine


def open_machine(kind: str, directory: Path) -> KeyValueStateMachine:
    options = FileOptions(segment_bytes=4096, checkpoint_bytes=4096)
    machine = create_memory() if kind == "memory" else create_file(directory, options)
    machine.start()
    return machine
