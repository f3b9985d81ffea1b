"""Reads while the storage fails: the right answer or an error, never "not found" (READ-5)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs

from dengine_sm.conformance.faults import quiet_threads
from dengine_sm.conformance.images import Image
from dengine_sm.conformance.key_value import KEYS
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.power import UnsyncedFileSystem
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import NotBoundError, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import StateMachinePoisonedError, StorageError
from dengine_sm.files import replaced_file_system

_CLAUSE = "READ-5"
_ENTRIES = 40
_ERRORS = (StorageError, StateMachinePoisonedError)


def _needs_storage(trial: Trial) -> None:
    if trial.subject.is_transient or trial.subject.keeps_state_in_memory:
        raise NotBoundError("declared: it keeps its state in memory, a read touches no storage")


@attrs.define
class _Reads:
    """Every read of one state, compared with the model."""

    trial: Trial
    oracle: Oracle
    history: list[str]
    answers: int = 0
    errors: int = 0

    def all_of(self, machine: StateMachine, index: int) -> None:
        """Ask for everything at an applied index; the machine may raise each time."""
        __tracebackhide__ = True
        workload, expected = self.oracle.workload, self.oracle.observation_at(index)
        if workload.is_key_value:
            # One by one: each may have its own fate.
            for key, value in zip(KEYS, expected, strict=True):
                self._ask(f"get({key!r})", lambda key=key: machine.get(key), value)  # type: ignore[misc]
        self._ask("the state", lambda: workload.observe(machine), expected)
        self._ask("the state at once", lambda: self._at_once(machine, index), expected)
        self._ask("len()", machine.len, self.oracle.length_at(index))
        self._ask("last_applied()", machine.last_applied, self.oracle.id_at(index))
        term = self.oracle.id_at(index).term
        self._ask(f"entry_term({index})", lambda: machine.entry_term(index), term)

    def _at_once(self, machine: StateMachine, index: int) -> Any:
        found = self.oracle.workload.observe_at_once(machine)
        return self.oracle.observation_at(index) if found is None else found[0]

    def _ask(self, what: str, function: Callable[[], Any], expected: Any) -> None:
        __tracebackhide__ = True
        try:
            observed = function()
        except _ERRORS:
            self.errors += 1
            return
        except ProcessDied:
            raise
        except Exception as exc:
            self._violated(what, expected, f"{type(exc).__name__}: {exc}")
        self.answers += 1
        # Without checksums damaged bytes may be read as they are; that much is declared.
        is_wrong = observed is None or self.trial.subject.detects_damage
        if observed != expected and is_wrong:
            self._violated(what, expected, repr(observed))

    def _violated(self, what: str, expected: Any, observed: str) -> NoReturn:
        __tracebackhide__ = True
        violates(
            _CLAUSE,
            expected=f"{what}: {expected!r}, or StorageError",
            observed=f"{what}: {observed}",
            history=self.history,
        )


def reads_of_damaged_files_are_right_or_raise(trial: Trial) -> None:
    """Damages files beneath a running machine and reads all; once more after a restart."""
    _needs_storage(trial)
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle = trial.oracle(_ENTRIES, salt=205)
    directory = trial.directory("machine")
    with Nursery(trial.subject.maker) as nursery:
        machine = nursery.spawn(directory)
        machine.start()
        for first in range(1, _ENTRIES + 1, 5):
            machine.apply_chunk(oracle.entries(first, first + 4))
        machine.flush()
        machine.stop()
        machine.kill()
        image = Image.of(directory)
        ways = _ways(trial, image)
        counts = {"cases": len(ways), "answers": 0, "errors": 0, "deaths": 0}
        for number, (text, damage) in enumerate(ways):
            image.restore(directory)
            reads = _Reads(trial, oracle, ["all applied and flushed", "start()", f"({text})"])
            counts["deaths"] += _read_beneath(nursery, directory, damage, reads)
            counts["answers"] += reads.answers
            counts["errors"] += reads.errors
            trial.on_progress(number + 1, len(ways))
        trial.evidence |= counts


def _ways(trial: Trial, image: Image) -> list[tuple[str, Callable[[Path], None]]]:
    """Return ways to damage a directory: each file, and all of them, by several means."""
    kinds: dict[str, Callable[[Path], None]] = {
        "is emptied": lambda path: os.truncate(path, 0),
        "loses its second half": lambda path: os.truncate(path, path.stat().st_size // 2),
        "is gone": lambda path: path.unlink(missing_ok=True),
    }
    if trial.subject.detects_damage:
        kinds["is full of zeros"] = _zero
    names = sorted(name for name, content in image.files.items() if content)
    if trial.effort.points:
        names = names[-trial.effort.points // 8 :]
    ways: list[tuple[str, Callable[[Path], None]]] = []
    for what, kind in kinds.items():
        ways.append((f"every file {what}", lambda directory, kind=kind: _each(directory, kind)))  # type: ignore[misc]
        ways += [(f"{name!r} {what}", _on_file(name, kind)) for name in names]
    return ways


def _on_file(name: str, kind: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda directory: _hurt(directory / name, kind)


def _hurt(path: Path, kind: Callable[[Path], None]) -> None:
    # Engines replace and remove files of theirs when they start, and from threads of their own.
    with contextlib.suppress(FileNotFoundError):
        kind(path)


def _each(directory: Path, kind: Callable[[Path], None]) -> None:
    for path in list(directory.rglob("*")):
        if path.is_file():
            _hurt(path, kind)


def _zero(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))


def _read_beneath(
    nursery: Nursery, directory: Path, damage: Callable[[Path], None], reads: _Reads
) -> int:
    """Read beneath damage, and after a restart; return how often the process died of it.

    A machine that maps its files dies when one of them is cut: that is no wrong answer.
    """
    __tracebackhide__ = True
    deaths = 0
    machine = nursery.spawn(directory, ("skip_syncs",))
    machine.start()
    damage(directory)
    try:
        reads.all_of(machine, len(reads.oracle.log))
        with contextlib.suppress(*_ERRORS):
            machine.stop()
    except ProcessDied:
        deaths += 1
    machine.kill()
    reads.history += ["stop()", "start()"]
    machine = nursery.spawn(directory, ("skip_syncs",))
    try:
        index = _index_after_start(machine)
        if index:
            reads.all_of(machine, index)
    except ProcessDied:
        deaths += 1
    machine.kill()
    return deaths


def _index_after_start(machine: RemoteMachine) -> int:
    """Start, if it does; what a start owes on damaged files is CRASH-5's affair."""
    try:
        machine.start()
        return int(machine.last_applied().index)
    except ProcessDied:
        raise
    except Exception:
        return 0


