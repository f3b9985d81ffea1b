"""Checks of what a snapshot is: label, content, checksum, metadata (SNAP-1, SNAP-2)."""

from __future__ import annotations

from pathlib import Path

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.held_back import threads_held_back
from dengine_sm.conformance.checks.snapshot_parts import (
    Taken,
    applied_machine,
    apply_beside,
    big_log,
    chunks,
    contents,
    expect_unchanged,
    generating,
    install,
    loop_turns,
    padding,
    raised,
    sight_of,
    snapshot_of,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import (
    expect_equal,
    expect_true,
    violates,
)
from dengine_sm.contract import StateMachine
from dengine_sm.errors import SnapshotLabelError
from dengine_sm.kv.commands import Delete, Put, encode_command
from dengine_sm.model import CHECKSUM_BYTES, LogId, SnapshotMetadata

BIG_BYTES = 4 << 20


# SNAP-1


async def label_must_be_the_applied_id(trial: Trial) -> None:
    """Every label but the applied id is refused, and nothing is written."""
    oracle = trial.oracle(30)
    machine = await applied_machine(trial, oracle, 20)
    before, applied = sight_of(trial, machine), oracle.id_at(20)
    for label in _wrong_labels(applied, oracle):
        path = trial.directory("snapshots") / "snapshot"
        await _expect_label_refused(machine, path, label, applied)
        expect_unchanged("SNAP-1", trial, machine, before, f"refusing label {label}")
    taken = await snapshot_of(trial, machine)
    await _expect_content(trial, oracle, taken, 20)


def _wrong_labels(applied: LogId, oracle: Oracle) -> list[LogId]:
    term, index = applied.term, applied.index
    labels = [
        LogId.ZERO,
        oracle.id_at(index - 1),
        oracle.id_at(1),
        oracle.id_at(index + 1),
        LogId(term, index - 1),
        LogId(term, index + 1000),
        LogId(term + 1, index),
        LogId(term - 1, index),
    ]
    return [label for label in labels if label.term > 0 or label == LogId.ZERO]


async def _expect_label_refused(
    machine: StateMachine, path: Path, label: LogId, applied: LogId
) -> None:
    history = [f"applied up to {applied}", f"generate_snapshot_data(last_included={label})"]
    expected = f"SnapshotLabelError for label {label} at last_applied {applied}"
    try:
        await machine.generate_snapshot_data(path, label)
    except SnapshotLabelError:
        written = contents(path)
        expect_equal("SNAP-1", "files written for a wrong label", [], sorted(written), history)
        return
    except Exception as exc:
        violates("SNAP-1", expected=expected, observed=raised(exc), history=history)
    violates("SNAP-1", expected=expected, observed="no exception", history=history)


async def label_follows_entries_without_a_command(trial: Trial) -> None:
    """An id that `update_last_applied` advanced to is the only label, and is installed."""
    oracle = trial.oracle(20)
    machine = await applied_machine(trial, oracle, 20)
    advanced = LogId(oracle.last.term, 21)
    machine.update_last_applied(advanced)
    path = trial.directory("snapshots") / "snapshot"
    await _expect_label_refused(machine, path, oracle.last, advanced)
    taken = await snapshot_of(trial, machine)
    target = trial.open()
    await install("SNAP-1", taken, target)
    expect_equal("SNAP-1", "last_applied() after install", advanced, target.last_applied())
    observed = trial.subject.workload.observe(target)
    expect_equal("SNAP-1", "state after install", oracle.observation_at(20), observed)


def content_is_the_state_at_the_label(trial: Trial) -> None:
    """Applies right after the first suspension do not show in the snapshot."""
    oracle = trial.oracle()
    last = len(oracle.log)

    @trial.given(
        label=st.integers(1, last - 1), meanwhile=st.integers(1, 15), chunk_size=st.integers(1, 6)
    )
    async def example(label: int, meanwhile: int, chunk_size: int) -> None:
        machine = await applied_machine(trial, oracle, label)
        newer = oracle.entries(label + 1, label + meanwhile)
        path = trial.directory("snapshots") / "snapshot"
        async with generating(machine, path, oracle.id_at(label)) as task:
            for chunk in chunks(newer, chunk_size):
                await apply_beside(machine, chunk)
            taken = _taken(machine, path, oracle.id_at(label), await task)
        oracle.check_state("SNAP-1", machine, index=label + len(newer), what="of the writer")
        await _expect_content(trial, oracle, taken, label)


async def view_is_pinned_before_other_threads_run(trial: Trial) -> None:
    """Applies do not show although they come before the work handed to other threads."""
    oracle = trial.oracle(60)
    for label in (5, 20, 30, 45):
        machine = await applied_machine(trial, oracle, label)
        path = trial.directory("snapshots") / "snapshot"
        with threads_held_back() as held:
            async with generating(machine, path, oracle.id_at(label)) as task:
                held.stop_holding()
                await apply_beside(machine, oracle.entries(label + 1, label + 15))
                held.release()
                taken = _taken(machine, path, oracle.id_at(label), await task)
        await _expect_content(trial, oracle, taken, label)


async def big_content_is_the_state_at_the_label(trial: Trial) -> None:
    """Every value is overwritten or deleted while a big snapshot is written."""
    trial.needs_key_value()
    log = big_log(trial, BIG_BYTES)
    old = list(padding(trial, BIG_BYTES, prefix=b"pad/"))
    machine = trial.open()
    await apply_all(machine, log, chunk_size=32)
    oracle = Oracle(trial.subject.workload, log)
    changes = [
        Delete(put.key) if number % 3 == 0 else Put(put.key, b"overwritten", None)
        for number, put in enumerate(old)
    ]
    newer = [
        attrs.evolve(log[-1], index=len(log) + number, data=encode_command(change))
        for number, change in enumerate(changes, start=1)
    ]
    path = trial.directory("snapshots") / "snapshot"
    async with generating(machine, path, oracle.last) as task:
        applied = 0
        for chunk in chunks(newer, 16):
            await apply_beside(machine, chunk)
            await loop_turns(1)
            applied += not task.done()
        taken = _taken(machine, path, oracle.last, await task)
    trial.evidence["chunks_applied_meanwhile"] = applied
    target = await _expect_content(trial, oracle, taken, len(log))
    wrong = [put.key for put in old if target.get(put.key) != put.value]
    expect_equal("SNAP-1", "keys with another value than at the label", [], wrong[:5])


async def _expect_content(trial: Trial, oracle: Oracle, taken: Taken, label: int) -> StateMachine:
    """Install a snapshot in a fresh machine and compare with the model at its label."""
    __tracebackhide__ = True
    target = trial.open()
    await install("SNAP-1", taken, target)
    oracle.check_state("SNAP-1", target, index=label, what=f"installed from label {label}")
    return target


def _taken(machine: StateMachine, path: Path, label: LogId, checksum: bytes) -> Taken:
    metadata = machine.snapshot_metadata()
    return Taken(SnapshotMetadata(label, checksum, metadata.format if metadata else ""), path)


# SNAP-2


async def metadata_follows_every_snapshot(trial: Trial) -> None:
    """Checksum and metadata are those of the snapshot just written, its label included."""
    oracle = trial.oracle(60)
    machine = trial.open()
    seen: dict[bytes, dict[str, bytes]] = {}
    for label in range(10, 51, 10):
        await apply_all(machine, oracle.entries(machine.last_applied().index + 1, label))
        path = trial.directory("snapshots") / "snapshot"
        async with generating(machine, path, oracle.id_at(label)) as task:
            await apply_beside(machine, oracle.entries(label + 1, label + 3))
            checksum = await task
        _expect_labelled(machine, checksum, oracle.id_at(label))
        _expect_new_checksum(seen, checksum, contents(path))
    trial.evidence["snapshots"] = len(seen)


async def checksum_tells_states_of_one_label_apart(trial: Trial) -> None:
    """Snapshots of one label but other content have other checksums."""
    oracle, other = trial.oracle(40), trial.oracle(40, salt=1)
    data = [entry.data for entry in other.log]
    twin = [attrs.evolve(entry, data=item) for entry, item in zip(oracle.log, data, strict=True)]
    seen: dict[bytes, dict[str, bytes]] = {}
    for log in (oracle.log, twin):
        machine = trial.open()
        await apply_all(machine, log)
        path = trial.directory("snapshots") / "snapshot"
        checksum = await machine.generate_snapshot_data(path, oracle.last)
        _expect_labelled(machine, checksum, oracle.last)
        _expect_new_checksum(seen, checksum, contents(path))


def _expect_labelled(machine: StateMachine, checksum: object, label: LogId) -> None:
    __tracebackhide__ = True
    is_checksum = isinstance(checksum, bytes) and len(checksum) == CHECKSUM_BYTES and any(checksum)
    expect_true(
        "SNAP-2",
        f"a checksum of {CHECKSUM_BYTES} bytes, not all zero",
        f"{checksum!r:.80}",
        holds=is_checksum,
    )
    metadata = machine.snapshot_metadata()
    if metadata is None:
        violates("SNAP-2", expected=f"snapshot_metadata() of {label}", observed="None")
    expect_equal("SNAP-2", "label in snapshot_metadata()", label, metadata.last_included)
    expect_equal("SNAP-2", "checksum in snapshot_metadata()", checksum, metadata.checksum)
    expect_true("SNAP-2", "a format in snapshot_metadata()", "''", holds=bool(metadata.format))


def _expect_new_checksum(
    seen: dict[bytes, dict[str, bytes]], checksum: bytes, files: dict[str, bytes]
) -> None:
    __tracebackhide__ = True
    expect_true("SNAP-2", "files in the snapshot directory", "none", holds=bool(files))
    known = seen.setdefault(checksum, files)
    names = sorted(name for name in {*known, *files} if known.get(name) != files.get(name))
    expect_equal("SNAP-2", f"files that differ under one checksum {checksum.hex()}", [], names)


CHECKS = (
    Check("SNAP-1", label_must_be_the_applied_id, Profile.QUICK),
    Check("SNAP-1", content_is_the_state_at_the_label, Profile.QUICK, also=("SNAP-3",)),
    Check("SNAP-1", label_follows_entries_without_a_command),
    Check("SNAP-1", view_is_pinned_before_other_threads_run, also=("SNAP-3",)),
    Check("SNAP-1", big_content_is_the_state_at_the_label, also=("SNAP-3",)),
    Check("SNAP-2", metadata_follows_every_snapshot, also=("SNAP-3",)),
    Check("SNAP-2", checksum_tells_states_of_one_label_apart),
)
