"""One run, cut into sessions that can be repeated from their beginning up to any system call.

A session is a process that starts the machine, works and stops it. It begins with the
directory that the one before left, so that a point late in the run costs no more than an
early one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.crash import Promises, Scenario, Step, plain
from dengine_sm.conformance.crash_runs import (
    crash_scenario,
    keep_image,
    new_workspace,
    raise_unexpected,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine, ScriptReport
from dengine_sm.conformance.processes.strace import Call, Strace, require_strace
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import Violation

SESSION_STEPS = 18
"""Of a script, start and stop not counted."""
OPERATIONS = {Profile.QUICK: 20, Profile.STANDARD: 40, Profile.DEEP: 200}
"""Calls of the machine in a whole run, at least."""


@attrs.frozen
class Session:
    """A process's work, and how it begins."""

    number: int
    steps: tuple[Step, ...]
    image: Path
    """Copy of the directory as it begins."""
    promises: Promises
    """As it begins."""
    calls: tuple[Call, ...]
    """The write-class system calls it makes in the machine's directories."""
    first_step: int
    """Number of its first step in the whole run."""


@attrs.frozen
class Point:
    """One system call of the run."""

    number: int
    """In the whole run, from 1."""
    session: Session
    call: Call

    @property
    def step(self) -> Step:
        """The call of the machine that makes it."""
        steps = self.session.steps
        return steps[min(self.call.step, len(steps) - 1)]

    @property
    def file(self) -> str:
        """Name of the file that it touches."""
        return Path(self.call.paths[-1]).name if self.call.paths else ""

    def row(self, outcome: str) -> list[Any]:
        """Return a line of a timeline."""
        step = f"step {self.session.first_step + self.call.step}, {self.step.method}"
        return [self.number, self.call.name, self.file, step, outcome]

    def __str__(self) -> str:
        return f"{self.call.name} number {self.call.number} ({self.file}) in {self.step.text}"


@attrs.define
class Run:
    """Carries out sessions in one workspace, whose path never changes."""

    trial: Trial
    nursery: Nursery
    workspace: Path
    has_one_thread: bool = True
    """False: the machine hangs without threads, and calls are counted in each thread."""

    @property
    def directory(self) -> Path:
        """The machine's directory."""
        return self.workspace / "data"

    def restore(self, image: Path) -> None:
        """Make the workspace hold nothing but a copied directory."""
        shutil.rmtree(self.workspace)
        self.workspace.mkdir()
        shutil.copytree(image, self.directory, symlinks=True)

    def spawn(self) -> RemoteMachine:
        """Construct a machine in a process whose n-th system call is always the same."""
        preparations = [("one_thread_only",)] if self.has_one_thread else []
        return self.nursery.spawn(self.directory, *preparations)

    def trace(self, machine: RemoteMachine, inject: str = "") -> Strace:
        """Return a tracer of the machine's process."""
        log = self.workspace.with_name(f"{self.workspace.name}.strace")
        log.unlink(missing_ok=True)
        return Strace(machine.pid, log, inject)

    def traced(self, steps: Sequence[Step], inject: str = "") -> tuple[ScriptReport, list[Call]]:
        """Run a script under strace; the process is dead on return."""
        machine = self.spawn()
        with self.trace(machine, inject) as tracer:
            report = carried_out(machine, steps)
            machine.kill()
            tracer.wait()
            return report, tracer.calls()


def carried_out(machine: RemoteMachine, steps: Sequence[Step]) -> ScriptReport:
    """Let a process carry out a script, to its end or the process's."""
    machine.begin_script([step.told for step in steps])
    return machine.script_report(len(steps))


def recorded_sessions(run: Run, scenario: Scenario, operations: int) -> list[Session]:
    """Carry out the whole run once, without a fault, and list its system calls."""
    promises = Promises(scenario.oracle, run.trial.subject.durability)
    sessions: list[Session] = []
    applied = first_step = 0
    while first_step < operations:
        script = scenario.script(applied, SESSION_STEPS, run.workspace)
        if not script:
            break
        applied = script[-1].after
        steps = (plain("start", script[0].before), *script, plain("stop", applied))
        image = keep_image(run.directory, run.trial.directory("session") / "data")
        report, calls = _recorded(run, image, steps)
        kept = tuple(call for call in calls if call.is_below(run.workspace))
        session = Session(len(sessions), steps, image, promises.copy(), kept, first_step)
        promises.record(steps, report)
        raise_unexpected(steps, report, promises)
        promises.recovered(applied)
        sessions.append(session)
        first_step += len(steps)
    return sessions


