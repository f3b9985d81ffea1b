"""Checks of SNAP-7: a killed install leaves the whole old state or the whole new one."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from dengine_sm.conformance.checks.snapshot_parts import (
    Taken,
    applied_machine,
    big_log,
    install,
    must_work,
    nursery_of,
    padding,
    sampled,
    snapshot_at,
    snapshot_of,
    with_higher_terms,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Put
from dengine_sm.model import SnapshotMetadata

STATE_BYTES = 1 << 20
TAIL_ENTRIES = 8


@attrs.frozen
class _State:
    """A state that a killed install may leave: the whole old one or the whole new one."""

    name: str
    oracle: Oracle
    metadata: SnapshotMetadata
    pads: list[Put]
    absent: list[Put]
    """Big values of the other state."""

    @property
    def index(self) -> int:
        """The last one applied."""
        return self.metadata.last_included.index

    def check(self, machine: StateMachine, history: list[str]) -> None:
        """Compare a machine whose applied id is this state's."""
        __tracebackhide__ = True
        what = f"of the {self.name} state"
        self.oracle.check_state("SNAP-7", machine, index=self.index, what=what, history=history)
        metadata = machine.snapshot_metadata()
        expect_equal("SNAP-7", f"snapshot_metadata() {what}", self.metadata, metadata, history)
        expected = self.oracle.id_at(self.index).term
        term = machine.entry_term(self.index)
        expect_equal("SNAP-7", f"entry_term({self.index}) {what}", expected, term, history)
        wrong = [put.key for put in self.pads if machine.get(put.key) != put.value]
        wrong += [put.key for put in self.absent if machine.get(put.key) is not None]
        expect_equal("SNAP-7", f"keys that are not {what}", [], wrong[:5], history)


_Strike: TypeAlias = "Callable[[_Scene, RemoteMachine], str]"
"""Installs in a process that dies meanwhile; returns when it did."""


@attrs.frozen
class _Scene:
    """A directory in the old state, the snapshot that is to be installed, both states."""

    trial: Trial
    nursery: Nursery
    base: Path
    taken: Taken
    old: _State
    new: _State

    def begin(self) -> tuple[RemoteMachine, Path]:
        """Start a machine in the old state in a new process."""
        directory = self.trial.directory()
        shutil.copytree(self.base, directory, dirs_exist_ok=True)
        # Before it starts, so that its threads are counted too.
        machine = self.nursery.spawn(directory, ("kill_at_call", 0))
        machine.start()
        return machine, directory

    def install(self, machine: RemoteMachine) -> None:
        """Install in that process, and wait for the end of either."""
        with contextlib.suppress(ProcessDied):
            machine.apply_snapshot_from_file(self.taken.metadata, self.taken.path)

    async def recover(self, directory: Path, what: str) -> str:
        """Start a machine here on what is left, check it, install again; tell which it was."""
        __tracebackhide__ = True
        history = ["apply_snapshot_from_file", f"kill {what}", "start in another process"]
        machine = self.trial.open(directory, start=False)
        with must_work("SNAP-7", "start() after the kill", history):
            machine.start()
        state = self._state_of(machine, history)
        state.check(machine, history)
        if state is self.old:
            history.append("apply_snapshot_from_file")
            await install("SNAP-7", self.taken, machine, history)
            self.new.check(machine, history)
        chunk = self.new.oracle.entries(self.new.index + 1, self.new.index + TAIL_ENTRIES)
        results = await machine.apply_chunk(chunk)
        oracle = self.new.oracle
        oracle.check_results("SNAP-7", chunk, results, applied=self.new.index, history=history)
        machine.stop()
        shutil.rmtree(directory)
        return state.name

    def _state_of(self, machine: StateMachine, history: list[str]) -> _State:
        __tracebackhide__ = True
        states = {state.metadata.last_included: state for state in (self.old, self.new)}
        applied = machine.last_applied()
        if applied not in states:
            expected = f"last_applied() {' or '.join(map(str, states))}"
            violates("SNAP-7", expected=expected, observed=applied, history=history)
        return states[applied]


