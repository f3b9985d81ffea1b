"""READ-4: any bytes are a key and a value, up to the declared limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dengine_sm.conformance.checks.key_value_hand import Hand, entries_of, outcomes
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, take_snapshot
from dengine_sm.conformance.violation import NotBoundError, expect_equal
from dengine_sm.kv.commands import CompareAndSwap, Delete, Put
from dengine_sm.model import LogId, Outcome

_ODD_KEYS = (
    *(bytes([byte]) for byte in range(256)),
    *(bytes([0xFF]) * count for count in range(2, 6)),
    *(bytes(count) for count in range(2, 6)),
    *(b"", b"a\x00", b"a\x00\x00", b"a\x00b", b"\x00a", b"a\xff", b"a\xff\xff", b"\xffa"),
    *(b"line\n", b"\r\n", b"sp ace", b"quo\"te'", b"back\\slash", b"../up", b"a/b", b"%s", b"{}"),
    *("größe".encode(), "größe".encode("latin-1"), b"\xed\xa0\x80", b"0", b"-1", b"None"),
)
_BOOKKEEPING = (
    *(b"last_applied", b"applied", b"applied_index", b"applied_id", b"index", b"term", b"terms"),
    *(b"snapshot", b"snapshot_metadata", b"last_snapshot_metadata", b"last_included", b"metadata"),
    *(b"meta", b"state_machine", b"state_machine_meta", b"hard_state", b"clock", b"clock_ms"),
    *(b"ttl", b"ttl_state", b"lease", b"leases", b"expiry", b"deadline", b"deadlines", b"count"),
    *(b"term_history", b"format", b"version", b"schema_version", b"kv", b"data", b"default"),
    *(b"m/applied", b"m/terms", b"m/snapshot", b"__meta__", b"__last_applied__", b"_meta"),
)
_PREFIXES = (b"m/", b"d/", b"t/", b"_", b"__", b"\x00", b"\xff", b"meta:", b"meta/", b"ttl/", b"i")


async def any_bytes_are_a_key_and_a_value(trial: Trial) -> None:
    """Put, read, delete and keep keys of all 256 bytes, of NULs, of 0xFF, and the empty key."""
    trial.needs_key_value()
    keys = _fitting(trial, _ODD_KEYS)
    directory = trial.directory()
    hand, state = Hand(trial.open(directory)), dict[bytes, bytes]()
    values = [bytes([0, position % 256]) + key for position, key in enumerate(keys)]
    await _apply(hand, state, [Put(key, value) for key, value in zip(keys, values, strict=True)])
    await _apply(hand, state, [Delete(key) for key in keys[::3]])
    await _expect_state_elsewhere(trial, hand.machine, directory, state)


def _fitting(trial: Trial, keys: tuple[bytes, ...]) -> list[bytes]:
    limits = trial.subject.limits
    return [key for key in keys if limits is None or len(key) <= limits.max_key_bytes]


def _expect_state(machine: Any, state: dict[bytes, bytes], when: str) -> None:
    __tracebackhide__ = True
    for key, value in state.items():
        expect_equal("READ-4", f"get({key!r}) {when}", value, machine.get(key))
    expect_equal("READ-4", f"len() {when}", len(state), machine.len())
    if hasattr(machine, "scan_prefix"):
        rows = [(key, value) for key, value in machine.scan_prefix(b"").entries]
        expect_equal("READ-4", f"scan_prefix(b'') {when}", sorted(state.items()), rows)


async def _expect_state_elsewhere(
    trial: Trial, machine: Any, directory: Path, state: dict[bytes, bytes]
) -> Any:
    """Compare the state in another machine that installs it, and after a restart.

    Returns:
        The restarted machine; a TRANSIENT one is not restarted.
    """
    __tracebackhide__ = True
    path = trial.directory() / "snapshot"
    metadata = await take_snapshot(machine, path)
    follower = trial.open()
    await follower.apply_snapshot_from_file(metadata, path)
    places = [(follower, "after an install")]
    if not trial.subject.is_transient:
        machine.stop()
        machine = trial.open(directory)
        places.append((machine, "after a restart"))
    for place, when in places:
        _expect_state(place, state, when)
        _expect_bookkeeping(place, metadata.last_included, when)
        expect_equal("READ-4", f"snapshot_metadata() {when}", metadata, place.snapshot_metadata())
    return machine


def _expect_bookkeeping(machine: Any, last_applied: LogId, when: str) -> None:
    __tracebackhide__ = True
    expect_equal("READ-4", f"last_applied() {when}", last_applied, machine.last_applied())
    term = machine.entry_term(last_applied.index)
    expect_equal("READ-4", f"entry_term({last_applied.index}) {when}", last_applied.term, term)


def binary_keys_agree_with_a_dict(trial: Trial) -> None:
    """Compare random keys and values with a dict, across a restart."""
    trial.needs_key_value()
    limits = trial.subject.limits
    longest = 24 if limits is None else min(24, limits.max_key_bytes)
    keys = st.binary(max_size=longest)
    pairs = st.tuples(keys, st.none() | st.binary(max_size=40 if limits is None else longest))

    @trial.given(pairs=st.lists(pairs, max_size=20))
    async def _(pairs: list[tuple[bytes, bytes | None]]) -> None:
        directory = trial.directory()
        hand = Hand(trial.open(directory))
        state: dict[bytes, bytes] = {}
        await _apply(hand, state, [Delete(k) if v is None else Put(k, v) for k, v in pairs])
        _expect_state(hand.machine, state, "at the end")
        hand.machine.stop()
        if not trial.subject.is_transient:
            _expect_state(trial.open(directory), state, "after a restart")


async def no_key_meets_the_bookkeeping(trial: Trial) -> None:
    """Use keys that look like the machine's own rows, and names and words of its directory."""
    trial.needs_key_value()
    directory, state = trial.directory(), dict[bytes, bytes]()
    hand = Hand(trial.open(directory))
    # A row of every kind: plain, with a deadline, and what a snapshot leaves.
    await _apply(hand, state, [Put(b"a", b"1"), Put(b"b", b"2", ttl_ms=10**9)])
    await take_snapshot(hand.machine, trial.directory() / "snapshot")
    hand.machine.save_hard_state()
    keys = [key for key in dict.fromkeys(_suspects(trial, directory)) if key not in state]
    trial.evidence["keys"] = len(keys)
    for key in keys:
        expect_equal("READ-4", f"get({key!r}) before a put", None, hand.machine.get(key))
    await _apply(hand, state, [Put(key, b"no " + key) for key in keys])
    await _apply(hand, state, [Put(key, b"no " + key, ttl_ms=10**9) for key in keys[::2]])
    await _apply(hand, state, [Delete(key) for key in keys[::3]])
    hand.machine = await _expect_state_elsewhere(trial, hand.machine, directory, state)
    if not trial.subject.is_transient:
        await _apply(hand, state, [Delete(key) for key in keys])
        hand.machine.stop()
        _expect_state(trial.open(directory), state, "after deletes and a restart")


