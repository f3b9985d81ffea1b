from __future__ import annotations

import asyncio
import inspect
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.backends import create_file, create_memory
from dengine_sm.errors import (
    LogGapError,
    LogOrderError,
    NotRunningError,
    SnapshotCorruptionError,
    StorageLockedError,
)
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.model import Durability, LogId, Outcome
from dengine_sm.preflight import key_value_commands, run_preflight
from dengine_sm.preflight_checks import CHECKS, GARBAGE, NOT_FOR_TRANSIENT
from dengine_sm.validation import Finding


class Machine(KeyValueStateMachine):
    def __init__(self, directory: Path) -> None:
        super().__init__(RamStore())
        self.directory = directory


class WritesWhenConstructed(Machine):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "LOCK").touch()


class StartsOnlyOnce(Machine):
    def start(self) -> None:
        if self.is_running():
            raise RuntimeError("already running")
        super().start()


class ReadsWhileStopped(Machine):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        whole_get = self.get

        def get(key: bytes) -> bytes | None:
            try:
                return whole_get(key)
            except NotRunningError:
                return None

        self.get = get


class LosesLastResult(Machine):
    async def apply_chunk(self, chunk: Sequence[Any]) -> Any:
        return (await super().apply_chunk(chunk))[:-1]


class ForgetsLastEntry(Machine):
    def last_applied(self) -> LogId:
        place = super().last_applied()
        return LogId(place.term, place.index - 1) if place.index else place


class ForgetsTerms(Machine):
    def entry_term(self, entry_id: int) -> int | None:
        super().entry_term(entry_id)
        return None


class IgnoresLowerIds(Machine):
    def update_last_applied(self, last_applied: LogId) -> None:
        try:
            super().update_last_applied(last_applied)
        except LogOrderError:
            return


class CallsDuplicatesApplied(Machine):
    async def apply_chunk(self, chunk: Sequence[Any]) -> Any:
        results = await super().apply_chunk(chunk)
        return [attrs.evolve(result, outcome=Outcome.APPLIED) for result in results]


class SkipsGaps(Machine):
    async def apply_chunk(self, chunk: Sequence[Any]) -> Any:
        try:
            return await super().apply_chunk(chunk)
        except LogGapError:
            return []


class DiesOfGarbage(Machine):
    async def apply_chunk(self, chunk: Sequence[Any]) -> Any:
        if any(entry.data == GARBAGE for entry in chunk):
            raise ValueError("what is this?")
        return await super().apply_chunk(chunk)


class RejectsEmptyData(Machine):
    async def apply_chunk(self, chunk: Sequence[Any]) -> Any:
        results = await super().apply_chunk(chunk)
        return [
            result if entry.data else attrs.evolve(result, outcome=Outcome.REJECTED)
            for entry, result in zip(chunk, results, strict=True)
        ]


class IgnoresTheLabel(Machine):
    async def generate_snapshot_data(self, new_snapshot_dir: Path, last_included: LogId) -> bytes:
        return await super().generate_snapshot_data(new_snapshot_dir, self.last_applied())


class ReturnsNoChecksum(Machine):
    async def generate_snapshot_data(self, new_snapshot_dir: Path, last_included: LogId) -> bytes:
        await super().generate_snapshot_data(new_snapshot_dir, last_included)
        return bytes(32)


class KeepsOldKeys(Machine):
    async def apply_snapshot_from_file(self, metadata: Any, snapshot_path: Path) -> None:
        before = {entry[0]: entry[1] for entry in self.scan_prefix(b"").entries}
        await super().apply_snapshot_from_file(metadata, snapshot_path)
        whole_get = self.get
        self.get = lambda key: before.get(key) if whole_get(key) is None else whole_get(key)


class SwallowsDamage(Machine):
    async def apply_snapshot_from_file(self, metadata: Any, snapshot_path: Path) -> None:
        try:
            await super().apply_snapshot_from_file(metadata, snapshot_path)
        except SnapshotCorruptionError:
            return


def delegating(directory: Path) -> Any:
    """A file machine whose methods can be replaced one by one."""
    machine = create_file(directory)

    class Delegating:
        def __getattr__(self, name: str) -> Any:
            return getattr(machine, name)

    return Delegating()


def wipes_on_stop(directory: Path) -> Any:
    machine = delegating(directory)
    whole_stop = machine.stop

    def stop() -> None:
        whole_stop()
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    machine.stop = stop
    return machine


def shares_the_directory(directory: Path) -> Any:
    machine = delegating(directory)
    whole_start = machine.start

    def start() -> None:
        try:
            whole_start()
        except StorageLockedError:
            return

    machine.start = start
    return machine