def _recorded(run: Run, image: Path, steps: Sequence[Step]) -> tuple[ScriptReport, list[Call]]:
    try:
        return run.traced(steps)
    except AssertionError:
        # The kit has killed a process that was silent: a thread waits for another one.
        if not run.has_one_thread:
            raise
        run.has_one_thread = False
        run.trial.evidence["counted"] = "per thread: the machine hangs without threads"
        run.restore(image)
        return run.traced(steps)


def points_of(sessions: Sequence[Session], count: int) -> Iterator[Point]:
    """Yield every system call of a run, or `count` of them, evenly spread; 0 for all."""
    every = [
        Point(number, session, call)
        for number, (session, call) in enumerate(
            ((session, call) for session in sessions for call in session.calls), start=1
        )
    ]
    if not count or count >= len(every):
        yield from every
        return
    for place in range(count):
        yield every[place * len(every) // count]


@attrs.define
class Sweep:
    """A recorded run, and what becomes of its points."""

    run: Run
    oracle: Oracle
    sessions: list[Session]
    rows: list[list[object]] = attrs.field(factory=list)
    counts: Counter[str] = attrs.field(factory=Counter)
    by_call: dict[str, Counter[str]] = attrs.field(factory=dict)
    came_back: int = 0
    """Chunks that were refused and were there after a restart."""

    def note(self, point: Point, kind: str, outcome: str) -> None:
        """Record what became of a point."""
        self.rows.append(point.row(outcome))
        self.counts[outcome] += 1
        self.by_call.setdefault(point.call.name, Counter()).update(("points", kind))

    def tell(self, points: int) -> None:
        """Put what was found into the evidence."""
        evidence = self.run.trial.evidence
        evidence["operations"] = sum(len(session.steps) for session in self.sessions)
        evidence["sessions"] = len(self.sessions)
        evidence["points"] = points
        evidence["outcomes"] = dict(self.counts)
        evidence["by_call"] = {name: dict(kinds) for name, kinds in self.by_call.items()}
        evidence["timeline"] = self.rows


@contextlib.contextmanager
def recorded_sweep(trial: Trial, salt: int) -> Iterator[Sweep]:
    """Record a run and list its points."""
    trial.needs_survival()
    require_strace()
    operations = OPERATIONS[trial.profile]
    with crash_scenario(trial, salt=salt, entries=6 * operations) as (nursery, scenario, _):
        run = Run(trial, nursery, new_workspace(trial, "sweep"))
        yield Sweep(run, scenario.oracle, recorded_sessions(run, scenario, operations))


@contextlib.contextmanager
def at_point(sweep: Sweep, point: Point, kind: str) -> Iterator[Promises]:
    """Set the workspace up for a point; a violation goes into the timeline, and names it."""
    __tracebackhide__ = True
    sweep.run.restore(point.session.image)
    promises = point.session.promises.copy()
    promises.note(f"({kind} at {point})")
    try:
        yield promises
    except Violation as exc:
        sweep.note(point, "violated", f"violated {exc.clause}")
        sweep.tell(len(sweep.rows))
        raise


def with_threads_if_needed(
    sweep: Sweep,
    point: Point,
    promises: Promises,
    attempt: Callable[[Sweep, Point, Promises], str],
) -> str:
    """Try a point again with threads if the machine hangs without them."""
    __tracebackhide__ = True
    run = sweep.run
    try:
        return attempt(sweep, point, promises.copy())
    except Violation:
        raise
    except AssertionError:
        # The process was silent and the kit has killed it.
        if not run.has_one_thread:
            raise
    run.restore(point.session.image)
    run.has_one_thread = False
    try:
        return attempt(sweep, point, promises)
    finally:
        run.has_one_thread = True
