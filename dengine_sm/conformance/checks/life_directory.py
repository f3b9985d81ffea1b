"""Checks of whom a directory belongs to (LIFE-6, LIFE-7)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.backends import create_file
from dengine_sm.conformance.checks.life_parts import (
    CHUNK,
    changes_since,
    held_still,
    image_of,
    other_processes,
)
from dengine_sm.conformance.checks.snapshot_parts import raised, snapshot_at
from dengine_sm.conformance.processes.remote import RemoteMachine
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import NotBoundError, expect_equal, expect_true, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import CorruptionError, StorageFormatError, StorageLockedError
from dengine_sm.model import Entry, Outcome

_ATTEMPTS = 3
_MAX_TURNS = 8

# LIFE-6


async def a_second_machine_here_changes_nothing(trial: Trial) -> None:
    """Start a second machine in the same process: refused, and not a byte is different."""
    trial.needs_survival()
    oracle = trial.oracle(2 * CHUNK)
    changes: list[str] = []
    # The first machine may write by itself meanwhile; it does not do so every time.
    for _ in range(_ATTEMPTS):
        directory = trial.directory()
        first = trial.open(directory)
        await first.apply_chunk(oracle.entries(1, CHUNK))
        first.flush()
        before = image_of(directory)
        history = ["start a machine, apply, flush", "start another on its directory"]
        _expect_locked(trial.open(directory, start=False), history)
        changes = changes_since(before, directory)
        oracle.check_state("LIFE-6", first, index=CHUNK, history=history)
        await first.apply_chunk(oracle.entries(CHUNK + 1, 2 * CHUNK))
        oracle.check_state("LIFE-6", first, index=2 * CHUNK, history=history)
        first.stop()
        if not changes:
            return
    expect_equal("LIFE-6", "changes in the directory", [], changes, history)


def another_process_changes_nothing(trial: Trial) -> None:
    """Start machines here and in another process, while the holder's process stands still."""
    trial.needs_survival()
    oracle = trial.oracle(2 * CHUNK)
    directory = trial.directory()
    with other_processes(trial) as nursery:
        holder = nursery.spawn(directory)
        holder.start()
        holder.apply_chunk(oracle.entries(1, CHUNK))
        holder.flush()
        history = ["start a machine in another process, apply, flush, hold it still"]
        with held_still(holder):
            before = image_of(directory)
            for where, second in (
                ("here", trial.open(directory, start=False)),
                ("in a third process", nursery.spawn(directory)),
                ("here once more", trial.open(directory, start=False)),
            ):
                history.append(f"start another {where}, stop it")
                _expect_locked(second, history)
                changes = changes_since(before, directory)
                expect_equal("LIFE-6", "changes in the directory", [], changes, history)
        oracle.check_state("LIFE-6", holder, index=CHUNK, history=history)
        holder.apply_chunk(oracle.entries(CHUNK + 1, 2 * CHUNK))
        oracle.check_state("LIFE-6", holder, index=2 * CHUNK, history=history)


def _expect_locked(
    second: StateMachine | RemoteMachine, history: list[str], *, while_: str = ""
) -> None:
    __tracebackhide__ = True
    expected = f"StorageLockedError{while_ and ' ' + while_}"
    try:
        second.start()
    except StorageLockedError:
        pass
    except Exception as exc:
        violates("LIFE-6", expected=expected, observed=raised(exc), history=history)
    else:
        violates("LIFE-6", expected=expected, observed="it starts", history=history)
    expect_equal("LIFE-6", "is_running() of the second", False, second.is_running(), history)
    second.stop()


def a_refused_start_does_not_unlock(trial: Trial) -> None:
    """Stop the machine that was refused; a process of its own still finds the directory locked."""
    trial.needs_survival()
    directory = trial.directory()
    trial.open(directory)
    with other_processes(trial) as nursery:
        for second in (trial.open(directory, start=False), nursery.spawn(directory)):
            history = ["start a machine", "start another, which is refused", "stop the other"]
            _expect_locked(second, history)
            for third in (nursery.spawn(directory), trial.open(directory, start=False)):
                _expect_locked(third, [*history, "start a third"])


