"""Kills machines in the midst of scripts, and looks at what they left."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.crash import (
    EVERYTHING,
    Promises,
    Scenario,
    Step,
    checked_state,
    crash_log,
    plain,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine, ScriptReport
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.errors import StorageLockedError
from dengine_sm.model import SnapshotMetadata

_SNAPSHOT_EVERY = 70


@attrs.frozen
class Kill:
    """When a process is killed; a script that is over by then is killed at its end."""

    at_call: int = 0
    """Before its n-th call out of Python."""
    after_event: int = 0
    """By a signal when the n-th word of its script has come."""
    spins: int = 0
    """How long to idle before the signal."""


def run_script(machine: RemoteMachine, steps: Sequence[Step], kill: Kill) -> ScriptReport:
    """Let a process carry out steps until it is killed; it is dead on return."""
    events = 0

    def on_event(_kind: str, _step: int) -> None:
        nonlocal events
        events += 1
        if events == kill.after_event:
            for _ in range(kill.spins):
                pass
            machine.send_signal(signal.SIGKILL)

    if kill.at_call:
        machine.prepare("kill_at_call", kill.at_call)
    machine.begin_script([step.told for step in steps])
    report = machine.script_report(len(steps), on_event=on_event)
    machine.kill()
    return report


def raise_unexpected(steps: Sequence[Step], report: ScriptReport, promises: Promises) -> None:
    """Raise what a step raised where nothing was made to fail, and what a stop has lost."""
    __tracebackhide__ = True
    for step, told in zip(steps, report.steps, strict=True):
        if told.error is not None:
            told.error.add_note("\n".join(promises.recent))
            raise told.error
        if step.method == "last_applied" and told.ended:
            expected = promises.oracle.id_at(step.after)
            expect_equal("LIFE-4", "last_applied()", expected, told.value, promises.recent)


@attrs.define
class Storm:
    """A directory whose machine is killed, recovered, checked, and goes on."""

    trial: Trial
    nursery: Nursery
    scenario: Scenario
    rng: random.Random
    workspace: Path
    promises: Promises
    applied: int = 0
    machine: RemoteMachine | None = None
    """Running, between a recovery and the next kill."""
    calls_at_first: int = 0
    """Calls out of Python of a script in a fresh directory, its first start included."""
    calls_later: int = 0
    """Those of a script in a directory in use."""

    @property
    def directory(self) -> Path:
        """The machine's directory, below the workspace."""
        return self.workspace / "data"

    def begin(self) -> None:
        """Go on in a fresh directory."""
        self.leave()
        self.workspace = new_workspace(self.trial)
        self.promises = Promises(self.scenario.oracle, self.trial.subject.durability)
        self.applied = 0

    def leave(self) -> None:
        """Kill the machine that runs."""
        if self.machine is not None:
            self.machine.kill()
            self.machine = None

    def steps(self, count: int, mix: Mapping[str, int] = EVERYTHING) -> list[Step]:
        """Write the next script; where the log is nearly used up, for a fresh directory."""
        if self.applied + 2 * count > len(self.scenario.oracle.log):
            self.begin()
        steps = self.scenario.script(self.applied, count, self.workspace, mix)
        return steps if self.machine is not None else [plain("start", self.applied), *steps]

    def strike(self, steps: Sequence[Step], kill: Kill) -> None:
        """Run a script and kill the process meanwhile."""
        machine, self.machine = self.machine or self.nursery.spawn(self.directory), None
        report = run_script(machine, steps, kill)
        self.promises.record(steps, report)
        raise_unexpected(steps, report, self.promises)
        evidence = self.trial.evidence
        evidence["kills"] = evidence.get("kills", 0) + 1
        evidence["in midst"] = evidence.get("in midst", 0) + (not report.is_done)

    def recover(self, *, clause: str = "") -> int:
        """Start a machine on what is left, check it and keep it for the next script.

        Args:
            clause: what all that is wrong violates, where it is not for the kill to say.

        Returns:
            The applied index found.
        """
        __tracebackhide__ = True
        self.machine = self.nursery.spawn(self.directory)
        start(self.machine, self.promises, clause)
        self.applied = self.promises.check(self.machine, clause=clause)
        self.promises.recovered(self.applied)
        return self.applied

    def measure(self, count: int, mix: Mapping[str, int] = EVERYTHING) -> None:
        """Count the calls of two scripts in a fresh directory; then kill and recover."""
        __tracebackhide__ = True
        self.begin()
        self.calls_at_first = self._calls_of(self.steps(count, mix))
        self.calls_later = self._calls_of(self.steps(count, mix))
        self.leave()
        self.recover()

    def _calls_of(self, steps: Sequence[Step]) -> int:
        machine = self.machine = self.machine or self.nursery.spawn(self.directory)
        machine.prepare("kill_at_call", 0)
        machine.begin_script([step.told for step in steps])
        report = machine.script_report(len(steps))
        self.promises.record(steps, report)
        raise_unexpected(steps, report, self.promises)
        self.applied = steps[-1].after
        return int(machine.prepare("calls_so_far"))

    def strike_at(self, share: float, steps: Sequence[Step]) -> None:
        """Run a script and kill the process before the call at a share of them, in [0, 1)."""
        is_first = self.machine is None and not self.promises.history
        calls = self.calls_at_first if is_first else self.calls_later
        self.strike(steps, Kill(at_call=1 + int(share * calls)))


