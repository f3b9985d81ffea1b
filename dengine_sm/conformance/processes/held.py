"""Keep what reads return while the machine changes; runs in the machine's own process.

Imports neither pytest nor hypothesis, as nothing does that a machine's process runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dengine_sm.contract import StateMachine
from dengine_sm.model import Entry, SnapshotMetadata

Problem = list[Any]
"""`[what was read, when it was wrong, expected, observed]`"""


async def hold_reads(
    machine: StateMachine,
    keys: Sequence[bytes],
    chunks: Sequence[Sequence[Entry]],
    metadata: SnapshotMetadata | None,
    snapshot_path: Path | None,
    stop: bool,
) -> list[Problem]:
    """Read, then change the machine step by step, and compare what was read each time.

    Args:
        machine: running, with values at the keys.
        keys: read with every method that the machine has.
        chunks: applied one after the other.
        metadata: of a snapshot to install afterwards; None for none.
        snapshot_path: its directory.
        stop: whether to stop and start at the end.

    Returns:
        What is not, or did not stay, what it should be.
    """
    held = _read(machine, keys)
    problems: list[Problem] = [
        [name, "when it was read", "bytes", type(value).__name__]
        for name, value in held
        if not isinstance(value, bytes)
    ]
    if problems:
        return problems
    copies = [bytes(bytearray(value)) for _, value in held]

    def compare(when: str) -> None:
        problems.extend(
            [name, when, expected, value]
            for (name, value), expected in zip(held, copies, strict=True)
            if value != expected
        )

    for chunk in chunks:
        await machine.apply_chunk(chunk)
        compare(f"after entry {chunk[-1].index}")
    machine.flush()
    if metadata is not None and snapshot_path is not None:
        await machine.apply_snapshot_from_file(metadata, snapshot_path)
        compare("after an install")
    if stop:
        _stop_and_start(machine, compare)
    return problems


def _stop_and_start(machine: StateMachine, compare: Callable[[str], None]) -> None:
    machine.stop()
    compare("after stop")
    machine.start()
    compare("after a restart")


def _read(machine: Any, keys: Sequence[bytes]) -> list[tuple[str, Any]]:
    """Return every value that the reads give for the keys, named."""
    found = [(f"get({key!r:.40})", machine.get(key)) for key in keys]
    if hasattr(machine, "get_multi"):
        values = machine.get_multi(list(keys))
        found += [(f"get_multi, {key!r:.40}", v) for key, v in zip(keys, values, strict=True)]
    if hasattr(machine, "scan_prefix"):
        for key, value in machine.scan_prefix(b"").entries:
            found += [(f"scan_prefix, key {key!r:.40}", key), (f"scan_prefix, {key!r:.40}", value)]
    return found
