"""The examples keep what they promise; the ledger keeps the contract."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dengine_sm import (
    ApplyResult,
    Durability,
    Entry,
    LogGapError,
    LogId,
    Outcome,
    StateMachine,
)
from dengine_sm.application import ApplicationStateMachine
from dengine_sm.preflight import run_preflight

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "examples" / "ledger.py"
SEED = 20


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ledger = load_module(LEDGER)


def history(length: int) -> list[Entry]:
    """Return a seeded log of openings, transfers, repeats and rubbish."""
    rng = random.Random(SEED)
    names = ["bank", *(f"account-{n}" for n in range(8))]
    commands: list[bytes] = [ledger.encode({"op": "open", "account": "bank", "overdraft": True})]
    while len(commands) < length:
        kind = rng.random()
        if kind < 0.05:
            commands.append(ledger.encode({"op": "open", "account": rng.choice(names)}))
        elif kind < 0.1:
            commands.append(rng.choice([b"", b"{", b"[]", b'{"op":"open"}', b"\xff\x00"]))
        elif kind < 0.15:
            commands.append(rng.choice(commands))
        else:
            debit, credit = rng.choice(names), rng.choice(names)
            key = f"t-{rng.randrange(length)}"
            transfer = {"id": key, "from": debit, "to": credit, "amount": rng.randint(1, 90)}
            commands.append(ledger.encode({"op": "transfer", **transfer}))
    return [
        Entry(i, 1 + i // 100, 1000 + i - rng.randrange(5), data)
        for i, data in enumerate(commands, 1)
    ]


def modelled(log: Sequence[Entry], last_index: int) -> list[bytes]:
    """Return the records of a bare ledger that applied the log up to an index."""
    model, clock_ms = ledger.Ledger(), 0
    for entry in log[:last_index]:
        clock_ms = max(clock_ms, entry.timestamp_ms)
        if entry.data:
            model.apply(Entry(entry.index, entry.term, clock_ms, entry.data))
    return list(model.dump())


def records(machine: Any) -> list[bytes]:
    return list(machine._state.application.dump())


def chunks(log: Sequence[Entry], rng: random.Random) -> Iterator[Sequence[Entry]]:
    start = 0
    while start < len(log):
        stop = start + rng.randint(1, 40)
        # Some chunks begin with entries that were applied already.
        yield log[max(0, start - rng.choice([0, 0, 3])) : stop]
        start = stop


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[StateMachine]:
    built = ledger.create(tmp_path / "ledger")
    built.start()
    yield built
    built.stop()


async def book(machine: StateMachine, *commands: dict[str, Any] | bytes) -> list[ApplyResult]:
    first = machine.last_applied().index + 1
    encoded = [c if isinstance(c, bytes) else ledger.encode(c) for c in commands]
    log = [Entry(first + n, 1, 1000, data) for n, data in enumerate(encoded)]
    return list(await machine.apply_chunk(log))


BANK = {"op": "open", "account": "bank", "overdraft": True}
ALICE = {"op": "open", "account": "alice"}
PAY = {"op": "transfer", "id": "t1", "from": "bank", "to": "alice", "amount": 70}


async def test_transfer_moves_money_once(machine: StateMachine) -> None:
    results = await book(machine, BANK, ALICE, PAY, PAY)

    assert [r.outcome for r in results] == [Outcome.APPLIED] * 4
    assert [r.value for r in results[2:]] == [b"-70", b"booked before"]
    assert machine.get(b"alice") == b"70"
    assert machine.get(b"bank") == b"-70"
    assert machine.get(b"carol") is None
    assert machine.len() == 2


@pytest.mark.parametrize(
    "command",
    [
        b"\xff",
        b"{",
        b"[" * 100_000,
        b"null",
        b'{"op": "open", "account": "bank", "more": 1}',
        {"op": "open", "account": "alice"},
        {"op": "open", "account": "no such name"},
        {"op": "open", "account": 7},
        {"op": "open", "account": "carol", "overdraft": 1},
        {**PAY, "id": "t2", "amount": 0},
        {**PAY, "id": "t2", "amount": True},
        {**PAY, "id": "t2", "amount": 1.5},
        {**PAY, "id": "t2", "amount": 10**16},
        {**PAY, "id": "t2", "to": "carol"},
        {**PAY, "id": "t2", "to": "bank"},
        {**PAY, "id": "t2", "from": "alice", "to": "bank", "amount": 71},
        {**PAY, "amount": 71},
        {**PAY, "id": "t2", "note": "x"},
    ],
)
async def test_unfit_commands_are_rejected(
    machine: StateMachine, command: dict[str, Any] | bytes
) -> None:
    await book(machine, BANK, ALICE, PAY)
    before = records(machine)

    (result,) = await book(machine, command)

    assert result.outcome is Outcome.REJECTED
    assert records(machine) == before
    assert machine.last_applied() == LogId(1, 4)


async def test_duplicates_and_gaps(machine: StateMachine) -> None:
    log = history(50)
    await machine.apply_chunk(log[:30])
    before = records(machine)

    again = await machine.apply_chunk(log[10:30])

    assert {r.outcome for r in again} == {Outcome.DUPLICATE}
    with pytest.raises(LogGapError):
        await machine.apply_chunk(log[31:])
    assert records(machine) == before == modelled(log, 30)


async def test_chunking_changes_nothing(tmp_path: Path) -> None:
    log = history(400)
    expected = modelled(log, len(log))
    outcomes = []
    for seed in range(4):
        machine = ledger.create(tmp_path / str(seed))
        machine.start()
        seen: dict[int, ApplyResult] = {}
        for chunk in chunks(log, random.Random(seed)):
            for result in await machine.apply_chunk(chunk):
                seen.setdefault(result.index, result)
        assert records(machine) == expected
        outcomes.append(seen)
        machine.stop()
        machine.start()
        assert records(machine) == expected
        machine.stop()

    assert all(seen == outcomes[0] for seen in outcomes)
    assert sum(json.loads(r)[2] for r in expected if r.startswith(b'["account"')) == 0


async def test_snapshot_then_tail_equals_the_whole_log(tmp_path: Path) -> None:
    log = history(300)
    source, target = ledger.create(tmp_path / "a"), ledger.create(tmp_path / "b")
    source.start()
    target.start()
    await source.apply_chunk(log[:200])
    await target.apply_chunk(log[:20])

    checksum = await source.generate_snapshot_data(tmp_path / "snapshot", log[199].log_id)
    await target.apply_snapshot_from_file(source.snapshot_metadata(), tmp_path / "snapshot")
    shutil.rmtree(tmp_path / "snapshot")
    results = [await m.apply_chunk(log[200:]) for m in (source, target)]

    assert target.snapshot_metadata().checksum == checksum
    assert results[0] == results[1]
    assert records(source) == records(target) == modelled(log, 300)
    for machine in (source, target):
        machine.stop()
        machine.start()
        assert records(machine) == modelled(log, 300)
        machine.stop()


WRITER = """
import asyncio, importlib.util, random, sys
spec = importlib.util.spec_from_file_location("test_examples", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
machine, log = tests.writer_machine(sys.argv[2], sys.argv[3]), tests.history(4000)
machine.start()
rng = random.Random(int(sys.argv[4]))

async def write():
    for chunk in tests.chunks(log[machine.last_applied().index :], rng):
        await machine.apply_chunk(chunk)
        if sys.argv[3] == "on_flush":
            if rng.random() < 0.7:
                continue
            machine.flush()
        print(machine.last_applied().index, flush=True)

print("ready", flush=True)
asyncio.run(write())
"""


def writer_machine(directory: str, durability: str) -> ApplicationStateMachine:
    """Make the ledger with checkpoints so frequent that kills fall into them."""
    return ApplicationStateMachine(
        ledger.Ledger,
        Path(directory),
        format=ledger.FORMAT,
        durability=Durability(durability),
        checkpoint_bytes=4096,
    )


@pytest.mark.storm
@pytest.mark.parametrize("durability", ["on_flush", "per_apply"])
def test_killed_ledger_keeps_what_it_acknowledged(tmp_path: Path, durability: str) -> None:
    log, rng = history(4000), random.Random(SEED)
    directory, acknowledged = tmp_path / "ledger", 0
    for kill in range(8):
        command = [sys.executable, "-c", WRITER, __file__, directory, durability, str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for _ in range(rng.randint(0, 12)):
                if line := child.stdout.readline():
                    acknowledged = int(line)
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                acknowledged = int(line)

        machine = writer_machine(str(directory), durability)
        machine.start()
        last_applied = machine.last_applied()
        assert last_applied.index >= acknowledged
        assert records(machine) == modelled(log, last_applied.index)
        assert last_applied.index == 0 or last_applied == log[last_applied.index - 1].log_id
        machine.stop()
        acknowledged = last_applied.index

    assert acknowledged > 0


def test_ledger_is_a_backend_that_passes_the_preflight() -> None:
    (backend,) = ledger.dengine_sm_backends()

    findings = run_preflight(
        lambda directory: backend.factory(directory, None),
        durability=Durability.ON_FLUSH,
        commands=None,
    )

    assert findings == []
    assert backend.name == "ledger"
    assert backend.durability_for(None) is Durability.ON_FLUSH


def test_ledger_runs_on_a_node() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", LEDGER], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) +(-?\d+)$", done.stdout, re.MULTILINE) == [
        ("alice", "70"),
        ("bank", "-100"),
        ("bob", "30"),
    ]
    assert "t2: applied b'booked before'" in done.stdout
    assert "t3: rejected b'overdraft'" in done.stdout
