"""READ-1, READ-2: what threads see while chunks are applied and snapshots written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from dengine_sm.conformance.checks.read_watch import (
    Counting,
    Watch,
    answering,
    counting,
    write_under_readers,
)
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.readers import Readers
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates

_CHUNK = 7

Look = Callable[[Any, Counting, Watch, int], None]


async def readers_see_whole_chunks(trial: Trial) -> None:
    """Compare what threads read with the model at the ends of chunks, under a writer."""
    oracle = trial.oracle(trial.effort.rounds * 3)
    firsts = range(1, len(oracle.log) + 1, _CHUNK)
    chunks = [oracle.entries(first, first + _CHUNK - 1) for first in firsts]
    watch = Watch("READ-1", oracle, [chunk[-1].index for chunk in chunks])
    machine, workload = trial.open(), trial.subject.workload

    def look(_number: int) -> None:
        length, may = watch.between(machine, machine.len)
        watch.expect("len()", length, oracle.length_at, may)
        seen, may = watch.between(machine, lambda: workload.observe_at_once(machine))
        if seen is not None:
            watch.expect("state read at once", seen[0], oracle.observation_at, may)
        if may[0]:
            term = machine.entry_term(may[0])
            expect_equal("LOG-2", f"entry_term({may[0]})", oracle.id_at(may[0]).term, term)

    with Readers(answering("READ-1", look)) as readers:
        await write_under_readers(trial, machine, chunks, readers)


async def _count_under_readers(trial: Trial, clause: str, look: Look) -> None:
    __tracebackhide__ = True
    machine = trial.open()
    count = counting(trial, trial.effort.rounds, keys=8, others=8)
    watch = Watch(clause, count.oracle, count.ends)
    looking = answering(clause, lambda number: look(machine, count, watch, number))
    with Readers(looking) as readers:
        await write_under_readers(trial, machine, count.chunks, readers)


async def single_reads_follow_the_chunks(trial: Trial) -> None:
    """Read keys that a writer keeps equal one after the other; none is behind the one before."""
    trial.needs_key_value()
    await _count_under_readers(trial, "READ-1", read_one_by_one)


def read_one_by_one(machine: Any, count: Counting, watch: Watch, number: int) -> None:
    """Read the keys, forwards or backwards, and compare each with the one before it."""
    __tracebackhide__ = True
    earliest = 0
    for key in count.keys if number % 2 else count.keys[::-1]:
        value, may = watch.between(machine, functools.partial(machine.get, key))
        watch.expect(f"get({key!r})", value, count.values.__getitem__, may)
        at = [index for index in may if count.values[index] == value]
        if at[-1] < earliest:
            violates(
                watch.clause,
                expected=f"get({key!r}) as at index {earliest}, where the read before it was",
                observed=f"{value!r}, as at index {at[-1]}",
            )
        earliest = max(earliest, at[0])


async def get_multi_is_one_point_in_time(trial: Trial) -> None:
    """Read keys that a writer keeps equal, all at once; they are equal."""
    trial.needs_key_value()
    trial.needs_method(trial.open(), "get_multi", "SupportsGetMulti")
    await _count_under_readers(trial, "READ-2", read_with_get_multi)


def read_with_get_multi(machine: Any, count: Counting, watch: Watch, _number: int) -> None:
    """Read all keys at once and compare them with each other and the model."""
    __tracebackhide__ = True
    values, may = watch.between(machine, lambda: list(machine.get_multi(count.keys)))
    what = f"get_multi of {len(count.keys)} equal keys"
    watch.expect(what, values, lambda index: [count.values[index]] * len(count.keys), may)


async def scan_and_its_id_are_one_point_in_time(trial: Trial) -> None:
    """Compare each scan, under a writer, with the model at exactly the id that it carries."""
    trial.needs_key_value()
    trial.needs_method(trial.open(), "scan_prefix", "SupportsScanPrefix")
    await _count_under_readers(trial, "READ-2", read_with_a_scan)


def read_with_a_scan(machine: Any, count: Counting, watch: Watch, number: int) -> None:
    """Scan and compare the rows with the model at the id that came with them."""
    __tracebackhide__ = True
    prefix = (b"", b"key-", b"row-")[number % 3]
    result, may = watch.between(machine, lambda: machine.scan_prefix(prefix))
    found = result.last_applied
    indices = [index for index in may if watch.oracle.id_at(index) == found]
    if not indices:
        ids = " or ".join(str(watch.oracle.id_at(index)) for index in may)
        violates(watch.clause, expected=f"the id of a scan: {ids}", observed=found)
    expected = tuple(row for row in count.rows[indices[0]] if row[0].startswith(prefix))
    observed = tuple((key, value) for key, value in result.entries)
    expect_equal(watch.clause, f"scan_prefix({prefix!r}) with the id {found}", expected, observed)


CHECKS = (
    Check("READ-1", readers_see_whole_chunks, Profile.QUICK, also=("LOG-1", "LOG-2")),
    Check("READ-1", single_reads_follow_the_chunks, Profile.STANDARD, also=("LOG-1",)),
    Check("READ-2", get_multi_is_one_point_in_time, Profile.STANDARD, also=("LOG-1",)),
    Check("READ-2", scan_and_its_id_are_one_point_in_time, Profile.STANDARD, also=("LOG-1",)),
)
