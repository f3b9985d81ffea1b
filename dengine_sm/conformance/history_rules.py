"""Random histories: everything a node does to a machine, compared after every step."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.history import MachineUnderTest, act
from dengine_sm.conformance.steps import Step
from dengine_sm.conformance.survivors import Place
from dengine_sm.conformance.violation import expect_equal
from dengine_sm.errors import LogGapError, LogOrderError, NotRunningError, StaleSnapshotError
from dengine_sm.model import Entry

_STEP = st.runner().flatmap(lambda history: history.world.step)
_CHUNK = st.runner().flatmap(lambda history: history.world.chunk)


class History(MachineUnderTest):
    """Everything short of a kill."""

    # The log

    @act(first=True, chunk=_CHUNK)
    def apply_first_chunk(self, chunk: list[Step]) -> None:
        """Begin with something in the log."""
        self.apply(self.since, self.unapplied(chunk))

    @act(chunk=_CHUNK)
    def apply_chunk(self, chunk: list[Step]) -> None:
        """Apply the rest of the log and new entries, as one chunk."""
        self.apply(self.since, self.unapplied(chunk))

    @act(count=st.integers(1, 20))
    def replay_log(self, count: int) -> None:
        """Apply a part of what a kill or a reset took away, if anything."""
        self.apply(self.since, self.oracle.entries(self.applied + 1, self.applied + count))

    @act(back=st.integers(1, 12), altered=st.none() | _STEP, new=st.lists(_STEP, max_size=2))
    def apply_duplicates(self, back: int, altered: Step | None, new: list[Step]) -> None:
        """Apply entries again, perhaps with another content, and new ones behind them."""
        self.catch_up()
        again = self.oracle.entries(max(1, self.applied - back + 1), self.applied)
        if altered is not None:
            again = [attrs.evolve(entry, data=altered.data) for entry in again]
        self.apply("APPLY-5" if again else self.since, again + self.unapplied(new))

    @act(data=st.binary(min_size=1, max_size=6))
    def apply_malformed(self, data: bytes) -> None:
        """Apply bytes that are hardly a command."""
        self.catch_up()
        self.apply("APPLY-7", self.unapplied([Step(data, 0, False, "")]))

    @act(step=_STEP, missing=st.integers(1, 3), inside=st.booleans())
    def refuse_gap(self, step: Step, missing: int, inside: bool) -> None:
        """Offer entries of which one before, or one in between, is missing."""
        applied = self.oracle.id_at(self.applied)
        indices = [applied.index + 1] * inside + [applied.index + 1 + inside + missing]
        chunk = [Entry(i, max(1, applied.term), self.now_ms, step.data) for i in indices]
        self.refused("APPLY-6", LogGapError, "apply_chunk", chunk)
        self.agree("APPLY-6")

    @act(step=_STEP, back=st.integers(1, 12), durably=st.booleans())
    def refuse_to_go_back(self, step: Step, back: int, durably: bool) -> None:
        """Offer an entry of an earlier term, and an earlier applied id."""
        self.finish_begun_snapshot()
        applied = self.oracle.id_at(self.applied)
        if applied.term > 1:
            entry = Entry(applied.index + 1, applied.term - 1, self.now_ms, step.data)
            self.refused("APPLY-6", LogOrderError, "apply_chunk", [entry])
            self.agree("APPLY-6")
        if applied.index:
            method = "persist_last_applied" if durably else "update_last_applied"
            lower = self.oracle.id_at(max(0, applied.index - back))
            self.refused("LOG-1", LogOrderError, method, lower)
            self.agree("LOG-1")

    @act(durably=st.booleans(), in_a_new_term=st.booleans())
    def advance_last_applied(self, durably: bool, in_a_new_term: bool) -> None:
        """Move the applied id past one entry without a command, as a leader's first."""
        self.finish_begun_snapshot()
        self.catch_up()
        self.term += in_a_new_term
        # The machine sees no timestamp of it, and 0 moves no clock.
        self.oracle.extend([Entry(len(self.oracle.log) + 1, self.term, 0, b"")])
        method = "persist_last_applied" if durably else "update_last_applied"
        self.call("LOG-1", method, self.oracle.last)
        self.survivors.advance(self.oracle.last.index)
        if durably:
            self.survivors.promise_place("LOG-3")
        self.agree("LOG-1")

    # Reads and durability

    @act()
    def read_in_another_thread(self) -> None:
        """Compare what another thread reads."""
        reader = _InThread(self.machine)
        self.agree_in_full("READ-1", reader)
        with self.blamed("READ-1", "a read"):
            expect_equal("READ-1", "is_empty()", reader.len() == 0, reader.is_empty())
            seen = self.trial.subject.workload.observe_at_once(reader)
        if seen is not None:
            expected = self.oracle.observation_at(self.applied)
            expect_equal("READ-2", "state read at once", expected, seen[0])
            applied = self.oracle.id_at(self.applied)
            expect_equal("READ-2", "id of that state", applied, seen[1] or applied)

    @act(without_blocking=st.booleans())
    def flush(self, without_blocking: bool) -> None:
        """Make everything applied durable."""
        self.call("CRASH-2", "flush_async" if without_blocking else "flush")
        self.survivors.promise_applied("CRASH-2")
        self.agree("CRASH-2")

    @act()
    def persist_last_applied(self) -> None:
        """Make the applied id, and everything at or below it, durable."""
        self.finish_begun_snapshot()
        self.call("LOG-3", "persist_last_applied", self.oracle.id_at(self.applied))
        self.survivors.promise_place("LOG-3")
        self.agree("LOG-3")

    @act()
    def save_hard_state(self) -> None:
        """Make the whole place in the log durable."""
        self.finish_begun_snapshot()
        self.call("LOG-4", "save_hard_state")
        self.survivors.promise_all("LOG-4")
        self.agree("LOG-4")

    # Snapshots

    @act()
    def generate_snapshot(self) -> None:
        """Write a snapshot of the present state."""
        self.begin_snapshot_now()
        self.finish_begun_snapshot()

    @act()
    def begin_snapshot(self) -> None:
        """Begin to write a snapshot; applies and reads go on."""
        self.begin_snapshot_now()

    @act()
    def persist_snapshot_metadata(self) -> None:
        """Record the newest snapshot durably."""
        self.finish_begun_snapshot()
        if self.survivors.metadata is not None:
            metadata = self.survivors.metadata
            self.call("SNAP-10", "persist_last_snapshot_metadata", metadata)
            self.survivors.promise_metadata("SNAP-10")
            self.agree("SNAP-10")

    @act(which=st.integers(0, 5), into=st.sampled_from(("this one", "a new one", "a reset one")))
    def install_snapshot(self, which: int, into: str) -> None:
        """Install a snapshot of this log, newest first; a stale one is refused."""
        self.finish_begun_snapshot()
        if not self.snapshots:
            self.begin_snapshot_now()
            self.finish_begun_snapshot()
        if not self.snapshots:
            return
        snapshot = self.snapshots[-1 - which % len(self.snapshots)]
        if into == "a reset one":
            self._reset()
        elif into == "a new one":
            self.start_new_machine(self.trial.directory())
            self.call("LIFE-1", "start")
            self.survivors.start_again("LIFE-1")
        arguments = "apply_snapshot_from_file", snapshot.metadata, snapshot.path
        if snapshot.metadata.last_included.index < self.applied:
            self.refused("SNAP-6", StaleSnapshotError, *arguments)
            self.agree("SNAP-6")
            return
        self.call("SNAP-5", *arguments)
        self.survivors.install(snapshot.metadata)
        self.since = "SNAP-9"
        self.agree_in_full("SNAP-5")

    # Life

    @act(new_log=st.booleans())
    def reset(self, new_log: bool) -> None:
        """Go back to the initial state; the log comes again, or another one does."""
        self.finish_begun_snapshot()
        self._reset()
        if new_log:
            self.start_new_log()
        self.agree_in_full("RESET-1")

    def _reset(self) -> None:
        self.call("RESET-1", "reset")
        self.survivors.start_again("RESET-1")
        self.since = "RESET-1"

    @act(as_new_object=st.booleans())
    def stop_and_start(self, as_new_object: bool) -> None:
        """Stop, and start the same object or another one on the same directory."""
        self.finish_begun_snapshot()
        self.call("LIFE-4", "stop")
        self.refused("LIFE-3", NotRunningError, "last_applied")
        if as_new_object:
            self.start_new_machine(self.directory)
        self.call("LIFE-4", "start")
        if self.trial.subject.is_transient:
            self._start_from_what_is_left()
            self.agree_in_full("APPLY-2")
        else:
            self.survivors.promise_all("LIFE-4")
            self.since = "LIFE-4"
            self.agree_in_full("LIFE-4")

    def _start_from_what_is_left(self) -> None:
        """Note what a TRANSIENT machine begins with: nothing, where it keeps its word."""
        found = self.call("LIFE-2", "last_applied")
        self.survivors.start_again("LIFE-2", Place(found.index, None if found.index else 1))
        self.survivors.note(self.call("LIFE-2", "snapshot_metadata"))


class _InThread:
    """A machine as another thread sees it."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Any:
        getattr(self._machine, name)
        if name == "run":
            return self._machine.run
        return lambda *args, **kwargs: self._machine.call_in_thread(name, *args, **kwargs)