async def _apply(hand: Hand, state: dict[bytes, bytes], commands: Sequence[Put | Delete]) -> None:
    """Apply commands to the machine and to a dict, and compare."""
    __tracebackhide__ = True
    observed = await hand.apply(*commands)
    for command in commands:
        state.pop(command.key, None)
        if isinstance(command, Put):
            state[command.key] = command.value
    expect_equal("READ-4", "outcomes", [Outcome.APPLIED] * len(commands), observed)
    when = f"after entry {hand.index}"
    _expect_state(hand.machine, state, when)
    if commands:
        _expect_bookkeeping(hand.machine, LogId(1, hand.index), when)


def _suspects(trial: Trial, directory: Path) -> Iterator[bytes]:
    """Yield keys that a careless machine may take for its own."""
    limit = 200 if trial.subject.limits is None else trial.subject.limits.max_key_bytes
    words = [*_BOOKKEEPING, *_words_of(directory)]
    for word in words:
        yield from (key for key in (word, word.lower()) if len(key) <= limit)
    for prefix in _PREFIXES:
        for rest in (b"", b"a", b"b", b"last_applied", bytes(8) + b"b"):
            if len(prefix + rest) <= limit:
                yield prefix + rest


def _words_of(directory: Path) -> list[bytes]:
    """Return file names, and what is legible in the first blocks of the files."""
    found: dict[bytes, None] = {}
    for path in sorted(directory.rglob("*")):
        found[path.name.encode()] = None
        found[str(path.relative_to(directory)).encode()] = None
        if path.is_file():
            with path.open("rb") as stream:
                block = stream.read(1 << 16)
            found.update(dict.fromkeys(re.findall(rb"[ -~]{2,32}", block)[:200]))
    return list(found)[:600]