@contextlib.contextmanager
def _scene(trial: Trial) -> Iterator[_Scene]:
    with nursery_of(trial) as nursery:
        workload = trial.subject.workload
        old_log = big_log(trial, STATE_BYTES, prefix=b"old/", salt=1)
        new_log = with_higher_terms(
            big_log(trial, STATE_BYTES, prefix=b"new/", salt=2, entries=TAIL_ENTRIES)
        )
        old, new = Oracle(workload, old_log), Oracle(workload, new_log)
        base = trial.directory("base")
        label = len(new_log) - TAIL_ENTRIES
        metadata, taken = trial.run(_prepare(trial, base, old, new, label))
        pads: dict[bytes, list[Put]] = {b"old/": [], b"new/": []}
        if trial.subject.is_key_value:
            pads[b"old/"] = list(padding(trial, STATE_BYTES, prefix=b"old/", salt=1))
            pads[b"new/"] = list(padding(trial, STATE_BYTES, prefix=b"new/", salt=2))
        yield _Scene(
            trial,
            nursery,
            base,
            taken,
            _State("old", old, metadata, pads[b"old/"], pads[b"new/"]),
            _State("new", new, taken.metadata, pads[b"new/"], pads[b"old/"]),
        )


async def _prepare(
    trial: Trial, base: Path, old: Oracle, new: Oracle, label: int
) -> tuple[SnapshotMetadata, Taken]:
    """Fill a directory with the old state, and take the snapshot of the new one."""
    machine = await applied_machine(trial, old, len(old.log), base)
    own = await snapshot_of(trial, machine)
    machine.persist_last_snapshot_metadata(own.metadata)
    machine.flush()
    machine.stop()
    return own.metadata, await snapshot_at(trial, new, label)


def killed_install_leaves_the_old_state_or_the_new(trial: Trial) -> None:
    """Kill at calls of the install and at random instants, and look in another process."""
    with _scene(trial) as scene:
        calls, time_s = _measure(scene)
        kills = max(4, trial.effort.kills)
        strikes = [_at_call(n + 1, calls) for n in sampled(calls, kills // 2, trial.seed)]
        strikes += [_after(time_s * n / kills) for n in sampled(kills, kills // 2, trial.seed)]
        _sweep(scene, strikes)


def every_call_of_an_install_is_survived(trial: Trial) -> None:
    """Kill before each call out of Python that an install makes, and look."""
    with _scene(trial) as scene:
        calls, _ = _measure(scene)
        _sweep(scene, [_at_call(number + 1, calls) for number in range(calls)])


def _sweep(scene: _Scene, strikes: Sequence[_Strike]) -> None:
    __tracebackhide__ = True
    left = {"old": 0, "new": 0}
    for number, strike in enumerate(strikes):
        machine, directory = scene.begin()
        what = strike(scene, machine)
        machine.kill()
        left[scene.trial.run(scene.recover(directory, what))] += 1
        scene.trial.on_progress(number + 1, len(strikes))
    scene.trial.evidence.update(kills=len(strikes), states_found=left)


def _measure(scene: _Scene) -> tuple[int, float]:
    """Install once; return the number of calls and the seconds it takes."""
    machine, directory = scene.begin()
    machine.prepare("kill_at_call", 0)
    start = time.perf_counter()
    scene.install(machine)
    time_s = time.perf_counter() - start
    calls = machine.prepare("calls_so_far")
    machine.kill()
    scene.trial.run(scene.recover(directory, "after the install"))
    assert isinstance(calls, int)
    return calls, time_s


def _at_call(number: int, calls: int) -> _Strike:
    def strike(scene: _Scene, machine: RemoteMachine) -> str:
        machine.prepare("kill_at_call", number)
        scene.install(machine)
        return f"at call {number} of {calls}"

    return strike


def _after(delay_s: float) -> _Strike:
    def strike(scene: _Scene, machine: RemoteMachine) -> str:
        arguments: list[Any] = [scene.taken.metadata, scene.taken.path]
        machine.begin_script([("apply_snapshot_from_file", arguments, True)])
        next(machine.script_events(), None)
        time.sleep(delay_s)  # an instant to die at; nothing waits for it
        machine.send_signal(signal.SIGKILL)
        return f"{delay_s * 1000:.1f} ms after it began"

    return strike


CHECKS = (
    Check("SNAP-7", killed_install_leaves_the_old_state_or_the_new, Profile.QUICK),
    Check("SNAP-7", every_call_of_an_install_is_survived, Profile.DEEP),
)
