"""What a process is told to do before it is killed, and what may be found afterwards."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import ScriptReport, StepReport
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.violation import Violation, expect_true, violates
from dengine_sm.conformance.workload import sample_log
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import (
    CompareAndSwap,
    InSession,
    OpenSession,
    Put,
    encode_command,
)
from dengine_sm.model import Durability, Entry, Limits, SnapshotMetadata

MAKES_DURABLE: Mapping[str, str] = {
    "flush": "CRASH-2",
    "flush_async": "CRASH-2",
    "save_hard_state": "CRASH-2",
    "persist_last_applied": "CRASH-2",
    "stop": "LIFE-4",
}
"""Methods after which everything applied so far must survive, and by which clause."""

EVERYTHING: Mapping[str, int] = {
    "apply": 24,
    "flush": 2,
    "flush_async": 2,
    "save_hard_state": 2,
    "persist_last_applied": 2,
    "generate": 1,
    "install": 1,
    "restart": 1,
}
"""How often a script does what, in parts of the whole."""

_SKIPPABLE_EVERY = 13
_SESSION_EVERY, _SESSION_AT = 6, 4
_MAX_CHUNK = 9
_DUPLICATES = (0, 0, 0, 1, 3)
_HISTORY_LINES = 14


def crash_log(subject: Subject, count: int, seed: int, *, grows: bool = False) -> list[Entry]:
    """Return a log with some entries that `persist_last_applied` may skip.

    They hold no command and no new time, so that it is all the same whether they are
    applied or only counted. In a key-value log some values are large, so that files roll
    and are compacted; with `grows` more of them, for keys of their own. And a session is
    open, whose commands come twice each.
    """
    log = sample_log(subject.workload, count, seed)
    if subject.is_key_value:
        limits = subject.limits or Limits()
        size = min(1500 if grows else 700, limits.max_value_bytes)
        for position in range(2, count, 3 if grows else 7):
            index = log[position].index
            key = b"large-%d" % (index if grows else index % 5)
            value = (b"%d" % index).ljust(size, b".")[:size]
            log[position] = attrs.evolve(log[position], data=encode_command(Put(key, value)))
        for number, position in enumerate(range(_SESSION_AT, count, _SESSION_EVERY)):
            data = _in_session(log[_SESSION_AT].index, number)
            log[position] = attrs.evolve(log[position], data=data)
    for position in range(_SKIPPABLE_EVERY, count, _SKIPPABLE_EVERY):
        before = log[position - 1]
        log[position] = attrs.evolve(log[position], timestamp_ms=before.timestamp_ms, data=b"")
    return log


def _in_session(session_id: int, number: int) -> bytes:
    """Return the command of a number: what opens the session, then swaps that fit once only."""
    if number == 0:
        return encode_command(OpenSession())
    sequence = (number + 1) // 2
    swap = CompareAndSwap(b"once-%d" % (sequence % 5), None, b"%d" % sequence)
    return encode_command(InSession(session_id, sequence, swap))


def is_skippable(index: int) -> bool:
    """Tell whether the entry at an index of a `crash_log` may be skipped."""
    return index > 1 and (index - 1) % _SKIPPABLE_EVERY == 0


@attrs.frozen
class Step:
    """One call of a script."""

    method: str
    args: tuple[Any, ...]
    before: int
    """Applied index when it begins."""
    after: int
    """Applied index when it has ended."""
    text: str
    """The call as it is shown in a history."""

    @property
    def told(self) -> tuple[str, Sequence[Any], bool]:
        """What `RemoteMachine.begin_script` takes; an error ends the script."""
        return self.method, self.args, False


@attrs.define
class Scenario:
    """Writes scripts over one log; equal seeds write equal scripts."""

    oracle: Oracle
    rng: random.Random
    snapshots: Mapping[int, tuple[SnapshotMetadata, Path]]
    """Snapshots of the log that another machine took, by last included index."""
    duplicates: Sequence[int] = _DUPLICATES
    """How many a chunk may have in front."""
    _generated: int = 0

    def script(
        self, applied: int, count: int, workspace: Path, mix: Mapping[str, int] = EVERYTHING
    ) -> list[Step]:
        """Return calls for a running machine, about `count`, fewer at the end of the log."""
        steps: list[Step] = []
        kinds, weights = list(mix), list(mix.values())
        while len(steps) < count and applied < len(self.oracle.log):
            kind = self.rng.choices(kinds, weights)[0]
            steps += getattr(self, f"_{kind}")(applied, workspace) or self._apply(applied, None)
            applied = steps[-1].after
        return steps

    def chunk(self, applied: int, last: int, *, duplicates: int = 0) -> Step:
        """Return the apply of what follows up to `last`, duplicates in front."""
        first = max(1, applied + 1 - duplicates)
        entries = self.oracle.entries(first, last)
        text = f"apply_chunk(entries {first}..{last})"
        return Step("apply_chunk", (entries,), applied, max(applied, last), text)

    def _apply(self, applied: int, _workspace: Path | None) -> list[Step]:
        last = min(applied + self.rng.randint(1, _MAX_CHUNK), len(self.oracle.log))
        return [self.chunk(applied, last, duplicates=self.rng.choice(self.duplicates))]

    def _flush(self, applied: int, _workspace: Path) -> list[Step]:
        return [plain("flush", applied)]

    def _flush_async(self, applied: int, _workspace: Path) -> list[Step]:
        return [plain("flush_async", applied)]

    def _save_hard_state(self, applied: int, _workspace: Path) -> list[Step]:
        return [plain("save_hard_state", applied)]

    def _persist_last_applied(self, applied: int, _workspace: Path) -> list[Step]:
        after = applied + 1 if is_skippable(applied + 1) else applied
        target = self.oracle.id_at(after)
        text = f"persist_last_applied({target})"
        return [Step("persist_last_applied", (target,), applied, after, text)] if after else []

    def _generate(self, applied: int, workspace: Path) -> list[Step]:
        self._generated += 1
        name = f"generated-{self._generated}"
        last_included = self.oracle.id_at(applied)
        text = f"generate_snapshot_data({name!r}, {last_included})"
        args = (workspace / name, last_included)
        return [Step("generate_snapshot_data", args, applied, applied, text)] if applied else []

    def _install(self, applied: int, _workspace: Path) -> list[Step]:
        ahead = min((index for index in self.snapshots if index > applied), default=None)
        if ahead is None:
            return []
        metadata, path = self.snapshots[ahead]
        text = f"apply_snapshot_from_file(snapshot of {metadata.last_included})"
        return [Step("apply_snapshot_from_file", (metadata, path), applied, ahead, text)]

    def _stop(self, applied: int, _workspace: Path) -> list[Step]:
        return [plain("stop", applied)]

    def _restart(self, applied: int, _workspace: Path) -> list[Step]:
        return [plain(method, applied) for method in ("stop", "start", "last_applied")]


def plain(method: str, applied: int) -> Step:
    """Return a call without arguments, which leaves the applied index."""
    return Step(method, (), applied, applied, f"{method}()")


@attrs.define
class Promises:
    """What one directory may hold after a kill, from what its machines have told."""

    oracle: Oracle
    durability: Durability
    floor: int = 0
    """Applied index that must not be lost."""
    floor_by: str = "nothing"
    floor_clause: str = "CRASH-2"
    boundaries: set[int] = attrs.field(factory=lambda: {0})
    """Ends of the chunks that were begun, and ids that were set otherwise."""
    installed: set[int] = attrs.field(factory=set)
    """Last included indices of the installs begun."""
    under_way: Step | None = None
    """The call that the kill cut short."""
    history: list[str] = attrs.field(factory=list)

    def copy(self) -> Promises:
        """Return an independent copy."""
        return attrs.evolve(
            self,
            boundaries=set(self.boundaries),
            installed=set(self.installed),
            history=list(self.history),
        )

    def record(self, steps: Sequence[Step], report: ScriptReport) -> None:
        """Take in how far a script came."""
        self.under_way = None
        for step, told in zip(steps, report.steps, strict=True):
            if told.begun:
                self.record_step(step, told)

    def record_step(self, step: Step, told: StepReport) -> None:
        """Take in one call that was begun."""
        self.boundaries.add(step.after)
        if step.method == "apply_snapshot_from_file":
            self.installed.add(step.after)
        if told.error is not None:
            self.note(f"{step.text} -> {type(told.error).__name__}")
        elif not told.ended:
            self.under_way = step
            self.note(f"{step.text} -> killed")
        else:
            self.note(f"{step.text} -> returned")
            self._promise(step)

    def note(self, line: str) -> None:
        """Add a line to the history."""
        self.history.append(line)

    def _promise(self, step: Step) -> None:
        clause = MAKES_DURABLE.get(step.method)
        if step.method == "apply_chunk" and self.durability is Durability.PER_APPLY:
            clause = "CRASH-2"
        if clause is not None and step.after > self.floor:
            self.floor, self.floor_by, self.floor_clause = step.after, step.text, clause

    def recovered(self, index: int) -> None:
        """Go on from what was found: what lay beyond it is lost, and may come otherwise."""
        self.boundaries = {known for known in self.boundaries if known <= index}
        self.installed = {known for known in self.installed if known <= index}
        self.under_way = None
        self.note(f"last_applied() is at index {index}")

    @property
    def recent(self) -> list[str]:
        """The end of the history, for a failure."""
        cut = len(self.history) - _HISTORY_LINES
        return ([f"({cut} earlier calls)"] if cut > 0 else []) + self.history[-_HISTORY_LINES:]

    @property
    def clause(self) -> str:
        """The clause that says what a recovered state must be."""
        step = self.under_way
        return "SNAP-7" if step and step.method == "apply_snapshot_from_file" else "CRASH-1"

    def check(self, machine: StateMachine, *, clause: str = "") -> int:
        """Compare a recovered, running machine with what may be found.

        Args:
            machine: the machine.
            clause: what all that is wrong violates, where it is not for the kill to say.

        Returns:
            The applied index found.
        """
        __tracebackhide__ = True
        history = self.recent
        index = checked_state(
            self.oracle, clause or self.clause, machine, "after the kill", history
        )
        expect_true(
            clause or self.floor_clause,
            f"last_applied(): at least index {self.floor}, which {self.floor_by} had made durable",
            f"last_applied(): index {index}",
            holds=index >= self.floor,
            history=history,
        )
        expect_true(
            clause or "CRASH-3",
            f"last_applied(): the end of a chunk, {self._ends_near(index)}",
            f"last_applied(): index {index}",
            holds=index in self.boundaries,
            history=history,
        )
        self._check_terms(machine, index, clause or "LOG-2")
        return index

    def _ends_near(self, index: int) -> str:
        below = max((end for end in self.boundaries if end < index), default=0)
        above = min((end for end in self.boundaries if end > index), default=None)
        return f"index {below}" if above is None else f"index {below} or {above}"

    def _check_terms(self, machine: StateMachine, index: int, clause: str) -> None:
        """Ask for some terms: at both ends of what is known, beyond them, and between."""
        __tracebackhide__ = True
        first = max((known for known in self.installed if known <= index), default=1)
        for wanted in sorted({first - 1, first, (first + index) // 2, index, index + 1} - {0}):
            is_known = first <= wanted <= index
            expected = self.oracle.id_at(wanted).term if is_known else None
            observed = machine.entry_term(wanted)
            expect_true(
                clause,
                f"entry_term({wanted}) after the kill: {expected}",
                f"entry_term({wanted}) after the kill: {observed}",
                holds=expected == observed,
                history=self.recent,
            )


def checked_state(
    oracle: Oracle,
    clause: str,
    machine: StateMachine,
    what: str,
    history: Sequence[str] = (),
    *,
    index: int | None = None,
) -> int:
    """Compare a machine with the model; an exception violates the clause as well."""
    __tracebackhide__ = True
    try:
        return oracle.check_state(clause, machine, index=index, what=what, history=history)
    except Violation:
        raise
    except Exception as exc:
        violates(
            clause,
            expected=f"a state that can be read {what}",
            observed=f"{type(exc).__name__}: {exc}",
            history=history,
        )
