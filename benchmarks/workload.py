"""The data that all benchmarks use: puts of 256-byte values under 16-byte keys."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from dengine_sm import Entry
from dengine_sm.config import (
    NodeConfig,
    NodeSection,
    SnapshotSection,
    StateMachineSection,
)
from dengine_sm.kv import Put, encode_command

VALUE_BYTES = 256


def pairs(count: int, *, value_bytes: int = VALUE_BYTES) -> list[tuple[bytes, bytes]]:
    """Return distinct keys in random order, with their values."""
    rng = random.Random(1)
    numbers = list(range(count))
    rng.shuffle(numbers)
    value = rng.randbytes(value_bytes - 8)
    return [(b"key-%012d" % number, number.to_bytes(8, "big") + value) for number in numbers]


def commands(count: int, *, value_bytes: int = VALUE_BYTES) -> list[bytes]:
    """Return encoded puts of `pairs`."""
    return [encode_command(Put(key, value)) for key, value in pairs(count, value_bytes=value_bytes)]


def entries(payloads: Sequence[bytes], *, first_index: int = 1) -> list[Entry]:
    """Return log entries that carry the payloads."""
    return [
        Entry(index, 1, 1_700_000_000_000 + index, payload)
        for index, payload in enumerate(payloads, first_index)
    ]


def node_config(directory: Path) -> NodeConfig:
    """Return the defaults, without snapshots: their work belongs to no single operation."""
    return NodeConfig(
        node=NodeSection(data_dir=directory),
        state_machine=StateMachineSection(backend="file", validate="structure"),
        snapshot=SnapshotSection(every_entries=None, every_bytes=None),
    )