# Limits


async def sizes_at_the_limit_are_kept_and_larger_ones_rejected(trial: Trial) -> None:
    """Put and swap keys and values of the declared sizes, and of one byte more."""
    trial.needs_key_value()
    limits = trial.subject.limits
    if limits is None:
        raise NotBoundError("the machine declares no limits")
    key, value = _pattern(limits.max_key_bytes), _pattern(limits.max_value_bytes)
    directory = trial.directory()
    hand = Hand(trial.open(directory))
    long_key, long_value = key + b"k", value + b"v"
    for command, outcome in (
        (Put(b"k", b"old"), Outcome.APPLIED),
        (Put(b"k", long_value), Outcome.REJECTED),
        (CompareAndSwap(b"k", b"old", long_value), Outcome.REJECTED),
        (CompareAndSwap(b"new", None, long_value), Outcome.REJECTED),
        (Put(long_key, b"1"), Outcome.REJECTED),
        (CompareAndSwap(long_key, None, b"1"), Outcome.REJECTED),
        (Put(b"v", value), Outcome.APPLIED),
        (Put(key, b"1"), Outcome.APPLIED),
        (CompareAndSwap(key, b"1", b"2"), Outcome.APPLIED),
        (CompareAndSwap(b"w", None, value), Outcome.APPLIED),
    ):
        observed = outcomes(await hand.machine.apply_chunk(entries_of([command], hand.index + 1)))
        hand.index += 1
        expect_equal("READ-4", f"outcome of {_sizes(command)}", [outcome], observed)
    expected = {b"k": b"old", b"new": None, b"v": value, b"w": value, key: b"2", long_key: None}
    _expect_whole(hand.machine, expected, "")
    hand.machine.stop()
    if not trial.subject.is_transient:
        _expect_whole(trial.open(directory), expected, " after a restart")


def _pattern(size: int) -> bytes:
    """Return bytes of which every prefix differs from the whole."""
    return (b"0123456789abcde" * (size // 15 + 1))[:size]


def _sizes(command: Any) -> str:
    value = getattr(command, "value", getattr(command, "new", b""))
    name = type(command).__name__
    return f"{name} with a key of {len(command.key)} and a value of {len(value)} bytes"


def _expect_whole(machine: Any, expected: dict[bytes, bytes | None], when: str) -> None:
    __tracebackhide__ = True
    for key, value in expected.items():
        observed = machine.get(key)
        what = f"get of a key of {len(key)} bytes{when}"
        sizes = [None if found is None else len(found) for found in (value, observed)]
        expect_equal("READ-4", f"{what}: size", sizes[0], sizes[1])
        expect_equal("READ-4", f"{what}: same bytes", True, observed == value)
    live = sum(value is not None for value in expected.values())
    expect_equal("READ-4", f"len(){when}", live, machine.len())


CHECKS = (
    Check("READ-4", any_bytes_are_a_key_and_a_value, Profile.QUICK),
    Check("READ-4", binary_keys_agree_with_a_dict, Profile.STANDARD),
    Check("READ-4", no_key_meets_the_bookkeeping, Profile.QUICK),
    Check("READ-4", sizes_at_the_limit_are_kept_and_larger_ones_rejected, Profile.STANDARD),
)