BROKEN: dict[str, tuple[Durability, Callable[[Path], Any]]] = {
    "LIFE-2": (Durability.TRANSIENT, StartsOnlyOnce),
    "LIFE-1": (Durability.TRANSIENT, WritesWhenConstructed),
    "LIFE-3": (Durability.TRANSIENT, ReadsWhileStopped),
    "APPLY-1": (Durability.TRANSIENT, LosesLastResult),
    "APPLY-2": (Durability.TRANSIENT, ForgetsLastEntry),
    "LOG-2": (Durability.TRANSIENT, ForgetsTerms),
    "LOG-1": (Durability.TRANSIENT, IgnoresLowerIds),
    "APPLY-5": (Durability.TRANSIENT, CallsDuplicatesApplied),
    "APPLY-6": (Durability.TRANSIENT, SkipsGaps),
    "APPLY-7": (Durability.TRANSIENT, DiesOfGarbage),
    "APPLY-8": (Durability.TRANSIENT, RejectsEmptyData),
    "SNAP-1": (Durability.TRANSIENT, IgnoresTheLabel),
    "SNAP-2": (Durability.TRANSIENT, ReturnsNoChecksum),
    "SNAP-5": (Durability.TRANSIENT, KeepsOldKeys),
    "SNAP-4": (Durability.TRANSIENT, SwallowsDamage),
    "LIFE-4": (Durability.ON_FLUSH, wipes_on_stop),
    "LIFE-6": (Durability.ON_FLUSH, shares_the_directory),
}


def preflight(
    factory: Callable[[Path], Any], durability: Durability = Durability.TRANSIENT, **more: Any
) -> list[Finding]:
    return run_preflight(factory, durability=durability, commands=key_value_commands(), **more)


@pytest.mark.parametrize("commands", [key_value_commands(), None], ids=["key-value", "opaque"])
@pytest.mark.parametrize(
    ("factory", "durability"),
    [(create_memory, Durability.TRANSIENT), (create_file, Durability.ON_FLUSH)],
)
def test_the_built_in_backends_pass(factory: Any, durability: Durability, commands: Any):
    assert run_preflight(factory, durability=durability, commands=commands) == []


async def test_runs_inside_a_running_event_loop():
    assert asyncio.get_running_loop().is_running()

    assert preflight(create_memory) == []


def test_every_check_has_a_machine_that_fails_it():
    assert {clause for clause, _ in CHECKS} == set(BROKEN)


@pytest.mark.parametrize("clause", list(BROKEN))
def test_a_broken_machine_is_found(clause: str):
    durability, factory = BROKEN[clause]

    findings = preflight(factory, durability)

    assert clause in {finding.clause_or_method for finding in findings}


@pytest.mark.parametrize("clause", sorted(NOT_FOR_TRANSIENT))
def test_what_survives_a_stop_does_not_bind_a_transient_machine(clause: str):
    _, factory = BROKEN[clause]

    assert clause not in {f.clause_or_method for f in preflight(factory, Durability.TRANSIENT)}


def test_a_finding_says_what_was_expected_and_where():
    (finding,) = preflight(ForgetsTerms)

    line = inspect.getsourcelines(ForgetsTerms.entry_term)[1]
    assert finding == Finding(
        "LOG-2",
        "terms of 1 to 4: [2, 2, 3, None]",
        "[None, None, None, None]",
        f"{__file__}:{line}",
    )


def test_an_exception_becomes_a_finding_where_it_was_raised():
    finding = next(f for f in preflight(DiesOfGarbage) if f.clause_or_method == "APPLY-7")

    lines, first = inspect.getsourcelines(DiesOfGarbage.apply_chunk)
    raised = first + next(i for i, line in enumerate(lines) if "raise" in line)
    assert finding == Finding(
        "APPLY-7", "no exception", "ValueError: what is this?", f"{__file__}:{raised}"
    )


def test_several_findings_come_at_once():
    class Twice(ForgetsTerms, ReturnsNoChecksum):
        pass

    assert {"LOG-2", "SNAP-2"} <= {f.clause_or_method for f in preflight(Twice)}


def test_a_machine_that_does_not_start_gives_one_finding():
    class Dead(Machine):
        def start(self) -> None:
            raise SystemExit("no licence")

    (finding,) = preflight(Dead)

    assert (finding.clause_or_method, finding.observed) == ("LIFE-2", "SystemExit: no licence")


def test_a_factory_that_fails_gives_one_finding():
    def factory(directory: Path) -> Any:
        raise KeyError("nope")

    (finding,) = preflight(factory)

    assert (finding.clause_or_method, finding.observed) == ("LIFE-2", "KeyError: 'nope'")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_machine_that_blocks_is_given_up(release: threading.Event):
    class Blocks(Machine):
        def start(self) -> None:
            release.wait()

    (finding,) = preflight(Blocks, timeout_s=0.2)

    assert finding.clause_or_method == "LIFE-2"
    assert finding.observed == "still busy after 0.2 s in starts_and_stops"


def test_a_machine_that_never_answers_is_given_up():
    class Waits(Machine):
        async def apply_chunk(self, chunk: Sequence[Any]) -> Any:
            await asyncio.Event().wait()

    (finding,) = preflight(Waits, timeout_s=2.0)

    assert re.fullmatch(r"still busy after 2 s in \w+", finding.observed)


def test_stops_every_machine_it_started():
    machines: list[Any] = []

    def factory(directory: Path) -> Any:
        machines.append(create_file(directory))
        return machines[-1]

    assert preflight(factory, Durability.ON_FLUSH) == []

    assert len(machines) > len(CHECKS)
    assert not any(machine.is_running() for machine in machines)


def test_leaves_no_file_and_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = threading.active_count()

    assert preflight(create_file, Durability.ON_FLUSH) == []

    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
