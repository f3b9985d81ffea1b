"""Sessions in the state: every rule, eviction, restart, snapshots, repetition of everything."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dengine_sm import ApplyResult, Entry, Limits, LogId, Outcome, StorageError
from dengine_sm.backends.file_store import FileStore
from dengine_sm.kv import (
    SEQUENCE_PASSED,
    SESSION_UNKNOWN,
    Command,
    CompareAndSwap,
    Delete,
    InSession,
    KeyValueStateMachine,
    OpenSession,
    Put,
    RamStore,
    encode_command,
)
from dengine_sm.model import SnapshotMetadata
from dengine_sm.snapshot import PORTABLE_FORMAT, SessionRow, read_portable

APPLIED, REJECTED = Outcome.APPLIED, Outcome.REJECTED
OPEN = OpenSession()
KINDS = ["memory", "file"]


def new_machine(kind: str, directory: Path, most: int = 4096) -> KeyValueStateMachine:
    store = RamStore() if kind == "memory" else FileStore(directory, segment_bytes=4096)
    machine = KeyValueStateMachine(store, limits=Limits(8, 8, max_sessions=most))
    machine.start()
    return machine


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path):
    """Room for three sessions, keys and values of 8 bytes."""
    machine = new_machine(request.param, tmp_path / "data", most=3)
    yield machine
    machine.stop()


def entries_of(commands: Sequence[Command | None], first: int = 1) -> list[Entry]:
    return [
        Entry(index, 1, 1000 + 10 * index, b"" if command is None else encode_command(command))
        for index, command in enumerate(commands, first)
    ]


async def apply(
    machine: KeyValueStateMachine, *commands: Command | None
) -> list[tuple[Outcome, bytes | None]]:
    """Apply commands, each as a chunk of its own, behind what is applied."""
    results: list[ApplyResult] = []
    for command in commands:
        chunk = entries_of([command], machine.last_applied().index + 1)
        results += await machine.apply_chunk(chunk)
    return [(result.outcome, result.value) for result in results]


async def snapshot(machine: KeyValueStateMachine, directory: Path) -> SnapshotMetadata:
    last = machine.last_applied()
    checksum = await machine.generate_snapshot_data(directory, last)
    return SnapshotMetadata(last, checksum, PORTABLE_FORMAT)


def once(sequence: int, value: bytes = b"v", session_id: int = 1) -> InSession:
    """Return a swap that fits once only."""
    return InSession(session_id, sequence, CompareAndSwap(b"k%d" % sequence, None, value))


class TestRules:
    async def test_the_id_of_a_session_is_the_index_that_opened_it(self, machine):
        await apply(machine, Put(b"a", b"1"))

        assert [(APPLIED, (2).to_bytes(8, "big"))] == await apply(machine, OPEN)
        assert machine.len() == 1

    async def test_values_stay_with_their_entries_behind_duplicates(self, machine):
        log = entries_of([OPEN, None, OPEN, once(1, session_id=9)])
        await machine.apply_chunk(log[:2])

        results = await machine.apply_chunk(log)

        opened = (3).to_bytes(8, "big")
        assert [None, None, opened, SESSION_UNKNOWN] == [result.value for result in results]
        assert list(results) == [results[position] for position in range(4)]
        assert [result.outcome for result in results[:2]] == [Outcome.DUPLICATE] * 2

    async def test_a_repetition_has_the_result_of_the_original(self, machine):
        swap = CompareAndSwap(b"a", None, b"1")

        results = await apply(machine, OPEN, *[InSession(1, 1, swap)] * 3)

        assert results[1:] == [(APPLIED, None)] * 3

    async def test_what_was_rejected_stays_rejected(self, machine):
        swap = InSession(1, 1, CompareAndSwap(b"a", b"1", b"2"))

        results = await apply(machine, OPEN, swap, Put(b"a", b"1"), swap)

        assert (REJECTED, None) == results[1] == results[3]
        assert machine.get(b"a") == b"1"

    async def test_a_repetition_of_another_command_is_a_repetition(self, machine):
        await apply(machine, OPEN, once(1), InSession(1, 1, Put(b"other", b"")))

        assert machine.get(b"other") is None

    async def test_a_lower_sequence_is_rejected(self, machine):
        results = await apply(machine, OPEN, once(7), once(6), once(8))

        assert results[1:] == [(APPLIED, None), (REJECTED, SEQUENCE_PASSED), (APPLIED, None)]
        assert machine.get(b"k6") is None

    async def test_an_unknown_session_is_told_from_a_swap_that_did_not_match(self, machine):
        results = await apply(machine, Put(b"a", b"1"), once(1), once(1, session_id=2**64 - 1))

        assert results[1:] == [(REJECTED, SESSION_UNKNOWN)] * 2
        assert machine.len() == 1

    async def test_sessions_are_apart(self, machine):
        await apply(machine, OPEN, OPEN)

        results = await apply(
            machine,
            InSession(1, 1, CompareAndSwap(b"a", None, b"1")),
            InSession(2, 1, CompareAndSwap(b"a", None, b"2")),
        )

        assert results == [(APPLIED, None), (REJECTED, None)]
        assert machine.get(b"a") == b"1"

    async def test_limits_and_times_to_live_hold_as_outside(self, machine):
        results = await apply(
            machine,
            OPEN,
            InSession(1, 1, Put(b"a", b"too large")),
            InSession(1, 2, Put(b"a", b"1", 0)),
            InSession(1, 3, Put(b"a", b"1", 20)),
        )
        assert results[1:] == [(REJECTED, None), (REJECTED, None), (APPLIED, None)]

        # It must not begin again with the repetition.
        await apply(machine, InSession(1, 3, Put(b"a", b"1", 20)))
        assert machine.get(b"a") == b"1"
        await apply(machine, None)
        assert machine.get(b"a") is None

    async def test_user_keys_do_not_meet_the_rows_of_sessions(self, machine):
        row = b"s/" + (1).to_bytes(8, "big")
        assert len(row) > 8, "larger than what this machine accepts"
        machine._limits = Limits()

        await apply(machine, OPEN, once(1), Put(row, b""), Delete(row), Put(b"u/", b""))

        assert await apply(machine, once(1)) == [(APPLIED, None)]

    async def test_a_malformed_inner_command_is_malformed(self, machine):
        (result,) = await machine.apply_chunk([Entry(1, 1, 0, bytes.fromhex("8405010182044161"))])

        assert (result.outcome, result.value) == (REJECTED, None)

    async def test_a_chunk_that_fails_leaves_no_session(self, machine, monkeypatch):
        def fail(batch):
            raise StorageError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(machine._store, "write", fail)
            with pytest.raises(StorageError):
                await apply(machine, OPEN)

        assert machine._session_count == 0
        assert list(machine._store.scan_internal(b"s/", b"v")) == []

    async def test_reset_forgets_sessions(self, machine):
        await apply(machine, OPEN)

        await machine.reset()

        assert await apply(machine, once(1)) == [(REJECTED, SESSION_UNKNOWN)]


class TestEviction:
    async def test_the_session_unused_for_longest_goes(self, machine):
        await apply(machine, OPEN, OPEN, OPEN, once(1, session_id=1), OPEN)

        outcomes = await apply(machine, *(once(2, session_id=n) for n in (1, 2, 3, 5)))

        unknown = (REJECTED, SESSION_UNKNOWN)
        assert unknown == outcomes[1]
        assert unknown not in (outcomes[0], *outcomes[2:])

    async def test_a_repetition_is_no_use(self, machine):
        first = once(1, session_id=1)
        await apply(machine, OPEN, first, OPEN, OPEN, first, OPEN)

        assert await apply(machine, first) == [(REJECTED, SESSION_UNKNOWN)]

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    async def test_chunks_do_not_change_who_goes(self, machine, size):
        uses = [once(index, session_id=session) for index, session in enumerate((2, 1, 2), 1)]
        log = entries_of([OPEN, OPEN, *uses, *[OPEN] * 5, once(9, session_id=8)])

        for start in range(0, len(log), size):
            results = await machine.apply_chunk(log[start : start + size])

        assert results[-1].outcome is APPLIED
        assert machine._session_count == 3
        left = [row[-1] for row, _ in machine._store.scan_internal(b"s/", b"s0")]
        assert left == [8, 9, 10]
        assert len(list(machine._store.scan_internal(b"u/", b"u0"))) == 3

    async def test_room_for_one(self, tmp_path):
        machine = new_machine("memory", tmp_path, most=1)
        await machine.apply_chunk(entries_of([OPEN] * 5))

        assert await apply(machine, once(1, session_id=5)) == [(APPLIED, None)]

    async def test_an_installed_crowd_is_thinned_by_the_next_session(self, tmp_path):
        crowded = new_machine("memory", tmp_path, most=5)
        await apply(crowded, *[OPEN] * 5)
        metadata = await snapshot(crowded, tmp_path / "snapshot")
        machine = new_machine("memory", tmp_path, most=2)
        await machine.apply_snapshot_from_file(metadata, tmp_path / "snapshot")

        await apply(machine, OPEN)

        results = await apply(machine, *(once(1, session_id=n) for n in (4, 5, 6)))
        assert [outcome for outcome, _ in results] == [REJECTED, APPLIED, REJECTED]
        assert SESSION_UNKNOWN == results[0][1] != results[2][1]

    def test_room_for_none_is_refused(self):
        with pytest.raises(ValueError, match="max_sessions"):
            Limits(max_sessions=0)


class TestPersistence:
    @pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "killed"])
    async def test_a_restart_keeps_sessions(self, tmp_path, is_stopped):
        machine = new_machine("file", tmp_path / "data", most=2)
        await apply(machine, OPEN, once(1), OPEN, once(5, session_id=3))
        machine.flush()
        directory = tmp_path / "data"
        if is_stopped:
            machine.stop()
        else:
            directory = Path(shutil.copytree(directory, tmp_path / "left"))

        again = new_machine("file", directory, most=2)

        results = await apply(again, once(1), OPEN, once(1), once(5, session_id=3))
        again.stop()
        machine.stop()
        assert [results[0], results[2]] == [(APPLIED, None), (REJECTED, SESSION_UNKNOWN)]
        assert results[3] == (APPLIED, None)

    @pytest.mark.parametrize("writer", KINDS)
    @pytest.mark.parametrize("reader", KINDS)
    async def test_snapshots_carry_sessions_and_nothing_else_changes(
        self, tmp_path, writer, reader
    ):
        source = new_machine(writer, tmp_path / "one")
        await apply(source, OPEN, Put(b"a", b"1"), OPEN, once(2), once(1, session_id=3))
        target = new_machine(reader, tmp_path / "two")
        await apply(target, None, OPEN, once(9, session_id=2))
        metadata = await snapshot(source, tmp_path / "s1")

        await target.apply_snapshot_from_file(metadata, tmp_path / "s1")

        rows = [SessionRow(1, 2, True, 4), SessionRow(3, 1, True, 5)]
        assert rows == read_portable(tmp_path / "s1").sessions
        assert metadata == await snapshot(target, tmp_path / "s2")
        assert await apply(target, once(2)) == [(APPLIED, None)]
        assert await apply(target, once(9, session_id=2)) == [(REJECTED, SESSION_UNKNOWN)]
        for machine in (source, target):
            machine.stop()

    async def test_a_snapshot_holds_the_sessions_of_its_label(self, tmp_path):
        machine = new_machine("memory", tmp_path)
        await apply(machine, OPEN, once(1))
        last = machine.last_applied()
        writing = asyncio.ensure_future(machine.generate_snapshot_data(tmp_path / "s", last))
        await asyncio.sleep(0)
        await apply(machine, once(2), OPEN)

        await writing

        assert read_portable(tmp_path / "s").sessions == [SessionRow(1, 1, True, 2)]


CHANGES = st.one_of(
    st.builds(Put, st.sampled_from([b"a", b"b"]), st.sampled_from([b"", b"1"]), st.none()),
    st.builds(Put, st.sampled_from([b"a", b"b"]), st.just(b"1"), st.sampled_from([0, 1, 25])),
    st.builds(Delete, st.sampled_from([b"a", b"b"])),
    st.builds(
        CompareAndSwap,
        st.sampled_from([b"a", b"b"]),
        st.sampled_from([None, b"", b"1"]),
        st.sampled_from([None, b"", b"1"]),
    ),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "first", "last", "last"]),
        CHANGES,
        st.lists(st.integers(0, 2), max_size=2),
    ),
    max_size=25,
)
"""What is done in which session, and after each command how many repetitions of it or of
commands before it."""


def with_repetitions(steps) -> tuple[list[Command], set[int]]:
    """Return the commands, and the positions of those that only repeat."""
    commands: list[Command] = []
    newest: dict[int, InSession] = {}
    repeated: set[int] = set()
    for position, (kind, change, again) in enumerate(steps, 1):
        if kind == "open" or not newest:
            commands.append(OPEN)
            newest[len(commands)] = InSession(len(commands), 1, Delete(b"never used"))
            continue
        session_id = min(newest) if kind == "first" else max(newest)
        newest[session_id] = InSession(session_id, position, change)
        commands.append(newest[session_id])
        for back in again:
            recent = sorted(newest.values(), key=lambda command: -command.sequence)
            if recent[back % len(recent)].sequence > 1:
                repeated.add(len(commands))
                commands.append(recent[back % len(recent)])
    return commands, repeated


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(steps=STEPS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_repetitions_change_neither_state_nor_results(tmp_path_factory, kind, steps, sizes):
    """The same bytes as of a log that has no command where the other repeats one."""
    directory = tmp_path_factory.mktemp("sessions")
    commands, repeated = with_repetitions(steps)
    silent = [None if p in repeated else command for p, command in enumerate(commands)]

    async def run() -> None:
        noisy, quiet = (new_machine(kind, directory / name, most=3) for name in ("a", "b"))
        results: list[ApplyResult] = []
        while len(results) < len(commands):
            size = sizes[len(results) % len(sizes)]
            results += await noisy.apply_chunk(
                entries_of(commands)[len(results) : len(results) + size]
            )
        expected = await quiet.apply_chunk(entries_of(silent))

        first: dict[InSession, Outcome] = {}
        for position, command in enumerate(commands):
            if position not in repeated:
                assert expected[position] == results[position]
                if isinstance(command, InSession):
                    first[command] = results[position].outcome
            elif results[position].value != SESSION_UNKNOWN:
                assert (first[command], None) == (
                    results[position].outcome,
                    results[position].value,
                )
        if commands:
            assert await snapshot(noisy, directory / "s1") == await snapshot(
                quiet, directory / "s2"
            )
        noisy.stop()
        quiet.stop()

    asyncio.run(run())


def test_the_last_log_id_is_no_session(tmp_path):
    """A machine that only advances its applied id opens nothing."""
    machine = new_machine("memory", tmp_path)
    machine.update_last_applied(LogId(1, 1))

    assert asyncio.run(apply(machine, once(1))) == [(REJECTED, SESSION_UNKNOWN)]