class _UnreadableFileSystem(UnsyncedFileSystem):
    """Fails to read, when told to."""

    def __init__(self) -> None:
        self.fails = False
        self.struck = 0

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._fail()
        return super().pread(fd, size, offset)

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR):
            self._fail()
        return super().open(path, flags, mode)

    def _fail(self) -> None:
        if self.fails:
            self.struck += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def reads_that_meet_an_io_error_raise(trial: Trial) -> None:
    """Lets every read through `dengine_sm.files` fail, with what is cached and without."""
    _needs_storage(trial)
    oracle = trial.oracle(_ENTRIES, salt=206)
    fs = _UnreadableFileSystem()
    reads = _Reads(trial, oracle, ["all applied and flushed", "(every read meets an I/O error)"])
    with quiet_threads(), replaced_file_system(fs):
        machine = trial.open()
        trial.run(apply_all(machine, oracle.log))
        machine.flush()
        for _ in range(2):
            fs.fails = True
            reads.all_of(machine, len(oracle.log))
            fs.fails = False
            machine.stop()
            machine.start()
            reads.history.insert(1, "stop(), start()")
    trial.evidence |= {"reads failed": fs.struck, "answers": reads.answers, "errors": reads.errors}
    if not fs.struck:
        raise NotBoundError("no read goes through dengine_sm.files")


CHECKS = (
    Check(_CLAUSE, reads_of_damaged_files_are_right_or_raise, Profile.QUICK),
    Check(_CLAUSE, reads_that_meet_an_io_error_raise),
)
