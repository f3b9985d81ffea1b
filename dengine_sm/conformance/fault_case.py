"""One machine in this process, one failure of its disk, and what it owes then (CRASH-8)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import attrs

from dengine_sm.conformance.course import Call
from dengine_sm.conformance.faults import FaultyFileSystem, quiet_threads
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.power import UnsyncedFileSystem
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import Violation, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import NotRunningError, StateMachinePoisonedError, StorageError
from dengine_sm.files import replaced_file_system

CLAUSE = "CRASH-8"
_REFUSALS = (StorageError, StateMachinePoisonedError)
_CHUNK = 4


@attrs.define
class Case:
    """A machine whose disk fails, what it has promised, and what was done to it."""

    trial: Trial
    oracle: Oracle
    directory: Path
    fs: FaultyFileSystem
    machine: StateMachine
    floor: int = 0
    """Applied index that was promised durable."""
    applied: int = 0
    """Applied index when the last call returned."""
    history: list[str] = attrs.field(factory=list)

    def violated(self, expected: str, observed: str, clause: str = CLAUSE) -> NoReturn:
        """Raise the violation, with all that led to it."""
        __tracebackhide__ = True
        violates(clause, expected=expected, observed=observed, history=self.history)

    def make(self, calls: Sequence[Call], *, goes_on: bool = True) -> tuple[Call, Exception] | None:
        """Make calls until one raises; return that one and what it raised.

        Without `goes_on`, end as well where the disk has failed and no call raised.
        """
        for call in calls:
            met = len(self.fs.struck)
            try:
                call.make(self.trial, self.machine)
            except Exception as exc:
                self._note(met, f"{call.text} raised {type(exc).__name__}: {exc}")
                return call, exc
            self._note(met, f"{call.text} -> returned")
            self.applied = call.after
            if call.promises:
                self.floor = max(self.floor, call.after)
            if len(self.fs.struck) > met and not goes_on:
                break
        return None

    def _note(self, met: int, line: str) -> None:
        self.history += [f"(the disk fails: {text})" for text in self.fs.struck[met:][:3]]
        self.history.append(line)

    def expect_reported(self, call: Call, exc: Exception) -> None:
        """Check what a call raised, and the state that it left in memory."""
        __tracebackhide__ = True
        if not isinstance(exc, _REFUSALS):
            self.violated(f"StorageError from {call.text}", f"{type(exc).__name__}: {exc}")
        if call.method in ("start", "stop"):
            return
        is_apply = call.method == "apply_chunk"
        try:
            self.machine.last_applied()
        except (*_REFUSALS, NotRunningError):
            return
        allowed = {call.before} if is_apply else {call.before, call.after}
        self.check(allowed, "after the failure", "APPLY-3" if is_apply else CLAUSE)
        if is_apply:
            self._expect_poisoned(call)

    def _expect_poisoned(self, call: Call) -> None:
        __tracebackhide__ = True
        exc = self.refusal_of("the same chunk again", lambda: call.make(self.trial, self.machine))
        if not isinstance(exc, StateMachinePoisonedError):
            observed = f"{type(exc).__name__}: {exc}" if exc else "the chunk was applied"
            self.violated("StateMachinePoisonedError until stop and start", observed, "APPLY-3")

    def refusal_of(self, what: str, function: Callable[[], object]) -> Exception | None:
        """Call; return the storage error that it raised, or None if it returned."""
        __tracebackhide__ = True
        try:
            outcome = function()
            if inspect.isawaitable(outcome):
                self.trial.run(outcome)
        except _REFUSALS as exc:
            self.history.append(f"{what} raised {type(exc).__name__}: {exc}")
            return exc
        except Exception as exc:
            self.violated(f"{what}: StorageError, if any", f"{type(exc).__name__}: {exc}")
        self.history.append(f"{what} -> returned")
        return None

    def check(self, allowed: set[int], what: str, clause: str = CLAUSE) -> int:
        """Compare with the model; return the applied index, which is one of those allowed."""
        __tracebackhide__ = True
        try:
            index = self.oracle.check_state(clause, self.machine, what=what, history=self.history)
        except Violation:
            raise
        except Exception as exc:
            self.violated(f"a state that can be read {what}", f"{type(exc).__name__}: {exc}")
        if index not in allowed:
            self.violated(
                f"last_applied() {what}: index {' or '.join(map(str, sorted(allowed)))}",
                f"last_applied() {what}: index {index}",
                clause,
            )
        return index

    def go_on(self) -> None:
        """Apply once more if the machine will; for calls whose failure need not poison."""
        __tracebackhide__ = True
        try:
            index = self.machine.last_applied().index
        except (*_REFUSALS, NotRunningError):
            return
        chunk = self.oracle.entries(index + 1, index + 2)
        what = f"apply_chunk(entries {index + 1}..{index + 2})"
        if chunk and self.refusal_of(what, lambda: self.machine.apply_chunk(chunk)) is None:
            self.applied = chunk[-1].index

    def restart(self) -> Exception | None:
        """Stop while the disk still fails, if it does; start once the cause is gone.

        Returns:
            What `stop` raised.
        """
        __tracebackhide__ = True
        refusal = self.refusal_of("stop()", self.machine.stop)
        self.fs.disarm()
        self.history.append("(the disk works again)")
        if self.machine.is_running():
            self.refusal_of("stop()", self.machine.stop)
        self.expect_works("start()", self.machine.start)
        return refusal

    def expect_works(self, what: str, function: Callable[[], object]) -> None:
        """Call what must work, now that the disk does."""
        __tracebackhide__ = True
        exc = self.refusal_of(what, function)
        if exc is not None:
            self.violated(f"{what} works, now that the disk does", f"{type(exc).__name__}: {exc}")

    def expect_all_well(self, index: int) -> None:
        """Apply the rest of the log, flush, restart; everything must be there."""
        __tracebackhide__ = True
        end = len(self.oracle.log)
        for first in range(index + 1, end + 1, _CHUNK):
            chunk = self.oracle.entries(first, first + _CHUNK - 1)
            self.expect_works(
                f"apply_chunk(entries {first}..{chunk[-1].index})",
                lambda chunk=chunk: self.machine.apply_chunk(chunk),  # type: ignore[misc]
            )
        self.expect_works("flush()", self.machine.flush)
        self.check({end}, "when the rest is applied")
        self.expect_works("stop()", self.machine.stop)
        self.expect_works("start()", self.machine.start)
        self.check({end}, "when the rest is applied, after a restart")
        self.expect_works("stop()", self.machine.stop)

    def expect_durable(self, index: int, steps: int) -> None:
        """Let the power fail after so many steps, on the stopped machine; start again."""
        __tracebackhide__ = True
        disk = self.fs.disk()
        disk.advance(steps)
        disk.left_by_power_loss().restore(self.directory)
        self.history += ["(instead: the power fails right after that flush)"]
        with replaced_file_system(UnsyncedFileSystem()):
            self.machine = self.trial.subject.open_state_machine(self.directory)
            self.expect_works("start()", self.machine.start)
            self.check(set(range(index, len(self.oracle.log) + 1)), "after the power loss")
            self.machine.stop()


@contextlib.contextmanager
def open_case(trial: Trial, oracle: Oracle) -> Iterator[Case]:
    """Construct a machine on a file system that fails at will; stop it in the end."""
    directory = trial.directory("machine")
    fs = FaultyFileSystem(directory)
    with quiet_threads(), replaced_file_system(fs):
        case = Case(trial, oracle, directory, fs, trial.subject.open_state_machine(directory))
        try:
            yield case
        finally:
            fs.disarm()
            with contextlib.suppress(Exception):
                case.machine.stop()