def stop_and_death_unlock_at_once(trial: Trial) -> None:
    """Take turns: stop or kill a machine, and start the next one at once, here and elsewhere."""
    trial.needs_survival()
    turns = min(trial.effort.kills, _MAX_TURNS)
    oracle = trial.oracle(turns * 2 * CHUNK)
    directory = trial.directory()
    with other_processes(trial) as nursery:
        for number in range(turns):
            applied = number * 2 * CHUNK
            there = nursery.spawn(directory)
            _expect_free(there, "stop() in another process")
            there.apply_chunk(oracle.entries(applied + 1, applied + CHUNK))
            there.flush()
            if number % 2:
                there.stop()
            else:
                there.kill()
            here = trial.open(directory, start=False)
            _expect_free(here, "stop() in that process" if number % 2 else "SIGKILL")
            applied += CHUNK
            oracle.check_state("LIFE-6", here, index=applied)
            trial.run(here.apply_chunk(oracle.entries(applied + 1, applied + CHUNK)))
            here.stop()
            there.kill()
            trial.on_progress(number + 1, turns)
    trial.evidence["turns"] = turns


def _expect_free(machine: StateMachine | RemoteMachine, what: str) -> None:
    __tracebackhide__ = True
    try:
        machine.start()
    except Exception as exc:
        violates("LIFE-6", expected=f"start() right after {what}", observed=raised(exc))


def installs_and_resets_keep_the_lock(trial: Trial) -> None:
    """Try to start a second machine after whatever replaces files, and after a restart."""
    trial.needs_survival()
    oracle = trial.oracle(3 * CHUNK)
    taken = trial.run(snapshot_at(trial, oracle, 2 * CHUNK))
    directory = trial.directory()
    with other_processes(trial) as nursery:
        holder = nursery.spawn(directory)
        holder.start()
        holder.apply_chunk(oracle.entries(1, CHUNK))
        history = ["start()", "apply_chunk"]
        for name, change in (
            ("apply_snapshot_from_file", [taken.metadata, taken.path]),
            ("save_hard_state", []),
            ("reset", []),
            ("stop", []),
        ):
            holder.request("call", name, *change)
            history.append(name)
            if name == "stop":
                holder.start()
                history.append("start")
            for second in (trial.open(directory, start=False), nursery.spawn(directory)):
                _expect_locked(second, [*history, "start another"], while_=f"after {name}")


# LIFE-7

_Files = dict[str, bytes]

_LOOKS: dict[str, _Files] = {
    "one text file": {"acme-backend.txt": b"format: acme 7\n"},
    "a SQLite database": {
        "acme.sqlite3": b"SQLite format 3\x00\x10\x00\x02\x02\x00\x40\x20\x20" + bytes(4072)
    },
    "a RocksDB": {
        "CURRENT": b"MANIFEST-000005\n",
        "IDENTITY": b"6f1c8f0e-2a57-4b0e-9a43-5d9f6c3a7f10",
        "MANIFEST-000005": bytes(range(200)),
        "000004.log": b"",
        "OPTIONS-000007": b"[Version]\n  rocksdb_version=8.1.1\n",
    },
    "an LMDB environment": {
        "data.mdb": bytes(16) + b"\xde\xc0\xef\xbe\x01\x00\x00\x00" + bytes(8168),
        "lock.mdb": bytes(8192),
    },
    "segments in a folder": {
        "segments/0000000001.seg": b"\x00\x01acme" * 40,
        "segments/index.json": b'{"version": 12, "engine": "acme"}',
        "acme-version": b"12\n",
    },
}


