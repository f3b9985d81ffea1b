"""One machine, its log and the model of it: what the rules of a random history stand on."""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from hypothesis.strategies import SearchStrategy

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.several import call_several
from dengine_sm.conformance.shorten import Act
from dengine_sm.conformance.steps import Step, steps
from dengine_sm.conformance.survivors import Place, Survivors
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import Violation, expect_equal, violates
from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS
from dengine_sm.model import Durability, Entry, LogId, SnapshotMetadata

WEIGHTS = {
    "apply_chunk": 6,
    "apply_duplicates": 2,
    "flush": 2,
    "install_snapshot": 3,
    "kill_and_restart": 3,
    "reset": 2,
    "stop_and_start": 2,
}
"""How much more often than others, of which a few are enough, some rules are chosen."""

_Act = TypeVar("_Act", bound=Callable[..., None])


class World:
    """What all histories of one check share.

    Args:
        trial: the check's.
        spawn: constructs a machine on a directory, with sync methods (`RemoteMachine`,
            `LocalMachine`).
    """

    def __init__(self, trial: Trial, spawn: Callable[[Path], Any]) -> None:
        self.trial = trial
        self.spawn = spawn
        self.step = steps(trial.subject.workload)
        self.chunk = st.lists(self.step, min_size=1, max_size=8)
        self.calls: collections.Counter[str] = collections.Counter()
        """How often each thing was done, for the report."""
        self._even_choice: SearchStrategy[Any] | None = None
        self.violation: Violation | None = None
        """What the shortest failing history found; its calls are `Violation.history`."""
        self.acts: list[Act] = []
        """That history."""

    def even_choice(self, rules: Sequence[Any]) -> SearchStrategy[Any]:
        """Return a strategy for a rule and its arguments: any rule, at any time."""
        if self._even_choice is None:
            listed = [one for one in rules for _ in range(WEIGHTS.get(one.function.__name__, 1))]
            listed.sort(key=lambda one: (len(one.arguments), one.function.__name__))
            self._even_choice = st.sampled_from(listed).flatmap(
                lambda one: st.tuples(st.just(one), st.fixed_dictionaries(one.arguments))
            )
        return self._even_choice

    def end(self, exc: BaseException | None, acts: Sequence[Act]) -> None:
        """Keep what a history found, if no shorter one has found anything."""
        if isinstance(exc, Violation):
            exc.history = tuple(map(repr, acts))
            if self.violation is None or _size(exc) <= _size(self.violation):
                self.violation, self.acts = exc, list(acts)


def _size(violation: Violation) -> tuple[int, int]:
    return len(violation.history), sum(map(len, violation.history))


@attrs.frozen
class Snapshot:
    """A snapshot of the present log, written by the machine."""

    metadata: SnapshotMetadata
    path: Path


def act(*, first: bool = False, **arguments: SearchStrategy[Any]) -> Callable[[_Act], _Act]:
    """Make a rule of a method; a dry history draws the arguments and does nothing.

    Args:
        first: whether every history begins with it.
        arguments: strategies for the method's own.
    """

    def decorate(function: _Act) -> _Act:
        @functools.wraps(function)
        def wrapped(history: MachineUnderTest, **drawn: Any) -> None:
            if not history.is_dry:
                history.play(Act(function, drawn))

        make_rule: Any = initialize if first else rule
        return cast(_Act, make_rule(**arguments)(wrapped))

    return decorate


