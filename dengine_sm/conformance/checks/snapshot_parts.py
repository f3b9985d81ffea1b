"""What the snapshot checks share: a machine at a glance, snapshots on disk, big states."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.trial import Trial, apply_all, take_snapshot
from dengine_sm.conformance.violation import (
    CannotCheckError,
    NotBoundError,
    Violation,
    expect_equal,
    violates,
)
from dengine_sm.conformance.workload import log_of, sample_commands
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Put, encode_command
from dengine_sm.model import Entry, LogId, SnapshotMetadata

HIGHER_TERMS = 1000
"""Added to the terms of a log whose ids must be above those of every sample log."""

_VALUE_BYTES = 16 * 1024
_FEW_KEYS = 4096
"""The model looks at every key for every entry: more would take it minutes."""
_SAMPLE_ENTRIES = 24


@attrs.frozen
class Sight:
    """What a machine shows of itself: two of them tell whether anything has changed."""

    last_applied: LogId
    snapshot_metadata: SnapshotMetadata | None
    length: int
    terms: tuple[int | None, ...]
    """Of the indices from 1 to one beyond the applied one."""
    state: Any


def sight_of(trial: Trial, machine: StateMachine) -> Sight:
    """Look at a running machine."""
    applied = machine.last_applied()
    return Sight(
        applied,
        machine.snapshot_metadata(),
        machine.len(),
        tuple(machine.entry_term(index) for index in range(1, applied.index + 2)),
        trial.subject.workload.observe(machine),
    )


def expect_unchanged(
    clause: str,
    trial: Trial,
    machine: StateMachine,
    before: Sight,
    what: str,
    history: Sequence[str] = (),
) -> None:
    """Violate the clause unless the machine shows what it showed before."""
    __tracebackhide__ = True
    after = sight_of(trial, machine)
    for field in attrs.fields(Sight):
        expected, observed = getattr(before, field.name), getattr(after, field.name)
        expect_equal(clause, f"{field.name} after {what}", expected, observed, history)


def restart(trial: Trial, machine: StateMachine) -> bool:
    """Stop and start a machine, unless it survives nothing; tell whether it was done."""
    if trial.subject.is_transient:
        return False
    machine.stop()
    machine.start()
    return True


async def applied_machine(
    trial: Trial, oracle: Oracle, upto: int, directory: Path | None = None
) -> StateMachine:
    """Return a running machine, on a fresh directory unless given, that has applied a log."""
    machine = trial.open(directory)
    await apply_all(machine, oracle.entries(1, upto))
    return machine


@attrs.frozen
class Taken:
    """A snapshot on disk."""

    metadata: SnapshotMetadata
    path: Path


async def snapshot_of(trial: Trial, machine: StateMachine) -> Taken:
    """Write a snapshot of a machine's present state into a new directory."""
    path = trial.directory("snapshots") / "snapshot"
    return Taken(await take_snapshot(machine, path), path)


async def snapshot_at(trial: Trial, oracle: Oracle, label: int) -> Taken:
    """Write a snapshot of the state at an index, from a machine that is gone afterwards."""
    machine = await applied_machine(trial, oracle, label)
    taken = await snapshot_of(trial, machine)
    machine.stop()
    return taken


class Snapshots:
    """Snapshots of one log at any index, each written once."""

    def __init__(self, trial: Trial, oracle: Oracle) -> None:
        self._trial = trial
        self._oracle = oracle
        self._taken: dict[int, Taken] = {}

    async def at(self, label: int) -> Taken:
        """Return the snapshot of the state at an index."""
        if label not in self._taken:
            self._taken[label] = await snapshot_at(self._trial, self._oracle, label)
        return self._taken[label]


@asynccontextmanager
async def generating(
    machine: StateMachine, path: Path, last_included: LogId
) -> AsyncIterator[asyncio.Task[bytes]]:
    """Begin a snapshot: inside, it has run up to its first suspension and not further."""
    task = asyncio.ensure_future(machine.generate_snapshot_data(path, last_included))
    try:
        # One turn of the loop: the task was queued before this one goes on.
        await asyncio.sleep(0)
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


