"""Checks of SNAP-13: writing and installing a snapshot need no memory in proportion to it."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from dengine_sm.conformance.checks.snapshot_parts import padding
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, take_snapshot
from dengine_sm.conformance.violation import CannotCheckError, NotBoundError, violates
from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import encode_command
from dengine_sm.model import Entry, SnapshotMetadata

SIZES_BYTES = (24 << 20, 72 << 20, 216 << 20)
"""An engine may have caches of fixed size; beside the largest state they are small."""
ALLOWED = 0.5
"""Of the state's size. What holds the whole state needs at least 1."""
_CHUNK = 64
_WATCH_EVERY_S = 0.0005


def writing_needs_bounded_memory(trial: Trial) -> None:
    """The memory that a process takes to write a snapshot does not grow with the state."""
    _needs_disk(trial)
    _expect_bounded(trial, "generate_snapshot_data", _growth_of_writing)


def installing_needs_bounded_memory(trial: Trial) -> None:
    """The memory that a process takes to install a snapshot does not grow with it."""
    _needs_disk(trial)
    _expect_bounded(trial, "apply_snapshot_from_file", _growth_of_installing)


def _needs_disk(trial: Trial) -> None:
    if trial.subject.keeps_state_in_memory:
        raise NotBoundError("the machine declares that it keeps its state in memory")
    if not trial.subject.is_key_value:
        raise CannotCheckError(
            f"the workload {trial.subject.workload.name!r} has no commands that make a big state"
        )
    if trial.subject.is_transient:
        raise CannotCheckError("a machine that survives nothing cannot be opened anew when filled")
    trial.needs_maker()


_Growth = Callable[[Trial, Nursery, int], int]


def _expect_bounded(trial: Trial, method: str, growth_of: _Growth) -> None:
    """Try larger and larger states, until one is large beside what the machine takes."""
    __tracebackhide__ = True
    assert trial.subject.maker is not None
    grown: dict[int, int] = {}
    with Nursery(trial.subject.maker) as nursery:
        for number, size_bytes in enumerate(SIZES_BYTES):
            trial.on_progress(number, len(SIZES_BYTES))
            if shutil.disk_usage(trial.root).free < 6 * size_bytes:
                raise CannotCheckError(f"{trial.root} has no room for states of {size_bytes} bytes")
            grown[size_bytes] = growth_of(trial, nursery, size_bytes)
            trial.evidence[method] = {str(size): growth for size, growth in grown.items()}
            if grown[size_bytes] < ALLOWED * size_bytes:
                return
    shown = ", ".join(f"{_mb(growth)} for {_mb(size)}" for size, growth in grown.items())
    violates(
        "SNAP-13",
        expected=f"{method} to take less memory than half of {_mb(SIZES_BYTES[-1])} of state",
        observed=f"growth of the process's own memory: {shown}",
    )


def _growth_of_writing(trial: Trial, nursery: Nursery, size_bytes: int) -> int:
    directory = trial.directory()
    trial.run(_fill(trial, directory, size_bytes)).stop()
    # In a process of its own: what another one freed would hide what this one takes.
    machine = nursery.spawn(directory)
    machine.start()
    label = machine.last_applied()
    path = trial.directory("snapshots") / "snapshot"
    growth = _growth(machine, "generate_snapshot_data", path, label)
    machine.kill()
    for done in (directory, path.parent):
        shutil.rmtree(done)
    return growth


def _growth_of_installing(trial: Trial, nursery: Nursery, size_bytes: int) -> int:
    directory, path = trial.directory(), trial.directory("snapshots") / "snapshot"
    metadata = trial.run(_filled_snapshot(trial, directory, path, size_bytes))
    shutil.rmtree(directory)
    directory = trial.directory()
    machine = nursery.spawn(directory)
    machine.start()
    growth = _growth(machine, "apply_snapshot_from_file", metadata, path)
    machine.kill()
    for done in (directory, path.parent):
        shutil.rmtree(done)
    return growth


async def _fill(trial: Trial, directory: Path, size_bytes: int) -> StateMachine:
    machine = trial.open(directory)
    puts = padding(trial, size_bytes, prefix=b"pad/", most=1 << 20)
    entries = (
        Entry(index, 1, FIRST_TIMESTAMP_MS, encode_command(put))
        for index, put in enumerate(puts, start=1)
    )
    while chunk := list(itertools.islice(entries, _CHUNK)):
        await machine.apply_chunk(chunk)
    return machine


async def _filled_snapshot(
    trial: Trial, directory: Path, path: Path, size_bytes: int
) -> SnapshotMetadata:
    machine = await _fill(trial, directory, size_bytes)
    metadata = await take_snapshot(machine, path)
    machine.stop()
    return metadata


def _growth(machine: RemoteMachine, method: str, *arguments: object) -> int:
    """Let the process call a method, watching its memory from here; return the growth."""
    seen = [_own_memory_bytes(machine.pid)]
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(_WATCH_EVERY_S):
            seen.append(_own_memory_bytes(machine.pid))

    watcher = threading.Thread(target=watch, name="dengine-sm-kit-memory")
    watcher.start()
    try:
        machine.request("call", method, *arguments)
    finally:
        has_ended.set()
        watcher.join()
    return max(seen) - seen[0]


def _own_memory_bytes(pid: int) -> int:
    """Return the resident anonymous memory of a process: files mapped into it do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise CannotCheckError("/proc/PID/status has no RssAnon: the memory cannot be watched")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MB"


CHECKS = (
    Check("SNAP-13", writing_needs_bounded_memory, Profile.QUICK),
    Check("SNAP-13", installing_needs_bounded_memory),
)