def start(machine: RemoteMachine, promises: Promises, clause: str = "") -> None:
    """Start a machine on what a kill left; that it does not start is a violation."""
    __tracebackhide__ = True
    try:
        machine.start()
    except Exception as exc:
        violates(
            "LIFE-6" if isinstance(exc, StorageLockedError) else clause or promises.clause,
            expected="start() after the kill",
            observed=f"start() raised {type(exc).__name__}: {exc}",
            history=promises.recent,
        )


def go_on(oracle: Oracle, machine: RemoteMachine, promises: Promises, clause: str) -> None:
    """Apply what follows, with duplicates, and make it durable."""
    __tracebackhide__ = True
    applied = machine.last_applied().index
    last = min(applied + 3, len(oracle.log))
    chunk = oracle.entries(max(1, applied - 2), last)
    promises.note(f"apply_chunk(entries {chunk[0].index}..{last}), flush()")
    try:
        results = machine.apply_chunk(chunk)
        machine.flush()
    except Exception as exc:
        violates(
            clause,
            expected="apply_chunk and flush to work again",
            observed=f"{type(exc).__name__}: {exc}",
            history=promises.recent,
        )
    oracle.check_results(clause, chunk, results, applied=applied, history=promises.recent)
    checked_state(oracle, clause, machine, "after going on", promises.recent, index=last)
    promises.boundaries.add(last)
    if last > promises.floor:
        promises.floor, promises.floor_by, promises.floor_clause = last, "flush()", "CRASH-2"


def nursery_of(trial: Trial) -> Nursery:
    """Return processes for the machine, or leave the check."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    return Nursery(trial.subject.maker)


@contextlib.contextmanager
def crash_scenario(
    trial: Trial, *, salt: int, entries: int
) -> Iterator[tuple[Nursery, Scenario, random.Random]]:
    """Set up processes, a log, and snapshots of it that another machine has taken."""
    processes = nursery_of(trial)
    seed = trial.seed * 1013 + salt
    rng = random.Random(seed)  # noqa: S311 - to repeat, not to hide
    oracle = Oracle(trial.subject.workload, crash_log(trial.subject, entries, seed))
    with processes as nursery:
        snapshots: dict[int, tuple[SnapshotMetadata, Path]] = {}
        try:
            snapshots = donated_snapshots(nursery, oracle, new_workspace(trial, "donor"))
        except Exception as exc:
            # The snapshot checks blame it; kills are worth a look all the same.
            trial.evidence["installs left out"] = f"{type(exc).__name__}: {exc}"
        yield nursery, Scenario(oracle, rng, snapshots), rng


@contextlib.contextmanager
def crash_storm(trial: Trial, *, salt: int, entries: int = 400) -> Iterator[Storm]:
    """Set up a storm over a fresh directory."""
    with crash_scenario(trial, salt=salt, entries=entries) as (nursery, scenario, rng):
        promises = Promises(scenario.oracle, trial.subject.durability)
        storm = Storm(trial, nursery, scenario, rng, new_workspace(trial), promises)
        try:
            yield storm
        finally:
            storm.leave()


def donated_snapshots(
    nursery: Nursery, oracle: Oracle, workspace: Path
) -> dict[int, tuple[SnapshotMetadata, Path]]:
    """Take snapshots of a log now and then, for other machines to install."""
    machine: Any = nursery.spawn(workspace / "data")
    machine.start()
    found = {}
    applied = 0
    for index in range(_SNAPSHOT_EVERY, len(oracle.log) + 1, _SNAPSHOT_EVERY):
        machine.apply_chunk(oracle.entries(applied + 1, index))
        path = workspace / f"snapshot-{index}"
        last_included = oracle.id_at(index)
        checksum = machine.generate_snapshot_data(path, last_included)
        known = machine.snapshot_metadata()
        metadata = SnapshotMetadata(last_included, checksum, known.format if known else "")
        found[index] = metadata, path
        applied = index
    machine.kill()
    return found


def new_workspace(trial: Trial, name: str = "storm") -> Path:
    """Make a directory that holds an empty one for a machine, `data`."""
    workspace = trial.directory(name)
    (workspace / "data").mkdir()
    return workspace


def keep_image(directory: Path, image: Path) -> Path:
    """Copy a directory that no process is writing to."""
    shutil.copytree(directory, image, symlinks=True)
    return image


def restore_image(image: Path, directory: Path) -> None:
    """Put a copy in the place of a directory, so that the machine sees its old path."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(image, directory, symlinks=True)
