"""What the checks of life, place and reset share: logs of many terms, directories at a glance."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import CannotCheckError, expect_equal
from dengine_sm.conformance.workload import Workload, log_of, sample_commands
from dengine_sm.contract import StateMachine
from dengine_sm.model import Entry, LogId, SnapshotMetadata

CHUNK = 4
NO_OP_EVERY = 5
"""Every fifth entry of a log of many terms carries no command."""

_TERM_STEPS = (0, 1, 0, 0, 3, 0, 1, 1, 0, 1000, 0)
_TIMELESS_MS = 0
"""Stamp of an entry without a command: moves no clock, whether it is applied or skipped."""


def other_processes(trial: Trial) -> Nursery:
    """Return what makes machines in other processes, or leave the check."""
    trial.needs_maker()
    assert trial.subject.maker is not None
    return Nursery(trial.subject.maker)


# Logs


def log_of_many_terms(trial: Trial, count: int, *, salt: int = 0) -> Oracle:
    """Return a log whose term rises every few entries, once by much."""
    workload, seed = trial.subject.workload, trial.seed * 1009 + salt
    log = log_of(sample_commands(workload, count, seed), seed)
    term, entries = 1, []
    for position, entry in enumerate(log):
        term += _TERM_STEPS[(position + salt) % len(_TERM_STEPS)]
        term += (1 << 33) * (position == count // 2)
        no_op = position % NO_OP_EVERY == NO_OP_EVERY - 1
        stamp, data = (_TIMELESS_MS, b"") if no_op else (entry.timestamp_ms, entry.data)
        entries.append(Entry(entry.index, term, stamp, data))
    return Oracle(workload, entries)


def is_no_op(index: int) -> bool:
    """Tell whether the entry at an index of a log of many terms carries no command."""
    return index % NO_OP_EVERY == 0


def another_log(workload: Workload, count: int, seed: int, *, days: int) -> Oracle:
    """Return a log from index 1 that begins in term 1, so many days after every sample log."""
    log = log_of(sample_commands(workload, count, seed), seed)
    first_term, later_ms = log[0].term, days * 86_400_000
    return Oracle(
        workload,
        [Entry(e.index, e.term - first_term + 1, e.timestamp_ms + later_ms, e.data) for e in log],
    )


def expect_terms(
    clause: str,
    machine: StateMachine,
    oracle: Oracle,
    *,
    known_from: int = 1,
    unseen: Collection[int] = (),
    what: str = "",
    history: Sequence[str] = (),
) -> None:
    """Compare `entry_term` with the log, at every index and beyond both ends.

    Args:
        clause: violated if a term is wrong.
        machine: running.
        oracle: has the log.
        known_from: first index that has a term; None is due below it.
        unseen: indices between two advances, whose term the machine was never told: None
            will do for them.
        what: tells the moment.
        history: what led to it.
    """
    __tracebackhide__ = True
    applied = machine.last_applied().index
    for index in (*range(len(oracle.log) + 3), applied + 1000):
        is_known = index and known_from <= index <= applied
        expected = oracle.id_at(index).term if is_known else None
        observed = machine.entry_term(index)
        if not (index in unseen and observed is None):
            name = f"entry_term({index}) at {applied}{what and ' ' + what}"
            expect_equal(clause, name, expected, observed, history)


def metadata_at(last_included: LogId, format_name: str, number: int) -> SnapshotMetadata:
    """Return metadata of a snapshot that is somewhere else."""
    return SnapshotMetadata(last_included, bytes([number % 255 + 1]) * 32, format_name)


# Directories


def image_of(directory: Path) -> dict[str, bytes | str]:
    """Return what is in a directory, by relative path: contents, or what else it is."""
    image: dict[str, bytes | str] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            image[name] = f"link to {path.readlink()}"
        elif path.is_file():
            image[name] = path.read_bytes()
        else:
            image[name] = "directory" if path.is_dir() else "neither file nor directory"
    return image


def changes_since(image: dict[str, bytes | str], directory: Path) -> list[str]:
    """Return what has changed in a directory, a phrase for each path."""
    now = image_of(directory)
    found = []
    for name in sorted(image.keys() | now.keys()):
        if name not in now:
            found.append(f"{name!r} is gone")
        elif name not in image:
            found.append(f"{name!r} is new")
        elif image[name] != now[name]:
            found.append(f"{name!r} has changed")
    return found


@contextlib.contextmanager
def held_still(machine: RemoteMachine) -> Iterator[None]:
    """Stop every thread of a process for a while: what changes now is not its doing."""
    tasks = Path(f"/proc/{machine.pid}/task")
    if not tasks.exists():
        raise CannotCheckError("there is no /proc: a process cannot be seen to stand still")
    machine.send_signal(signal.SIGSTOP)
    while not all(_stands_still(stat) for stat in tasks.glob("*/stat")):
        os.sched_yield()
    try:
        yield
    finally:
        machine.send_signal(signal.SIGCONT)


def _stands_still(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "TtZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