class MachineUnderTest(RuleBasedStateMachine):
    """The machine beside its model, and the calls and comparisons that rules are made of.

    The log is kept: a machine that was reset, or lost a tail, is given the same entries
    again, as Raft would. No rule depends on what the machine says, so that equal choices
    make equal histories whatever a kill leaves.
    """

    def __init__(self, world: World, *, is_dry: bool = False, is_even: bool = False) -> None:
        super().__init__()
        self.world = world
        if is_even:
            # Hypothesis leaves some rules out of every history, often nearly all of them.
            self._rules_strategy = world.even_choice(self.rules)  # type: ignore[assignment]  # drawn alike
        self.is_dry = is_dry
        self.acts: list[Act] = []
        self.trial = world.trial
        self.directory = world.trial.directory()
        durability = world.trial.subject.durability
        self.survivors = Survivors(is_per_apply=durability is Durability.PER_APPLY)
        self.since = "APPLY-4"
        """The clause by which later chunks must come out right."""
        self.begun: tuple[LogId, Path] | None = None
        self.start_new_log()
        if not is_dry:
            world.calls["histories"] += 1
            self.machine = world.spawn(self.directory)
            self.call("LIFE-1", "start")

    def teardown(self) -> None:
        """Tell what was found; called by hypothesis, also when a rule raises."""
        if not self.is_dry:
            self.close(sys.exc_info()[1])

    def close(self, exc: BaseException | None) -> None:
        """Leave nothing running."""
        self.world.end(exc, self.acts)
        self.machine.kill()
        self.trial.stop_all()

    def play(self, act: Act) -> None:
        """Carry out an act."""
        self.acts.append(act)
        act.function(self, **act.arguments)

    # The log

    def start_new_log(self) -> None:
        """Forget the log and its snapshots."""
        self.oracle = Oracle(self.trial.subject.workload)
        self.snapshots: list[Snapshot] = []
        self.term, self.now_ms = 1, FIRST_TIMESTAMP_MS

    @property
    def applied(self) -> int:
        """Index that the machine has applied."""
        return self.survivors.now.index

    def unapplied(self, chunk: Sequence[Step] = ()) -> list[Entry]:
        """Append a chunk to the log and return all that the machine has not applied yet."""
        for step in chunk:
            self.term += step.is_new_term
            self.now_ms = max(0, self.now_ms + step.jump_ms)
            index = len(self.oracle.log) + 1
            self.oracle.extend([Entry(index, self.term, self.now_ms, step.data)])
        return self.oracle.entries(self.applied + 1, len(self.oracle.log))

    # Calls

    @contextlib.contextmanager
    def blamed(self, clause: str, call: str) -> Iterator[None]:
        """Blame a clause for an exception that no rule expects."""
        try:
            yield
        except Violation:
            raise
        except Exception as exc:
            raise Violation(
                clause,
                expected=f"{call} returns",
                observed=f"{call} raised {type(exc).__name__}: {exc}",
            ) from exc

    def call(self, clause: str, method: str, *args: Any) -> Any:
        """Call a method that must not fail."""
        self.world.calls[method] += 1
        with self.blamed(clause, method):
            return getattr(self.machine, method)(*args)

    def refused(self, clause: str, error: type[Exception], method: str, *args: Any) -> None:
        """Call a method that must raise."""
        self.world.calls[f"{method} refused"] += 1
        expected = f"{method} raises {error.__name__}"
        try:
            outcome = getattr(self.machine, method)(*args)
        except error:
            return
        except Exception as exc:
            violates(clause, expected=expected, observed=f"{type(exc).__name__}: {exc}")
        violates(clause, expected=expected, observed=f"{method} returned {outcome!r}")

    def apply(self, clause: str, chunk: Sequence[Entry]) -> None:
        """Apply a chunk and compare results and state."""
        if not chunk:
            return
        applied = self.applied
        results = self.call("SNAP-3" if self.begun else clause, "apply_chunk", list(chunk))
        self.oracle.check_results(clause, chunk, results, applied=applied)
        if chunk[-1].index > applied:
            self.survivors.apply(chunk[-1].index)
        self.agree(clause)

    def catch_up(self) -> None:
        """Apply what a kill or a reset took away."""
        self.apply(self.since, self.unapplied())

    def begin_snapshot_now(self) -> None:
        """Begin to write a snapshot, if there is anything to write."""
        self.finish_begun_snapshot()
        last_included = self.oracle.id_at(self.applied)
        if last_included.index:
            path = self.trial.directory("snapshot") / "data"
            self.world.calls["generate_snapshot_data"] += 1
            with self.blamed("SNAP-1", "generate_snapshot_data"):
                self.machine.begin("snapshot", "generate_snapshot_data", path, last_included)
            self.begun = last_included, path

    def finish_begun_snapshot(self) -> None:
        """Wait for the snapshot that was begun, if any; only applies and reads may overlap."""
        if self.begun is None:
            return
        last_included, path = self.begun
        with self.blamed("SNAP-1", "generate_snapshot_data"):
            checksum = self.machine.finish("snapshot")
            found = self.machine.snapshot_metadata()
        self.begun = None
        if found is None or (found.last_included, found.checksum) != (last_included, checksum):
            expected = f"snapshot_metadata() with {last_included} and the checksum returned"
            violates("SNAP-2", expected=expected, observed=found)
        self.snapshots.append(Snapshot(found, path))
        self.survivors.note(found)
        self.agree("SNAP-3")

    def start_new_machine(self, directory: Path) -> None:
        """Leave the machine to its fate and start another, on its directory or a new one."""
        self.machine.kill()
        self.directory = directory
        self.machine = self.world.spawn(directory)

    # Comparisons

    def agree(self, clause: str) -> None:
        """Compare what matters with the model, in few messages."""
        machine = self.machine
        with self.blamed(clause, "a read"):
            seen = self.trial.subject.workload.observe_at_once(machine)
            observed = self.trial.subject.workload.observe(machine) if seen is None else seen[0]
            self._agree_on_numbers(clause, machine)
        what = f"state at index {self.applied}"
        expect_equal(clause, what, self.oracle.observation_at(self.applied), observed)

    def agree_in_full(self, clause: str, reader: Any = None) -> None:
        """Compare everything with the model, every key by itself."""
        machine = reader or self.machine
        with self.blamed(clause, "a read"):
            self.oracle.check_state(clause, machine, index=self.applied)
            self._agree_on_numbers(clause, machine)

    def _agree_on_numbers(self, clause: str, machine: Any) -> None:
        terms = self.terms_at(self.survivors.now)
        calls: list[list[Any]] = [["last_applied"], ["len"], ["snapshot_metadata"]]
        calls += [["entry_term", index] for index in terms]
        last_applied, length, metadata, *found = machine.run(call_several, calls)
        expect_equal(clause, "last_applied()", self.oracle.id_at(self.applied), last_applied)
        expect_equal(clause, "len()", self.oracle.length_at(self.applied), length)
        expect_equal("LOG-2", "entry_term(...)", terms, dict(zip(terms, found, strict=True)))
        if self.begun is None:
            expected = self.survivors.metadata
            clause = "RESET-1" if expected is None else "SNAP-2"
            expect_equal(clause, "snapshot_metadata()", expected, metadata)

    def terms_at(self, place: Place) -> dict[int, int | None]:
        """Return what `entry_term` must say around both ends of what is known (LOG-2)."""
        first, last = place.terms_from, place.index
        if first is None:
            return {}
        indices = {max(first - 1, 1), first, (first + last) // 2, last, last + 1} - {0}
        return {
            index: self.oracle.id_at(index).term if first <= index <= last else None
            for index in sorted(indices)
        }
