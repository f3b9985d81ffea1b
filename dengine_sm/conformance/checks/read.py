"""READ-3, READ-7: an empty value is a value, and what a read returned stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dengine_sm.conformance.checks.key_value_hand import Hand
from dengine_sm.conformance.processes.held import Problem, hold_reads
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all, take_snapshot
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.kv.commands import CompareAndSwap, Delete, Put
from dengine_sm.model import Outcome, SnapshotMetadata

# What is there and empty, what is there, what was there, what never was.
_EMPTY, _FULL, _DELETED, _NEVER = b"empty", b"full", b"deleted", b"never"
_STATE = {_EMPTY: b"", _FULL: b"1", _DELETED: None, _NEVER: None, b"": b""}
_COMMANDS = (
    Put(_EMPTY, b"1"),
    Put(_EMPTY, b""),
    Put(_FULL, b""),
    Put(_FULL, b"1"),
    Put(_DELETED, b""),
    Delete(_DELETED),
    Put(b"", b""),
)


def _expect_state(machine: Any, expected: dict[bytes, bytes | None], when: str) -> None:
    """Compare what every read method says of some keys."""
    __tracebackhide__ = True
    for key, value in expected.items():
        expect_equal("READ-3", f"get({key!r}) {when}", value, machine.get(key))
    keys, live = list(expected), {k: v for k, v in expected.items() if v is not None}
    if hasattr(machine, "get_multi"):
        values = list(expected.values())
        expect_equal("READ-3", f"get_multi({keys!r}) {when}", values, machine.get_multi(keys))
    if hasattr(machine, "scan_prefix"):
        rows = dict(machine.scan_prefix(b"").entries)
        expect_equal("READ-3", f"scan_prefix(b'') {when}", live, rows)
    expect_equal("READ-3", f"len() {when}", len(live), machine.len())
    expect_equal("READ-3", f"is_empty() {when}", not live, machine.is_empty())


async def empty_value_is_not_absent(trial: Trial) -> None:
    """Tell empty from absent with every read."""
    trial.needs_key_value()
    machine = trial.open()
    hand = Hand(machine)
    await hand.apply(Put(_EMPTY, b""))
    _expect_state(machine, {_EMPTY: b"", _NEVER: None}, "after one put")
    await hand.apply(*_COMMANDS)
    _expect_state(machine, _STATE, "after a chunk of puts")


async def compare_and_swap_tells_empty_from_absent(trial: Trial) -> None:
    """Swap from and to empty values and absent keys, in one chunk and in several."""
    trial.needs_key_value()
    applied, rejected = Outcome.APPLIED, Outcome.REJECTED
    swaps = [
        (CompareAndSwap(b"a", b"", b"1"), rejected, None),
        (CompareAndSwap(b"a", None, b""), applied, b""),
        (CompareAndSwap(b"a", None, b"1"), rejected, b""),
        (CompareAndSwap(b"a", b"", b"1"), applied, b"1"),
        (CompareAndSwap(b"a", b"", b"2"), rejected, b"1"),
        (CompareAndSwap(b"a", b"1", b""), applied, b""),
        (CompareAndSwap(b"a", b"", None), applied, None),
        (CompareAndSwap(b"a", b"", b"3"), rejected, None),
        (CompareAndSwap(b"a", None, None), applied, None),
    ]
    history = [str(swap) for swap, _, _ in swaps]
    one_by_one, at_once = trial.open(), trial.open()
    hand = Hand(one_by_one)
    for position, (swap, outcome, value) in enumerate(swaps):
        observed = (await hand.apply(swap))[0], one_by_one.get(b"a")
        expect_equal(
            "READ-3", f"outcome and value of {swap}", (outcome, value), observed, history[:position]
        )
    expected = [outcome for _, outcome, _ in swaps]
    outcomes = await Hand(at_once).apply(*(swap for swap, _, _ in swaps))
    expect_equal("READ-3", "outcomes of these as one chunk", expected, outcomes, history)


async def empty_value_survives_a_restart(trial: Trial) -> None:
    """Tell empty from absent after a stop, and after the start that follows it."""
    trial.needs_key_value()
    trial.needs_survival()
    directory = trial.directory()
    machine = trial.open(directory)
    await Hand(machine).apply(*_COMMANDS)
    machine.stop()
    machine = trial.open(directory)
    _expect_state(machine, _STATE, "after a restart")
    outcomes = await Hand(machine, machine.last_applied()).apply(
        CompareAndSwap(_NEVER, b"", b"1"), CompareAndSwap(_EMPTY, None, b"1")
    )
    expect_equal("READ-3", "outcomes of swaps that fit not", [Outcome.REJECTED] * 2, outcomes)


def empty_value_survives_a_kill(trial: Trial) -> None:
    """Tell empty from absent after a kill, twice."""
    trial.needs_key_value()
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    directory = trial.directory()
    with Nursery(trial.subject.maker) as nursery:
        machine = nursery.spawn(directory)
        machine.start()
        chunk = Hand(machine).entries(*_COMMANDS)
        machine.apply_chunk(chunk)
        machine.flush()
        for when in ("after a kill", "after a second kill"):
            machine.kill()
            machine = nursery.spawn(directory)
            machine.start()
            expect_equal("CRASH-2", "last_applied()", chunk[-1].log_id, machine.last_applied())
            _expect_state(machine, _STATE, when)


async def empty_value_travels_in_a_snapshot(trial: Trial) -> None:
    """Install empty values into an empty machine, and over a state that differs."""
    trial.needs_key_value()
    source, other = trial.open(), trial.open()
    await Hand(source).apply(*_COMMANDS)
    path = trial.directory() / "snapshot"
    metadata = await take_snapshot(source, path)
    # All that the snapshot has empty is full here, and what it lacks is empty.
    await Hand(other).apply(Put(_EMPTY, b"1"), Put(_DELETED, b""), Put(_NEVER, b""), Put(b"", b"1"))
    for target in (trial.open(), other):
        await target.apply_snapshot_from_file(metadata, path)
        _expect_state(target, _STATE, "after the install")


# READ-7

_KEYS = (b"small", b"empty", b"large")


def _large(trial: Trial) -> bytes:
    limits = trial.subject.limits
    size = 100_000 if limits is None else min(100_000, limits.max_value_bytes)
    return bytes(range(256)) * (size // 256)


def _chunks(trial: Trial, hand: Hand) -> list[Any]:
    """Return a chunk that sets the keys, and one each that overwrites and deletes them."""
    large = _large(trial)
    values = (b"1", b"", large)
    others = (b"2", b"3", large[::-1])
    chunks = []
    for commands in (
        [Put(key, value) for key, value in zip(_KEYS, values, strict=True)],
        [Put(key, value) for key, value in zip(_KEYS, others, strict=True)],
        [Delete(key) for key in _KEYS],
    ):
        chunks.append(hand.entries(*commands))
        hand.index += len(commands)
    return chunks


async def _newer_snapshot(trial: Trial, chunks: list[Any]) -> tuple[SnapshotMetadata, Path]:
    """Write a snapshot of the state that the chunks lead to, and a little more."""
    source = trial.open()
    await apply_all(source, [entry for chunk in chunks for entry in chunk])
    await Hand(source, source.last_applied()).apply(Put(b"small", b"new"))
    path = trial.directory() / "snapshot"
    return await take_snapshot(source, path), path


def _blame(problems: list[Problem]) -> None:
    __tracebackhide__ = True
    for name, when, expected, observed in problems:
        expect_equal("READ-7", f"{name} {when}", expected, observed)


async def reads_return_bytes_of_their_own(trial: Trial) -> None:
    """Keep what reads return while the keys are overwritten, deleted and replaced."""
    machine = trial.open()
    if not trial.subject.is_key_value:
        await _keep_an_observation(trial, machine)
        return
    chunks = _chunks(trial, Hand(machine))
    await machine.apply_chunk(chunks[0])
    metadata, path = await _newer_snapshot(trial, chunks)
    _blame(await hold_reads(machine, _KEYS, chunks[1:], metadata, path, False))


async def _keep_an_observation(trial: Trial, machine: Any) -> None:
    oracle = trial.oracle(40)
    await machine.apply_chunk(oracle.entries(1, 20))
    observed = trial.subject.workload.observe(machine)
    await machine.apply_chunk(oracle.entries(21, 40))
    machine.stop()
    expected = oracle.observation_at(20)
    expect_equal("READ-7", "what was read at index 20, kept until stop", expected, observed)


async def returned_bytes_outlive_the_machine(trial: Trial) -> None:
    """Keep what reads return through overwriting, install, stop and restart, in a child."""
    trial.needs_key_value()
    trial.needs_maker()
    assert trial.subject.maker is not None
    chunks = _chunks(trial, Hand(None))
    metadata, path = await _newer_snapshot(trial, chunks)
    with Nursery(trial.subject.maker) as nursery:
        machine = nursery.spawn(trial.directory())
        machine.start()
        machine.apply_chunk(chunks[0])
        try:
            problems = machine.run(hold_reads, _KEYS, chunks[1:], metadata, path, True)
        except ProcessDied as exc:
            violates(
                "READ-7", expected="bytes that stay valid after stop", observed=f"crash: {exc}"
            )
        _blame(problems)


CHECKS = (
    Check("READ-3", empty_value_is_not_absent, Profile.QUICK),
    Check("READ-3", compare_and_swap_tells_empty_from_absent, Profile.QUICK),
    Check("READ-3", empty_value_survives_a_restart, Profile.QUICK),
    Check("READ-3", empty_value_survives_a_kill, Profile.STANDARD, also=("CRASH-2",)),
    Check("READ-3", empty_value_travels_in_a_snapshot, Profile.QUICK),
    Check("READ-7", reads_return_bytes_of_their_own, Profile.QUICK),
    Check("READ-7", returned_bytes_outlive_the_machine, Profile.STANDARD),
)
