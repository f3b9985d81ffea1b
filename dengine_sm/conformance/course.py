"""A fixed course of calls for a machine in this process, over one log."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.trial import Trial, apply_all, take_snapshot
from dengine_sm.contract import StateMachine
from dengine_sm.model import Durability, SnapshotMetadata

_CHUNK = 5


@attrs.frozen
class Call:
    """One call of a course."""

    method: str
    text: str
    """The call as it is shown in a history."""
    before: int
    """Applied index when it begins."""
    after: int
    """Applied index when it has ended."""
    function: Callable[[StateMachine], Any]
    """Of a machine in this process or, where nothing is to be awaited, in another."""
    promises: bool = False
    """Whether everything applied is durable once it has returned."""

    def make(self, trial: Trial, machine: StateMachine) -> None:
        """Make the call and wait for its end."""
        outcome = self.function(machine)
        if inspect.isawaitable(outcome):
            trial.run(outcome)


@attrs.define
class Course:
    """Writes calls; equal seeds write equal courses."""

    trial: Trial
    oracle: Oracle
    rng: random.Random
    applied: int = 0

    def call(self, method: str) -> Call:
        """Return a call without arguments."""
        # `stop` flushes before it closes (contract, section 2).
        promises = method in ("flush", "flush_async", "save_hard_state", "stop")
        return Call(
            method,
            f"{method}()",
            self.applied,
            self.applied,
            lambda machine: getattr(machine, method)(),
            promises,
        )

    def apply(self) -> Call:
        """Return the apply of the next few entries."""
        before = self.applied
        self.applied = min(before + self.rng.randint(1, _CHUNK), len(self.oracle.log))
        chunk = self.oracle.entries(before + 1, self.applied)
        return Call(
            "apply_chunk",
            f"apply_chunk(entries {before + 1}..{self.applied})",
            before,
            self.applied,
            lambda machine: machine.apply_chunk(chunk),
            self.trial.subject.durability is Durability.PER_APPLY,
        )

    def persist(self) -> Call:
        """Return a `persist_last_applied` of the id that is applied already."""
        applied = self.oracle.id_at(self.applied)
        return Call(
            "persist_last_applied",
            f"persist_last_applied({applied})",
            self.applied,
            self.applied,
            lambda machine: machine.persist_last_applied(applied),
            promises=True,
        )

    def snapshot(self) -> Call:
        """Return the taking of a snapshot, outside the machine's directory."""
        trial, last_included = self.trial, self.oracle.id_at(self.applied)
        return Call(
            "generate_snapshot_data",
            f"generate_snapshot_data(..., {last_included})",
            self.applied,
            self.applied,
            # A new one each time the call is made.
            lambda machine: machine.generate_snapshot_data(
                trial.directory("snapshot") / "taken", last_included
            ),
        )

    def install(self, metadata: SnapshotMetadata, directory: Path) -> Call:
        """Return the install of a snapshot of the log that is ahead."""
        before, self.applied = self.applied, metadata.last_included.index
        return Call(
            "apply_snapshot_from_file",
            f"apply_snapshot_from_file(snapshot of {metadata.last_included})",
            before,
            self.applied,
            lambda machine: machine.apply_snapshot_from_file(metadata, directory),
        )

    def applies(self, count: int) -> Iterator[Call]:
        """Yield applies, with one that makes all durable after every third."""
        promises = ("flush", "save_hard_state", "flush_async", "persist_last_applied")
        for number in range(count):
            if self.applied < len(self.oracle.log):
                yield self.apply()
            if number % 3 == 2:
                method = promises[number // 3 % len(promises)]
                yield self.persist() if method == "persist_last_applied" else self.call(method)


def whole_course(trial: Trial, oracle: Oracle) -> list[Call]:
    """Return a life: starts, applies, every way to make durable, snapshot, install, stop."""
    course = Course(trial, oracle, random.Random(trial.seed))  # noqa: S311 - no secret
    third = max(3, len(oracle.log) // _CHUNK // 2)
    calls = [course.call("start"), *course.applies(third), course.snapshot()]
    ahead = min(course.applied + _CHUNK, len(oracle.log))
    if ahead > course.applied:
        calls.append(course.install(*snapshot_at(trial, oracle, ahead)))
    # The last of the four is not flushed: that is for stop to do.
    calls += [*course.applies(4), course.call("stop"), course.call("start")]
    calls += [*course.applies(third), course.call("flush")]
    return calls


def snapshot_at(trial: Trial, oracle: Oracle, index: int) -> tuple[SnapshotMetadata, Path]:
    """Take a snapshot of the log up to an index, with another machine."""
    directory = trial.directory("leader") / "snapshot"
    machine = trial.open()
    trial.run(apply_all(machine, oracle.entries(1, index)))
    metadata: SnapshotMetadata = trial.run(take_snapshot(machine, directory))
    machine.stop()
    return metadata, directory