async def loop_turns(count: int) -> None:
    """Let everything else in the event loop run, so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def apply_beside(machine: StateMachine, chunk: Sequence[Entry]) -> Sequence[Any]:
    """Apply a chunk while a snapshot is written, which nothing excuses from."""
    __tracebackhide__ = True
    history = ["begin generate_snapshot_data", f"apply_chunk({span(chunk)})"]
    with must_work("SNAP-3", "apply_chunk to work while a snapshot is written", history):
        return await machine.apply_chunk(chunk)


def raised(exc: BaseException) -> str:
    """Name an exception that was not expected."""
    return f"{type(exc).__name__}: {exc}"


@contextmanager
def must_work(clause: str, what: str, history: Sequence[str] = ()) -> Iterator[None]:
    """Violate the clause if anything but a verdict is raised inside."""
    __tracebackhide__ = True
    try:
        yield
    except (Violation, NotBoundError, CannotCheckError):
        raise
    except Exception as exc:
        violates(clause, expected=what, observed=raised(exc), history=history)


async def install(
    clause: str, taken: Taken, machine: StateMachine, history: Sequence[str] = ()
) -> None:
    """Install a sound snapshot, which must work."""
    __tracebackhide__ = True
    last = taken.metadata.last_included
    with must_work(clause, f"the snapshot of {last} to be installed", history):
        await machine.apply_snapshot_from_file(taken.metadata, taken.path)


def span(chunk: Sequence[Entry]) -> str:
    """Name a chunk in a history."""
    return f"entries {chunk[0].index}..{chunk[-1].index}" if chunk else "no entries"


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file of a snapshot directory, by its path in there."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in files_in(directory)}


def files_in(directory: Path) -> list[Path]:
    """Return the files of a snapshot directory, subdirectories included, sorted."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def sampled(count: int, points: int, salt: int) -> list[int]:
    """Return about `points` numbers of `range(count)`, both ends included; 0 for all."""
    if not points or points >= count:
        return list(range(count))
    shift = salt * 0.618 % 1.0
    between = (int((place + shift) * count / points) for place in range(points))
    return sorted({0, count - 1, *between})


def padding(
    trial: Trial, size_bytes: int, *, prefix: bytes, salt: int = 0, most: int = _FEW_KEYS
) -> Iterator[Put]:
    """Yield puts of incompressible values under keys of their own, so many bytes together.

    Args:
        trial: gives the seed, and the limit that values keep to.
        size_bytes: of all values; fewer where that takes more than `most` keys.
        prefix: of the keys.
        salt: other numbers give other values.
        most: number of keys.
    """
    limits = trial.subject.limits
    largest = _VALUE_BYTES if limits is None else limits.max_value_bytes
    value_bytes = min(_VALUE_BYTES, largest)
    seed = f"{trial.seed} {salt}".encode()
    for number in range(min(most, -(-size_bytes // value_bytes))):
        value = hashlib.shake_128(b"%s %d" % (seed, number)).digest(value_bytes)
        yield Put(prefix + b"%08d" % number, value, None)


def big_log(
    trial: Trial, size_bytes: int, *, prefix: bytes = b"pad/", salt: int = 0, entries: int = 0
) -> list[Entry]:
    """Return a log whose state takes some time to write.

    Args:
        trial: gives workload and seed.
        size_bytes: as for `padding`; a machine that is not key-value gets its usual log.
        prefix: of the keys with the big values.
        salt: other numbers give other logs.
        entries: this many more of the workload's own commands at the end.
    """
    workload, seed = trial.subject.workload, trial.seed * 1009 + salt
    if not trial.subject.is_key_value:
        commands = sample_commands(workload, trial.effort.entries + entries, seed)
        return log_of(commands, seed)
    sample = sample_commands(workload, _SAMPLE_ENTRIES + entries, seed)
    pads = padding(trial, size_bytes, prefix=prefix, salt=salt)
    commands = [
        *sample[:_SAMPLE_ENTRIES],
        *map(encode_command, pads),
        *sample[_SAMPLE_ENTRIES:],
    ]
    return log_of(commands, seed)


def with_higher_terms(log: Sequence[Entry]) -> list[Entry]:
    """Return a log whose ids are above those of every sample log as long or shorter."""
    return [attrs.evolve(entry, term=entry.term + HIGHER_TERMS) for entry in log]


def chunks(entries: Sequence[Entry], size: int) -> Iterator[Sequence[Entry]]:
    """Cut entries into chunks."""
    for start in itertools.count(0, size):
        if start >= len(entries):
            return
        yield entries[start : start + size]


def timed_log(term: int, *puts: tuple[bytes, int | None, int]) -> list[Entry]:
    """Return puts of `(key, ttl_ms, timestamp_ms)` as entries."""
    return [
        Entry(index, term, timestamp_ms, encode_command(Put(key, b"%d" % index, ttl_ms)))
        for index, (key, ttl_ms, timestamp_ms) in enumerate(puts, start=1)
    ]


@contextmanager
def nursery_of(trial: Trial) -> Iterator[Nursery]:
    """Make processes for machines that are to be killed, if they survive that."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    with Nursery(trial.subject.maker) as nursery:
        yield nursery
