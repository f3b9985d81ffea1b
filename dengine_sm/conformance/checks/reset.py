"""Checks of going back to the initial state (RESET-1, RESET-2)."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs

from dengine_sm.conformance.checks.life_parts import (
    another_log,
    expect_terms,
    log_of_many_terms,
    metadata_at,
    other_processes,
)
from dengine_sm.conformance.checks.snapshot_parts import raised, sampled, snapshot_of, span
from dengine_sm.conformance.key_value import KEYS
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Put, encode_command
from dengine_sm.model import Entry, LogId, SnapshotMetadata

_OLD_ENTRIES = 40
_NEW_ENTRIES = 30
_CHUNK = 50
_ROWS = 150
"""Keys more, in a key-value machine: a state that takes a while to delete one by one."""


def _expect_initial(
    clause: str, machine: StateMachine | RemoteMachine, oracle: Oracle, history: Sequence[str]
) -> None:
    """Compare a machine with the state before the first entry; `oracle` has the old log."""
    __tracebackhide__ = True
    oracle.check_state(clause, machine, index=0, what="after reset()", history=history)
    expect_equal(clause, "is_empty()", True, machine.is_empty(), history)
    at_once = oracle.workload.observe_at_once(machine)
    if at_once is not None:
        initial, applied = oracle.observation_at(0), LogId.ZERO
        expect_equal(clause, "state read at once", (initial, applied), _told(at_once), history)
    expect_equal(clause, "snapshot_metadata()", None, machine.snapshot_metadata(), history)
    expect_terms(clause, machine, oracle, what="after reset()", history=history)


def _told(at_once: tuple[object, LogId | None]) -> tuple[object, LogId]:
    seen, applied = at_once
    return seen, applied or LogId.ZERO


# RESET-1


async def reset_forgets_everything(trial: Trial) -> None:
    """Reset after applies, a snapshot, an install; then apply another log from index 1."""
    old = log_of_many_terms(trial, _OLD_ENTRIES, salt=9)
    machine = trial.open()
    if trial.subject.is_key_value:
        _extend(old, [(0, Put(key, b"mortal", _DAY_MS)) for key in KEYS])
    for number, before in enumerate(_BEFORE_RESET):
        history = [f"apply_chunk({span(old.log)})", before.__name__.strip("_"), "reset()"]
        await apply_all(machine, old.log)
        await before(trial, machine)
        await machine.reset()
        expect_equal("RESET-1", "is_running()", True, machine.is_running(), history)
        _expect_initial("RESET-1", machine, old, history)
        # Earlier, later and at the same time: a clock or deadlines that were kept would show.
        seed, days = trial.seed * 1009 + number, (-1, 0, 1)[number % 3]
        new = another_log(trial.subject.workload, _NEW_ENTRIES, seed, days=days)
        if trial.subject.is_key_value:
            _extend(new, _LIFE_AND_DEATH)
        await _expect_to_begin_anew(machine, new, history)
        await machine.reset()
        await machine.reset()
        _expect_initial("RESET-1", machine, new, [*history, "apply another log", "reset() twice"])


def _extend(oracle: Oracle, commands: Sequence[tuple[int, Put | None]]) -> None:
    """Add entries, each so many milliseconds later than the one before."""
    now_ms = max(entry.timestamp_ms for entry in oracle.log)
    for later_ms, command in commands:
        now_ms += later_ms
        last, data = oracle.last, b"" if command is None else encode_command(command)
        oracle.extend([Entry(last.index + 1, last.term, now_ms, data)])


_DAY_MS = 86_400_000
_LIFE_AND_DEATH: tuple[tuple[int, Put | None], ...] = (
    (0, Put(b"timed", b"dies after 50 ms", 50)),
    (49, None),
    (1, None),
    *((0, Put(key, b"immortal")) for key in KEYS),
    (5 * _DAY_MS, None),
)
"""By this clock and by these deadlines alone, not by those of the log before."""


async def _nothing(_trial: Trial, _machine: StateMachine) -> None:
    pass


async def _generate_a_snapshot(trial: Trial, machine: StateMachine) -> None:
    await snapshot_of(trial, machine)


async def _install_a_snapshot(trial: Trial, machine: StateMachine) -> None:
    taken = await snapshot_of(trial, machine)
    await machine.apply_snapshot_from_file(taken.metadata, taken.path)


async def _save_everything(_trial: Trial, machine: StateMachine) -> None:
    metadata = metadata_at(machine.last_applied(), "elsewhere/1", 7)
    machine.persist_last_snapshot_metadata(metadata)
    machine.save_hard_state()
    machine.flush()


_BEFORE_RESET = (_nothing, _generate_a_snapshot, _install_a_snapshot, _save_everything)


async def _expect_to_begin_anew(
    machine: StateMachine, oracle: Oracle, history: Sequence[str]
) -> None:
    """Apply a log from index 1, entry by entry: what is left of another one would show."""
    __tracebackhide__ = True
    for entry in oracle.log:
        chunk = [entry]
        history_now = [*history, f"apply_chunk({span(chunk)}) of another log"]
        try:
            results = await machine.apply_chunk(chunk)
        except Exception as exc:
            expected = f"apply_chunk({span(chunk)}) works after reset()"
            violates("RESET-1", expected=expected, observed=raised(exc), history=history_now)
        oracle.check_results(
            "RESET-1", chunk, results, applied=entry.index - 1, history=history_now
        )
        oracle.check_state("RESET-1", machine, index=entry.index, history=history_now)
    expect_terms("RESET-1", machine, oracle, history=history)


def reset_survives_a_kill(trial: Trial) -> None:
    """Kill right after reset returned, and after a few entries more; start in another process."""
    trial.needs_survival()
    old = log_of_many_terms(trial, _OLD_ENTRIES, salt=10)
    new = another_log(trial.subject.workload, _NEW_ENTRIES, trial.seed * 1009 + 11, days=-1)
    directory = trial.directory()
    history = [f"apply entries 1..{_OLD_ENTRIES}", "persist_last_snapshot_metadata", "flush()"]
    with other_processes(trial) as nursery:
        machine = _spawn(nursery, directory)
        machine.apply_chunk(old.log)
        machine.persist_last_snapshot_metadata(metadata_at(old.last, "elsewhere/1", 3))
        machine.flush()
        machine.request("call", "reset")
        machine.kill()
        history += ["reset()", "SIGKILL", "start()"]
        machine = _spawn(nursery, directory)
        _expect_initial("RESET-1", machine, old, history)
        half = _NEW_ENTRIES // 2
        machine.apply_chunk(new.entries(1, half))
        machine.flush()
        machine.kill()
        history += [f"apply entries 1..{half} of another log", "flush()", "SIGKILL", "start()"]
        machine = _spawn(nursery, directory)
        new.check_state("RESET-1", machine, index=half, history=history)
        expect_terms("RESET-1", machine, new, history=history)
        expect_equal("RESET-1", "snapshot_metadata()", None, machine.snapshot_metadata(), history)
        chunk = new.entries(half + 1, _NEW_ENTRIES)
        results = machine.apply_chunk(chunk)
        new.check_results("RESET-1", chunk, results, applied=half, history=history)
        new.check_state("RESET-1", machine, index=_NEW_ENTRIES, history=history)
    trial.evidence["kills"] = 2


def _spawn(nursery: Nursery, directory: Path) -> RemoteMachine:
    machine = nursery.spawn(directory)
    machine.start()
    return machine


# RESET-2


@attrs.frozen
class _Scene:
    """A directory that is filled, and reset, and filled again."""

    nursery: Nursery
    directory: Path
    oracle: Oracle
    metadata: SnapshotMetadata

    def begin(self) -> RemoteMachine:
        """Start a machine in a new process."""
        # Before it starts, so that its threads are counted too.
        machine = self.nursery.spawn(self.directory, ("kill_at_call", 0))
        machine.start()
        return machine

    def fill(self, machine: RemoteMachine) -> None:
        """Bring a machine in the initial state into the old one, durably."""
        for first in range(1, len(self.oracle.log) + 1, _CHUNK):
            machine.apply_chunk(self.oracle.entries(first, first + _CHUNK - 1))
        machine.persist_last_snapshot_metadata(self.metadata)
        machine.flush()

    def look(self, machine: RemoteMachine, history: Sequence[str]) -> str:
        """Compare a machine with the old and the initial state; tell which it is in."""
        __tracebackhide__ = True
        applied = machine.last_applied()
        if applied == LogId.ZERO:
            _expect_initial("RESET-2", machine, self.oracle, history)
            return "initial"
        last = len(self.oracle.log)
        self.oracle.check_state("RESET-2", machine, index=last, history=history)
        expect_terms("RESET-2", machine, self.oracle, history=history)
        observed = machine.snapshot_metadata()
        expect_equal("RESET-2", "snapshot_metadata()", self.metadata, observed, history)
        return "old"


_Strike: TypeAlias = Callable[[RemoteMachine], str]
"""Resets in a process that dies meanwhile; returns when it did."""


def killed_reset_leaves_the_old_state_or_none(trial: Trial) -> None:
    """Kill at calls of a reset and at random instants, and look in another process."""
    trial.needs_survival()
    with other_processes(trial) as nursery:
        scene = _scene(trial, nursery)
        calls, time_s = _measure(scene)
        kills = max(6, trial.effort.kills)
        strikes = [_at_call(n + 1, calls) for n in sampled(calls, kills, trial.seed)]
        strikes += [_after(time_s * n / kills) for n in sampled(kills, kills // 3, trial.seed)]
        _sweep(trial, scene, strikes)


def every_call_of_a_reset_is_survived(trial: Trial) -> None:
    """Kill before each call out of Python that a reset makes, and look."""
    trial.needs_survival()
    with other_processes(trial) as nursery:
        scene = _scene(trial, nursery)
        calls, _ = _measure(scene)
        _sweep(trial, scene, [_at_call(number + 1, calls) for number in range(calls)])


def _scene(trial: Trial, nursery: Nursery) -> _Scene:
    oracle = log_of_many_terms(trial, _OLD_ENTRIES, salt=12)
    if trial.subject.is_key_value:
        oracle.extend(_rows(oracle))
    return _Scene(nursery, trial.directory(), oracle, metadata_at(oracle.last, "elsewhere/1", 5))


def _rows(oracle: Oracle) -> list[Entry]:
    last, stamp_ms = oracle.last, oracle.log[-2].timestamp_ms
    return [
        Entry(last.index + n, last.term, stamp_ms, encode_command(Put(b"row/%d" % n, b"%d" % n)))
        for n in range(1, _ROWS + 1)
    ]


def _measure(scene: _Scene) -> tuple[int, float]:
    """Reset once; return the number of calls and the seconds it takes."""
    machine = scene.begin()
    scene.fill(machine)
    machine.prepare("kill_at_call", 0)
    start = time.perf_counter()
    machine.request("call", "reset")
    time_s = time.perf_counter() - start
    calls = machine.prepare("calls_so_far")
    machine.kill()
    assert isinstance(calls, int)
    return calls, time_s


def _sweep(trial: Trial, scene: _Scene, strikes: Sequence[_Strike]) -> None:
    __tracebackhide__ = True
    found = {"old": 0, "initial": 0}
    machine = scene.begin()
    state = scene.look(machine, ["reset()", "SIGKILL", "start()"])
    for number, strike in enumerate(strikes):
        if state == "initial":
            scene.fill(machine)
        when = strike(machine)
        machine.kill()
        history = ["fill, flush()", "reset()", f"kill {when}", "start() in another process"]
        machine = _started(scene, history)
        state = scene.look(machine, history)
        found[state] += 1
        trial.on_progress(number + 1, len(strikes))
    trial.evidence.update(kills=len(strikes), states_found=found)


def _started(scene: _Scene, history: Sequence[str]) -> RemoteMachine:
    __tracebackhide__ = True
    try:
        return scene.begin()
    except Exception as exc:
        violates("RESET-2", expected="start()", observed=raised(exc), history=history)


def _at_call(number: int, calls: int) -> _Strike:
    def strike(machine: RemoteMachine) -> str:
        machine.prepare("kill_at_call", number)
        with contextlib.suppress(ProcessDied):
            machine.request("call", "reset")
        return f"at call {number} of {calls}"

    return strike


def _after(delay_s: float) -> _Strike:
    def strike(machine: RemoteMachine) -> str:
        machine.begin_script([("reset", [], True)])
        next(machine.script_events(), None)
        time.sleep(delay_s)  # an instant to die at; nothing waits for it
        machine.send_signal(signal.SIGKILL)
        return f"{delay_s * 1000:.1f} ms after it began"

    return strike


CHECKS = (
    Check("RESET-1", reset_forgets_everything, Profile.QUICK),
    Check("RESET-1", reset_survives_a_kill),
    Check("RESET-2", killed_reset_leaves_the_old_state_or_none, Profile.QUICK),
    Check("RESET-2", every_call_of_a_reset_is_survived, Profile.DEEP),
)
