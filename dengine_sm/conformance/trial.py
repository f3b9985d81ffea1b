"""What a check may use: directories, machines, logs, the numbers of its profile."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import EFFORTS, Effort, Profile
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.violation import CannotCheckError, NotBoundError
from dengine_sm.conformance.workload import sample_log
from dengine_sm.contract import StateMachine
from dengine_sm.model import Entry, SnapshotMetadata


@attrs.define
class Trial:
    """One run of one check; the kit cleans up whatever the check opened."""

    subject: Subject
    root: Path
    """Empty, and of this check alone."""
    profile: Profile = Profile.QUICK
    seed: int = 0
    on_progress: Callable[[int, int], None] = lambda done, total: None
    """Told how much of the check is done, `(done, total)`."""
    evidence: dict[str, Any] = attrs.field(factory=dict)
    """JSON-able facts for the report: how many kills, which points."""
    _machines: list[StateMachine] = attrs.field(factory=list)
    _directories: int = 0
    _runner: asyncio.Runner | None = None

    @property
    def effort(self) -> Effort:
        """How hard to try."""
        return EFFORTS[self.profile]

    def directory(self, name: str = "case") -> Path:
        """Make a fresh, empty directory."""
        self._directories += 1
        path = self.root / f"{name}-{self._directories}"
        path.mkdir()
        return path

    def open(self, directory: Path | None = None, *, start: bool = True) -> StateMachine:
        """Construct a machine on a directory, fresh unless given, and start it."""
        machine = self.subject.open_state_machine(directory or self.directory())
        self._machines.append(machine)
        if start:
            machine.start()
        return machine

    def oracle(self, count: int | None = None, *, salt: int = 0) -> Oracle:
        """Return a model and a log of `count` entries, which depend on the seed."""
        count = self.effort.entries if count is None else count
        log = sample_log(self.subject.workload, count, self.seed * 1009 + salt)
        return Oracle(self.subject.workload, log)

    def stop_all(self) -> None:
        """Stop what the check left running; a failing stop has a check of its own."""
        for machine in self._machines:
            with contextlib.suppress(Exception):
                machine.stop()
        self._machines.clear()

    def close(self) -> None:
        """Release everything of the trial."""
        self.stop_all()
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def run(self, work: Awaitable[Any]) -> Any:
        """Run a coroutine in the trial's event loop."""
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def wait() -> Any:
            return await work

        return self._runner.run(wait())

    def given(self, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., Any]], None]:
        """Run a function, or coroutine function, with hypothesis examples, at once.

        Every example gets directories and machines of its own; what it opened is stopped
        when it ends. The profile says how many examples, the seed which.
        """
        __tracebackhide__ = True

        def run(function: Callable[..., Any]) -> None:
            __tracebackhide__ = True

            @functools.wraps(function)
            def example(**arguments: Any) -> None:
                __tracebackhide__ = True
                try:
                    outcome = function(**arguments)
                    if inspect.iscoroutine(outcome):
                        self.run(outcome)
                finally:
                    self.stop_all()

            configured = settings(
                max_examples=self.effort.examples,
                deadline=None,
                database=None,
                print_blob=False,
                report_multiple_bugs=False,
                # Not Phase.explain: it traces every line, to point into the kit's own code.
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            hypothesis.seed(self.seed)(configured(hypothesis.given(**strategies)(example)))()

        return run

    # What a clause does not bind, and what cannot be checked here

    def needs_survival(self) -> None:
        """Leave a check of what survives a stop or kill if the machine is TRANSIENT."""
        if self.subject.is_transient:
            raise NotBoundError("the machine is TRANSIENT: it survives nothing")

    def needs_key_value(self, what: str = "the command set kv/1") -> None:
        """Leave a check that speaks `kv/1` if the machine does not."""
        if not self.subject.is_key_value:
            raise NotBoundError(f"the workload {self.subject.workload.name!r} has not {what}")

    def needs_method(self, machine: StateMachine, method: str, protocol: str) -> Any:
        """Return an optional method, or leave the check if the machine lacks it."""
        found = getattr(machine, method, None)
        if found is None:
            raise NotBoundError(f"the machine has no {method}: it is no {protocol}")
        return found

    def needs_maker(self) -> None:
        """Leave a check that needs another process if that could not make the machine."""
        if self.subject.maker is None:
            raise CannotCheckError(
                "another process cannot construct this machine: let the fixture "
                "open_state_machine ask for no other fixtures, in a class at module level"
            )


async def apply_all(
    machine: StateMachine, entries: Sequence[Entry], *, chunk_size: int = 7
) -> None:
    """Apply entries in chunks."""
    for start in range(0, len(entries), chunk_size):
        await machine.apply_chunk(entries[start : start + chunk_size])


async def take_snapshot(machine: StateMachine, directory: Path) -> SnapshotMetadata:
    """Write a snapshot of the present state and return its metadata."""
    last_included = machine.last_applied()
    checksum = await machine.generate_snapshot_data(directory, last_included)
    metadata = machine.snapshot_metadata()
    return SnapshotMetadata(last_included, checksum, metadata.format if metadata else "")


CheckFunction: TypeAlias = Callable[[Trial], Awaitable[None] | None]


@attrs.frozen
class Check:
    """A test of one clause."""

    clause: str
    function: CheckFunction
    """Raises `Violation`, `NotBoundError` or `CannotCheckError`; anything else fails too."""
    profile: Profile = Profile.STANDARD
    """The smallest profile that runs it."""
    also: tuple[str, ...] = ()
    """Other clauses that it exercises and may find violated."""

    @property
    def name(self) -> str:
        """Clause and sentence, such as `apply_2_applied_id_follows`."""
        name = getattr(self.function, "__name__", "check")
        return f"{self.clause.lower().replace('-', '_')}_{name}"

    @property
    def summary(self) -> str:
        """What the check does: the first line of its docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]
