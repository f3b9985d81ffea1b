"""READ-6: what threads see while snapshots are installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dengine_sm.conformance.checks.read_concurrent import (
    Look,
    read_one_by_one,
    read_with_a_scan,
    read_with_get_multi,
)
from dengine_sm.conformance.checks.read_watch import Watch, answering, counting
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.readers import Readers
from dengine_sm.conformance.trial import Check, Trial, apply_all, take_snapshot
from dengine_sm.errors import NotRunningError
from dengine_sm.model import SnapshotMetadata

Snapshots = list[tuple[SnapshotMetadata, Path]]


async def _snapshots_of(trial: Trial, oracle: Oracle, indices: Sequence[int]) -> Snapshots:
    """Apply the log to a machine and take a snapshot at each of the indices."""
    source, first, found = trial.open(), 1, []
    for index in indices:
        await apply_all(source, oracle.entries(first, index), chunk_size=1000)
        path = trial.directory("snapshot") / "data"
        found.append((await take_snapshot(source, path), path))
        first = index + 1
    return found


async def _install_under_readers(
    trial: Trial, machine: Any, snapshots: Snapshots, look: Callable[[int], None]
) -> None:
    """Install snapshot after snapshot while threads read; NotRunningError is an answer too."""
    __tracebackhide__ = True

    def looking(number: int) -> None:
        __tracebackhide__ = True
        with contextlib.suppress(NotRunningError):
            look(number)

    with Readers(answering("READ-6", looking)) as readers:
        for done, (metadata, path) in enumerate(snapshots):
            await readers.keep_up()
            await machine.apply_snapshot_from_file(metadata, path)
            trial.on_progress(done, len(snapshots))
        await readers.keep_up()
    trial.evidence.update(installs=len(snapshots), looks=readers.looks)


async def readers_see_the_old_state_or_the_new_one(trial: Trial) -> None:
    """Compare what threads read with the model at the snapshots, while these are installed."""
    installs = max(3, trial.effort.rounds // 10)
    oracle = trial.oracle(installs * 6)
    ends = range(6, len(oracle.log) + 1, 6)
    snapshots = await _snapshots_of(trial, oracle, ends)
    # An id that goes back while a state is replaced is a part of neither state.
    watch = Watch("READ-6", oracle, ends, goes_back="READ-6")
    machine, workload = trial.open(), trial.subject.workload

    def look(_number: int) -> None:
        length, may = watch.between(machine, machine.len)
        watch.expect("len()", length, oracle.length_at, may)
        seen, may = watch.between(machine, lambda: workload.observe_at_once(machine))
        if seen is not None:
            watch.expect("state read at once", seen[0], oracle.observation_at, may)

    await _install_under_readers(trial, machine, snapshots, look)


async def readers_see_no_mixture_of_many_keys(trial: Trial) -> None:
    """Replace hundreds of equal keys by others, all at once, while threads read them."""
    trial.needs_key_value()
    count = counting(trial, max(4, trial.effort.rounds // 15), keys=200, others=60)
    snapshots = await _snapshots_of(trial, count.oracle, count.ends)
    watch = Watch("READ-6", count.oracle, count.ends, goes_back="READ-6")
    machine = trial.open()
    looks: list[Look] = [read_one_by_one]
    looks += [read_with_get_multi] * hasattr(machine, "get_multi")
    looks += [read_with_a_scan] * hasattr(machine, "scan_prefix")

    def look(number: int) -> None:
        looks[number % len(looks)](machine, count, watch, number)

    await _install_under_readers(trial, machine, snapshots, look)


CHECKS = (
    Check("READ-6", readers_see_the_old_state_or_the_new_one, Profile.QUICK),
    Check("READ-6", readers_see_no_mixture_of_many_keys, Profile.STANDARD),
)
