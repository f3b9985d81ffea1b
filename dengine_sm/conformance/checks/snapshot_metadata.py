"""Checks of SNAP-10: metadata that was promised durable survives a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dengine_sm.conformance.checks.snapshot_parts import (
    Taken,
    nursery_of,
    snapshot_at,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import RemoteMachine
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal
from dengine_sm.model import SnapshotMetadata


def metadata_survives_a_kill(trial: Trial) -> None:
    """Kill right after the metadata was promised durable, in every way that promises it."""
    with nursery_of(trial) as nursery:
        oracle = trial.oracle(60)
        snapshots = {label: trial.run(snapshot_at(trial, oracle, label)) for label in (20, 40)}
        for name, promise in _PROMISES.items():
            directory = trial.directory()
            machine = nursery.spawn(directory)
            machine.start()
            machine.apply_chunk(oracle.entries(1, 20))
            history = ["apply_chunk(entries 1..20)", name]
            expected = promise(trial, machine, oracle, snapshots)
            machine.kill()
            _expect_metadata(trial, directory, oracle, expected, [*history, "kill", "start"])
        trial.evidence["kills"] = len(_PROMISES)


def _expect_metadata(
    trial: Trial, directory: Path, oracle: Oracle, expected: SnapshotMetadata, history: list[str]
) -> None:
    __tracebackhide__ = True
    for again in ("", " after one more restart"):
        machine = trial.open(directory)
        observed = machine.snapshot_metadata()
        expect_equal("SNAP-10", f"snapshot_metadata(){again}", expected, observed, history)
        oracle.check_state("SNAP-10", machine, history=history)
        machine.stop()


_Snapshots = dict[int, Taken]
_Promise = Callable[[Trial, RemoteMachine, Oracle, _Snapshots], SnapshotMetadata]


def _generate(trial: Trial, machine: RemoteMachine, oracle: Oracle) -> SnapshotMetadata:
    label = oracle.id_at(machine.last_applied().index)
    checksum = machine.generate_snapshot_data(trial.directory("snapshots") / "snapshot", label)
    return SnapshotMetadata(label, checksum, machine.snapshot_metadata().format)


def _persisted(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, snapshots: _Snapshots
) -> SnapshotMetadata:
    metadata = snapshots[20].metadata
    machine.persist_last_snapshot_metadata(metadata)
    return metadata


def _updated_and_saved(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, snapshots: _Snapshots
) -> SnapshotMetadata:
    metadata = snapshots[20].metadata
    machine.update_last_snapshot_metadata(metadata)
    machine.save_hard_state()
    return metadata


def _generated_and_saved(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, snapshots: _Snapshots
) -> SnapshotMetadata:
    metadata = _generate(trial, machine, oracle)
    machine.save_hard_state()
    return metadata


def _persisted_twice(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, snapshots: _Snapshots
) -> SnapshotMetadata:
    machine.persist_last_snapshot_metadata(_generate(trial, machine, oracle))
    machine.apply_chunk(oracle.entries(21, 40))
    metadata = _generate(trial, machine, oracle)
    machine.persist_last_snapshot_metadata(metadata)
    machine.apply_chunk(oracle.entries(41, 50))
    return metadata


def _installed_and_saved(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, snapshots: _Snapshots
) -> SnapshotMetadata:
    taken = snapshots[40]
    machine.apply_snapshot_from_file(taken.metadata, taken.path)
    machine.save_hard_state()
    return taken.metadata


def _restarted_and_saved(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, snapshots: _Snapshots
) -> SnapshotMetadata:
    metadata = _persisted(trial, machine, oracle, snapshots)
    machine.stop()
    machine.start()
    machine.apply_chunk(oracle.entries(21, 30))
    machine.save_hard_state()
    return metadata


_PROMISES: dict[str, _Promise] = {
    "persist_last_snapshot_metadata": _persisted,
    "update_last_snapshot_metadata, save_hard_state": _updated_and_saved,
    "generate_snapshot_data, save_hard_state": _generated_and_saved,
    "persist, apply, generate, persist, apply": _persisted_twice,
    "apply_snapshot_from_file, save_hard_state": _installed_and_saved,
    "persist, stop, start, apply, save_hard_state": _restarted_and_saved,
}


CHECKS = (Check("SNAP-10", metadata_survives_a_kill, Profile.QUICK),)
