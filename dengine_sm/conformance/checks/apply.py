"""Checks of what one caller sees: results, applied id, chunks of any cut, odd commands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dengine_sm.conformance.follower import Follower, call_of, chunk_ends
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, expect_true
from dengine_sm.conformance.workload import log_of, sample_commands
from dengine_sm.entries import EntryBlock, payloads_of, timestamps_of
from dengine_sm.kv.commands import Command, CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import ApplyResult, Entry

T = TypeVar("T")

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
"""Sizes of chunks, used over and over."""
SEEDS = st.integers(0, 7)
"""Terms and timestamps of a log."""
MANY_BYTES = 1 << 20

HOSTILE: tuple[bytes, ...] = (
    b"\x00" * MANY_BYTES,
    b"\x81" * 20_000,  # arrays in arrays
    b"[" * 20_000,
    b"\x9b" + b"\xff" * 8,  # an array of 2 ** 64 - 1 items
    b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff",  # 512 GiB of bytes
    b"\xd8\x1c\x81\xd8\x1d\x00",  # an array that holds itself
    b"\xc0\x61x",  # a date that is none
    b"\xa1\x80\x80",  # a map whose key cannot be hashed
    b"\xc5\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",  # a number of 2 ** 63 digits
    b"\x84\xf5\x41a\x41b\xf6",  # Put with true for its number
    b"\x84\x01\x41a\x41b\xf5",  # Put for true milliseconds
    b"\x84\x01\x41a\x41b\xf9\x3c\x00",  # Put for 1.0 milliseconds
    b"\x85\x01\x41a\x41b\xf6\xf6",  # Put with a field too many
    b"\x9f\x02\x41a\xff",  # Delete, but not in deterministic encoding
    b"\x82\x04\x41a",  # an unknown command
    b'{"op": "\xff"}',
    "\u2028\ud7ff\U0010ffff".encode(),
)
"""Data that a decoder may stumble over; a command of no machine."""


def commands_of(trial: Trial) -> SearchStrategy[bytes]:
    """Return a strategy for commands, out of a sample of the workload's.

    Drawing each anew costs more than applying it, and takes several times as many tries
    to shrink.
    """
    sample = sample_commands(trial.subject.workload, 200, trial.seed)
    return st.sampled_from(sorted(set(sample), key=lambda data: (len(data), data)))


def short_or_long(
    trial: Trial, elements: SearchStrategy[T], *, least: int = 1
) -> SearchStrategy[list[T]]:
    """Return a strategy for lists of few elements or of many, up to the profile's steps."""
    most = trial.effort.steps
    few = st.lists(elements, min_size=least, max_size=most)
    return few | st.lists(elements, min_size=most // 2, max_size=most)


async def results_carry_the_indices(trial: Trial) -> None:
    """Returns one result per entry of any sequence, in order, duplicates included, for good."""
    oracle = trial.oracle()
    follower = Follower(oracle, trial.open())
    kept: list[tuple[list[int], Sequence[ApplyResult]]] = []
    for number, last in enumerate(chunk_ends(len(oracle.log), (1, 3, 2, 11, 5))):
        chunk = follower.chunk_to(last, again=number % 4)
        results = await follower.deliver("APPLY-1", _reshaped(chunk, number))
        indices = [entry.index for entry in chunk]
        what = "indices of the results"
        observed = [result.index for result in results]
        expect_equal("APPLY-1", what, indices, observed, follower.history)
        by_position = [results[i].index for i in range(len(results))]
        expect_equal("APPLY-1", f"{what}, by position", indices, by_position, follower.history)
        kept.append((indices, results))
    for indices, results in kept:
        observed = [result.index for result in results]
        what = f"indices of the results of {indices[0]}..{indices[-1]}, looked at later"
        expect_equal("APPLY-1", what, indices, observed, follower.history)
    trial.evidence["chunks"] = len(kept)


def _reshaped(chunk: Sequence[Entry], number: int) -> Sequence[Entry]:
    """Return a chunk as a list, a tuple or a block: a log may hand on any sequence."""
    first = chunk[0]
    if number % 3 == 2 and {entry.term for entry in chunk} == {first.term}:
        return EntryBlock(first.index, first.term, timestamps_of(chunk), payloads_of(chunk))
    return tuple(chunk) if number % 3 == 1 else chunk


def results_say_what_became_of_entries(trial: Trial) -> None:
    """Gives each entry, delivered alone, the outcome and value that the model gives it."""

    @trial.given(commands=short_or_long(trial, commands_of(trial)), seed_=SEEDS)
    async def history(commands: list[bytes], seed_: int) -> None:
        __tracebackhide__ = True
        oracle = Oracle(trial.subject.workload, log_of(commands, seed_))
        await Follower(oracle, trial.open()).follow_all("APPLY-1", (1,))

    trial.evidence["examples"] = trial.effort.examples


def state_belongs_to_the_applied_id(trial: Trial) -> None:
    """Looks at state, len and applied id after every chunk, duplicates in front included."""

    @trial.given(
        commands=short_or_long(trial, commands_of(trial)),
        sizes=SIZES,
        again=st.integers(0, 4),
        seed_=SEEDS,
    )
    async def history(commands: list[bytes], sizes: list[int], again: int, seed_: int) -> None:
        __tracebackhide__ = True
        oracle = Oracle(trial.subject.workload, log_of(commands, seed_))
        follower = Follower(oracle, trial.open())
        for last in chunk_ends(len(commands), sizes):
            await follower.deliver("APPLY-2", follower.chunk_to(last, again=again))
            follower.check("APPLY-2")

    trial.evidence["examples"] = trial.effort.examples


def cuts_change_nothing(trial: Trial) -> None:
    """Cuts logs anywhere, or not at all: results and states are those of single entries."""

    @trial.given(
        commands=short_or_long(trial, commands_of(trial), least=2),
        sizes=SIZES | st.just([1000]),
        seed_=SEEDS,
    )
    async def history(commands: list[bytes], sizes: list[int], seed_: int) -> None:
        __tracebackhide__ = True
        oracle = Oracle(trial.subject.workload, log_of(commands, seed_))
        await _follow_cut(trial, oracle, sizes)

    trial.evidence["examples"] = trial.effort.examples


async def large_chunks_change_nothing(trial: Trial) -> None:
    """Applies one long log in chunks of many sizes, up to all of it at once."""
    oracle = trial.oracle(salt=4)
    count = len(oracle.log)
    for size in (1, 2, 17, 64, count):
        await _follow_cut(trial, oracle, [size])


async def _follow_cut(trial: Trial, oracle: Oracle, cut: Sequence[int]) -> None:
    __tracebackhide__ = True
    follower = Follower(oracle, trial.open())
    for last in chunk_ends(len(oracle.log), cut):
        await follower.follow("APPLY-4", last)
        follower.check("APPLY-4")


async def entries_see_earlier_ones_of_their_chunk(trial: Trial) -> None:
    """Swaps, deletes and expiries on one key, each for the value that the one before left."""
    trial.needs_key_value()
    a = b"a"
    commands: tuple[tuple[int, Command], ...] = (
        (1000, Put(a, b"1")),
        (1000, CompareAndSwap(a, b"1", b"2")),
        (1000, CompareAndSwap(a, b"1", b"3")),
        (1001, Delete(a)),
        (1001, CompareAndSwap(a, None, b"4")),
        (1001, Put(a, b"5", 10)),
        (1010, CompareAndSwap(a, b"5", b"5")),
        (1010, Put(a, b"6", 10)),
        (1020, CompareAndSwap(a, b"6", b"7")),
        (1020, CompareAndSwap(a, None, b"8")),
        (1020, CompareAndSwap(a, b"8", None)),
        (1021, CompareAndSwap(a, None, b"")),
        (1021, CompareAndSwap(a, None, b"9")),
    )
    log = [
        Entry(index, 1, timestamp_ms, encode_command(command))
        for index, (timestamp_ms, command) in enumerate(commands, start=1)
    ]
    oracle = Oracle(trial.subject.workload, log)
    for first in range(1, len(log) + 1):
        await _follow_cut(trial, oracle, [first, len(log)])
    trial.evidence["cuts"] = len(log)


def malformed_commands_are_rejected(trial: Trial) -> None:
    """Mixes real commands with arbitrary, cut, flipped and doubled ones; the machine goes on."""
    real = commands_of(trial)

    @trial.given(
        commands=short_or_long(trial, real | _malformed(real)),
        sizes=SIZES,
        seed_=SEEDS,
    )
    async def history(commands: list[bytes], sizes: list[int], seed_: int) -> None:
        __tracebackhide__ = True
        oracle = Oracle(trial.subject.workload, log_of(commands, seed_))
        follower = Follower(oracle, trial.open())
        for last in chunk_ends(len(commands), sizes):
            await follower.follow("APPLY-7", last)
            follower.check("APPLY-7")

    trial.evidence["examples"] = trial.effort.examples


def _malformed(real: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    return st.one_of(
        st.binary(max_size=64),
        st.text(max_size=20).map(str.encode),
        st.builds(lambda data, end: data[:end], real, st.integers(0, 40)),
        st.builds(_flipped, real, st.integers(0, 1000)),
        st.builds(lambda data, more: data + more, real, real | st.binary(max_size=4)),
    )


def _flipped(data: bytes, bit: int) -> bytes:
    if not data:
        return data
    position = bit // 8 % len(data)
    changed = data[position] ^ 1 << bit % 8
    return data[:position] + bytes([changed]) + data[position + 1 :]


async def hostile_commands_are_rejected(trial: Trial) -> None:
    """Applies what decoders stumble over, huge data included, and goes on, also after a stop."""
    real = sample_commands(trial.subject.workload, len(HOSTILE), trial.seed)
    commands = list(chain.from_iterable(zip(HOSTILE, real, strict=True)))
    oracle = Oracle(trial.subject.workload, log_of(commands, trial.seed))
    follower = Follower(oracle, trial.open())
    await follower.follow_all("APPLY-7", (1, 1, 4, 2))
    follower.check("APPLY-7")
    if not trial.subject.is_transient:
        follower.restart()
        follower.check("APPLY-7", "after a restart")
    trial.evidence["commands"] = len(HOSTILE)


async def entries_without_command_only_advance(trial: Trial) -> None:
    """Applies chunks with no-ops, of no-ops alone, and empty ones, from the first entry on."""
    commands = [b"", b"", *chain.from_iterable(zip(_some(trial), _nothing(), strict=False))]
    oracle = Oracle(trial.subject.workload, log_of(commands, trial.seed))
    follower = Follower(oracle, trial.open())
    await _apply_nothing(follower)
    await follower.follow("APPLY-8", 1)
    expect_true(
        "APPLY-8",
        "is_empty() after a single no-op",
        "not empty",
        holds=follower.machine.is_empty() == (oracle.length_at(1) == 0),
        history=follower.history,
    )
    for last in chunk_ends(len(commands), (1, 3, 4, 1, 2), start=1):
        await follower.follow("APPLY-8", last)
        follower.check("APPLY-8")
        await _apply_nothing(follower)
    if not trial.subject.is_transient:
        follower.restart()
        await _apply_nothing(follower)


def _some(trial: Trial) -> list[bytes]:
    return sample_commands(trial.subject.workload, trial.effort.entries // 4, trial.seed)


def _nothing() -> list[bytes]:
    return [b""] * 10


async def _apply_nothing(follower: Follower) -> None:
    __tracebackhide__ = True
    chunks: tuple[Sequence[Entry], ...] = ([], ())
    for nothing in chunks:
        results = await follower.deliver("APPLY-8", nothing, call_of(()))
        what = "results of an empty chunk"
        expect_equal("APPLY-8", what, [], list(results), follower.history)
    follower.check("APPLY-8", "after an empty chunk")


CHECKS = (
    Check("APPLY-1", results_carry_the_indices, Profile.QUICK),
    Check("APPLY-1", results_say_what_became_of_entries),
    Check("APPLY-2", state_belongs_to_the_applied_id),
    Check("APPLY-4", entries_see_earlier_ones_of_their_chunk, Profile.QUICK),
    Check("APPLY-4", cuts_change_nothing),
    Check("APPLY-4", large_chunks_change_nothing),
    Check("APPLY-7", hostile_commands_are_rejected, Profile.QUICK),
    Check("APPLY-7", malformed_commands_are_rejected),
    Check("APPLY-8", entries_without_command_only_advance, Profile.QUICK),
)