async def foreign_directories_are_refused(trial: Trial) -> None:
    """Start on directories of other backends: refused, and unchanged byte for byte.

    They imitate common engines, and two are written by machines of this package. Names that
    the machine uses itself make a directory ambiguous: it may be taken for a damaged one of
    its own, or, if it has no other names, is left out. A newer format of the machine's own
    cannot be made without knowing the present one: that half of the clause is for the
    backend's own tests.
    """
    trial.needs_survival()
    own = await _own_names(trial)
    tried = []
    for what, directory in (await _foreign_directories(trial)).items():
        foreign = _names_in(directory)
        if foreign <= own:
            continue
        _expect_refused(trial, what, directory, is_ambiguous=bool(foreign & own))
        tried.append(what)
    if not tried:
        raise NotBoundError("every foreign directory at hand looks like the machine's own")
    trial.evidence["directories"] = tried


async def _own_names(trial: Trial) -> frozenset[str]:
    directory = trial.directory("own")
    oracle = trial.oracle(CHUNK)
    machine = trial.open(directory)
    await machine.apply_chunk(oracle.log)
    machine.flush()
    while_running = _names_in(directory)
    machine.stop()
    return while_running | _names_in(directory)


def _names_in(directory: Path) -> frozenset[str]:
    """Return the names at the top of a directory, numbers in them left open."""
    return frozenset(re.sub(r"\d+", "#", path.name) for path in directory.iterdir())


async def _foreign_directories(trial: Trial) -> dict[str, Path]:
    found = {}
    for what, files in _LOOKS.items():
        found[what] = trial.directory("foreign")
        for name, content in files.items():
            path = found[what] / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    written: dict[str, Callable[[Path], StateMachine]] = {
        "a key-value machine of this package": create_file,
        "an application of this package": _stranger,
    }
    for what, make in written.items():
        found[what] = trial.directory("foreign")
        machine = make(found[what])
        machine.start()
        await machine.apply_chunk([Entry(1, 1, 1, b"")])
        machine.stop()
    return found


def _stranger(directory: Path) -> StateMachine:
    return ApplicationStateMachine(_Stranger, directory, format="conformance-stranger/1")


class _Stranger:
    """An application that keeps nothing."""

    def apply(self, _entry: Entry) -> tuple[Outcome, bytes | None]:
        return Outcome.APPLIED, None

    def get(self, _key: bytes) -> bytes | None:
        return None

    def len(self) -> int:
        return 0

    def dump(self) -> Collection[bytes]:
        return ()

    def load(self, records: object) -> None:
        pass


def _expect_refused(trial: Trial, what: str, directory: Path, *, is_ambiguous: bool) -> None:
    __tracebackhide__ = True
    before = image_of(directory)
    history = [f"start() on a directory that looks like {what}: {', '.join(before)}"]
    machine = trial.open(directory, start=False)
    for _ in range(2):
        try:
            machine.start()
        except StorageFormatError:
            pass
        except Exception as exc:
            expect_true(
                "LIFE-7",
                "StorageFormatError",
                raised(exc),
                holds=is_ambiguous and isinstance(exc, CorruptionError),
                history=history,
            )
        else:
            violates("LIFE-7", expected="StorageFormatError", observed="it starts", history=history)
        expect_equal("LIFE-7", "changes", [], changes_since(before, directory), history)
        expect_equal("LIFE-7", "is_running()", False, machine.is_running(), history)
    machine.stop()
    expect_equal("LIFE-7", "changes after stop()", [], changes_since(before, directory), history)
    _expect_usable_once_emptied(machine, directory, history)


def _expect_usable_once_emptied(machine: StateMachine, directory: Path, history: list[str]) -> None:
    __tracebackhide__ = True
    shutil.rmtree(directory)
    directory.mkdir()
    try:
        machine.start()
    except Exception as exc:
        history = [*history, "empty the directory", "start()"]
        violates("LIFE-2", expected="start()", observed=raised(exc), history=history)
    machine.stop()


CHECKS = (
    Check("LIFE-6", a_second_machine_here_changes_nothing, Profile.QUICK),
    Check("LIFE-6", another_process_changes_nothing),
    Check("LIFE-6", a_refused_start_does_not_unlock),
    Check("LIFE-6", stop_and_death_unlock_at_once),
    Check("LIFE-6", installs_and_resets_keep_the_lock),
    Check("LIFE-7", foreign_directories_are_refused, Profile.QUICK, also=("LIFE-2",)),
)
