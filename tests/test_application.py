"""An application machine keeps the contract around a plain object."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tape import FORMAT, Tape, entries, make, reopened, seen

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.errors import (
    ConcurrentApplyError,
    LogGapError,
    LogOrderError,
    NotRunningError,
    StateMachinePoisonedError,
)
from dengine_sm.model import Durability, Entry, LogId, Outcome, SnapshotMetadata


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[ApplicationStateMachine]:
    built = make(tmp_path / "m")
    built.start()
    yield built
    built.stop()


async def test_results_carry_index_outcome_and_value(machine: ApplicationStateMachine) -> None:
    chunk = [
        Entry(1, 1, 5, b"a"),
        Entry(2, 1, 6, b"bad"),
        Entry(3, 1, 7, b""),
        Entry(4, 2, 8, b"b"),
    ]

    results = await machine.apply_chunk(chunk)

    assert [(r.index, r.outcome, r.value) for r in results] == [
        (1, Outcome.APPLIED, b"1"),
        (2, Outcome.REJECTED, b"bad"),
        (3, Outcome.APPLIED, None),
        (4, Outcome.APPLIED, b"2"),
    ]
    assert machine.last_applied() == LogId(2, 4)
    assert [machine.entry_term(i) for i in range(6)] == [None, 1, 1, 1, 2, None]
    assert machine.get(b"1") == b"8 b"
    assert await machine.apply_chunk([]) == []


async def test_time_given_to_the_application_never_goes_back(
    machine: ApplicationStateMachine, tmp_path: Path
) -> None:
    await machine.apply_chunk([Entry(1, 1, 50, b""), Entry(2, 1, 20, b"a")])
    await machine.apply_chunk([Entry(3, 1, 30, b"b"), Entry(4, 1, 60, b"c")])

    assert machine.query(b"") == b"50 a\n50 b\n60 c"
    assert reopened(tmp_path / "m", tmp_path / "copy") == seen(machine)


async def test_duplicates_are_skipped_and_gaps_refused(machine: ApplicationStateMachine) -> None:
    await machine.apply_chunk(entries(1, 3, term=2))
    before = seen(machine)

    results = await machine.apply_chunk([Entry(2, 9, 1, b"other"), Entry(3, 9, 1, b"other")])

    assert [r.outcome for r in results] == [Outcome.DUPLICATE] * 2
    with pytest.raises(LogGapError):
        await machine.apply_chunk(entries(5, 1, term=2))
    with pytest.raises(LogOrderError):
        await machine.apply_chunk(entries(4, 1, term=1))
    assert seen(machine) == before
    mixed = await machine.apply_chunk(entries(3, 2, term=2))
    assert [r.outcome for r in mixed] == [Outcome.DUPLICATE, Outcome.APPLIED]


def test_stopped_machine_answers_only_is_running(tmp_path: Path) -> None:
    machine = make(tmp_path / "m")

    assert not machine.is_running()
    assert not (tmp_path / "m").exists()
    zero = SnapshotMetadata(LogId(1, 1), b"c" * 32, FORMAT)
    calls: list[Callable[[], object]] = [
        lambda: machine.get(b"0"),
        lambda: machine.query(b""),
        machine.len,
        machine.is_empty,
        machine.last_applied,
        machine.snapshot_metadata,
        machine.flush,
        machine.save_hard_state,
        lambda: machine.entry_term(1),
        lambda: machine.update_last_applied(LogId(1, 1)),
        lambda: machine.persist_last_applied(LogId(1, 1)),
        lambda: machine.update_last_snapshot_metadata(zero),
        lambda: machine.persist_last_snapshot_metadata(zero),
        lambda: asyncio.run(machine.apply_chunk(entries(1, 1))),
        lambda: asyncio.run(machine.reset()),
        lambda: asyncio.run(machine.flush_async()),
        lambda: asyncio.run(machine.generate_snapshot_data(tmp_path / "s", LogId.ZERO)),
        lambda: asyncio.run(machine.apply_snapshot_from_file(zero, tmp_path / "s")),
    ]
    for call in calls:
        with pytest.raises(NotRunningError):
            call()
    machine.stop()


def test_applied_id_never_goes_back(machine: ApplicationStateMachine) -> None:
    machine.update_last_applied(LogId(2, 9))

    for lower in (LogId(2, 8), LogId(1, 10), LogId(3, 5)):
        with pytest.raises(LogOrderError):
            machine.update_last_applied(lower)
        with pytest.raises(LogOrderError):
            machine.persist_last_applied(lower)
    machine.update_last_applied(LogId(2, 9))

    assert machine.last_applied() == LogId(2, 9)


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
async def test_exception_of_the_application_undoes_the_chunk(
    tmp_path: Path, durability: Durability
) -> None:
    machine = make(tmp_path / "m", durability=durability)
    machine.start()
    await machine.apply_chunk(entries(1, 3))
    before = seen(machine)

    with pytest.raises(StateMachinePoisonedError, match="apply raised ZeroDivisionError: boom"):
        await machine.apply_chunk([*entries(4, 2), Entry(6, 1, 1, b"explode")])

    assert seen(machine) == before
    with pytest.raises(StateMachinePoisonedError):
        await machine.apply_chunk(entries(4, 1))
    assert reopened(tmp_path / "m", tmp_path / "copy") == before
    machine.stop()
    machine.start()
    await machine.apply_chunk(entries(4, 1))
    assert machine.len() == 4
    machine.stop()


async def test_reader_inside_a_chunk_waits_for_its_end(tmp_path: Path) -> None:
    observed: list[int] = []
    answered = threading.Event()

    def read() -> None:
        observed.append(machine.len())
        answered.set()

    class ReadMidway(Tape):
        def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
            if entry.index == 5:
                reader.start()
                # A reader that does not wait answers at once; a right one only later.
                assert not answered.wait(0.2)
            return super().apply(entry)

    machine = ApplicationStateMachine(ReadMidway, tmp_path / "m", format=FORMAT)
    machine.start()
    reader = threading.Thread(target=read)

    await machine.apply_chunk(entries(1, 10))
    reader.join()

    assert observed == [10]
    machine.stop()


async def test_overlapping_applies_are_refused(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Waiting(Tape):
        def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
            entered.set()
            go_on.wait(10)
            return super().apply(entry)

    machine = ApplicationStateMachine(
        Waiting, tmp_path / "m", format=FORMAT, durability=Durability.PER_APPLY
    )
    machine.start()
    first = asyncio.ensure_future(machine.apply_chunk(entries(1, 1)))
    await asyncio.to_thread(entered.wait)

    with pytest.raises(ConcurrentApplyError):
        await machine.apply_chunk(entries(1, 1))

    go_on.set()
    await first
    assert machine.len() == 1
    machine.stop()
