"""Checks of SNAP-3: applies and reads go on while a snapshot is written."""

from __future__ import annotations

import asyncio
import time

from dengine_sm.conformance.checks.snapshot_parts import (
    applied_machine,
    apply_beside,
    chunks,
    generating,
    loop_turns,
    padding,
    snapshot_of,
    span,
)
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import (
    CannotCheckError,
    expect_equal,
    violates,
)
from dengine_sm.conformance.workload import log_of
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Put, encode_command
from dengine_sm.model import Entry

PROGRESS = 5
"""Applies and reads that must end while a snapshot is written. A machine that holds the
event loop, or a lock, lets one or two slip through at the edges."""
BIG_BYTES = (4 << 20, 16 << 20, 64 << 20)
TRIES = 3
TWICE = 2
"""Tries that must show it: on a busy machine the moments before and after a lock is held can be
long enough for one."""
LONGER = 4
"""A snapshot that takes less than so many times what these applies take proves nothing."""


async def applies_beside_a_snapshot_are_right(trial: Trial) -> None:
    """Results and states are those of the model while a snapshot is written."""
    oracle = trial.oracle(60)
    machine = await applied_machine(trial, oracle, 10)
    for label in (10, 25, 40):
        path = trial.directory("snapshots") / "snapshot"
        async with generating(machine, path, oracle.id_at(label)) as task:
            for chunk in chunks(oracle.entries(label + 1, label + 15), 4):
                history = [
                    f"begin generate_snapshot_data at {label}",
                    f"apply_chunk({span(chunk)})",
                ]
                results = await apply_beside(machine, chunk)
                oracle.check_results("SNAP-3", chunk, results, applied=label, history=history)
                oracle.check_state("SNAP-3", machine, index=chunk[-1].index, history=history)
            await task


async def applies_and_reads_end_while_a_big_snapshot_is_written(trial: Trial) -> None:
    """Of applies and reads begun beside a big snapshot, several end before it does."""
    trial.needs_key_value("commands that make a big state")
    best = 0
    for size_bytes in BIG_BYTES:
        machine = trial.open()
        await apply_all(machine, _big_state(trial, size_bytes), chunk_size=64)
        shown = 0
        for number in range(TRIES):
            ended = await _progress(trial, machine, number)
            best = max(best, ended)
            shown += ended >= PROGRESS
            if shown == TWICE:
                trial.evidence.update(state_bytes=size_bytes, tries=number + 1)
                return
        if size_bytes == BIG_BYTES[-1]:
            await _needs_long_snapshots(trial, machine)
        machine.stop()
    violates(
        "SNAP-3",
        expected=f"{PROGRESS} applies and reads, one after the other, to end while a snapshot of "
        f"{BIG_BYTES[-1]} bytes is written, in {TWICE} of {TRIES} tries",
        observed=f"{best} of them ended before the snapshot did, in the best of "
        f"{TRIES * len(BIG_BYTES)} tries, and rarely so many",
    )


async def _needs_long_snapshots(trial: Trial, machine: StateMachine) -> None:
    """Leave the check if a snapshot alone is no longer than a few applies alone."""
    start = time.perf_counter()
    taken = await snapshot_of(trial, machine)
    written = time.perf_counter()
    index = taken.metadata.last_included.index
    for number in range(PROGRESS):
        await _apply_and_read(machine, index + number + 1, b"alone")
    applied = time.perf_counter()
    if written - start < LONGER * (applied - written):
        raise CannotCheckError(
            f"writing {BIG_BYTES[-1]} bytes takes {written - start:.3f} s, {PROGRESS} applies "
            f"{applied - written:.3f} s: too little to tell whether these can go on meanwhile"
        )


def _big_state(trial: Trial, size_bytes: int) -> list[Entry]:
    puts = list(padding(trial, size_bytes, prefix=b"pad/", most=1 << 16))
    if 2 * sum(len(put.value) for put in puts) < size_bytes:
        raise CannotCheckError(
            f"values of {len(puts[0].value)} bytes, the limit, make no state that is big enough"
        )
    return log_of(list(map(encode_command, puts)), trial.seed)


async def _progress(trial: Trial, machine: StateMachine, number: int) -> int:
    """Count the applies and reads that ended while a snapshot was still being written."""
    path = trial.directory("snapshots") / "snapshot"
    applied = machine.last_applied()
    ended = 0
    async with generating(machine, path, applied) as task:
        while ended < PROGRESS:
            await _let_others_end()
            if task.done():
                break
            await _apply_and_read(machine, applied.index + ended + 1, b"beside %d" % number)
            ended += not task.done()
        await task
    return ended


async def _apply_and_read(machine: StateMachine, index: int, value: bytes) -> None:
    put = encode_command(Put(b"beside", value, None))
    await apply_beside(machine, [Entry(index, machine.last_applied().term, 0, put)])
    expect_equal("SNAP-3", "value read beside a snapshot", value, machine.get(b"beside"))
    await _let_others_end()


async def _let_others_end() -> None:
    """Let other threads and tasks run, so that a snapshot that ended is seen to have ended."""
    for _ in range(2):
        # Every thread that waits for the interpreter gets its turn beside this one.
        await asyncio.to_thread(int)
        await loop_turns(1)


CHECKS = (
    Check("SNAP-3", applies_beside_a_snapshot_are_right, Profile.QUICK),
    Check("SNAP-3", applies_and_reads_end_while_a_big_snapshot_is_written),
)
