"""Checks of stopped machines, and of those that nobody stops (LIFE-3, LIFE-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dengine_sm.conformance.checks.life_parts import (
    CHUNK,
    expect_terms,
    log_of_many_terms,
    metadata_at,
    other_processes,
)
from dengine_sm.conformance.checks.snapshot_parts import Taken, raised, snapshot_at, span
from dengine_sm.conformance.key_value import KEYS
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.dropping import (
    drop_running_machine,
    drop_stopped_machine,
    exit_without_stop,
)
from dengine_sm.conformance.processes.remote import METHODS, Nursery, RemoteMachine
from dengine_sm.conformance.processes.stopping import stop_while_others_read
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import NotRunningError
from dengine_sm.model import LogId, SnapshotMetadata

_ANSWERS_ALWAYS = frozenset({"start", "stop", "is_running"})
_OWN_LANGUAGE = frozenset({"query"})
"""A request that is none in the machine's language may be refused for that."""
_MAX_RACES = 15


# LIFE-3


def every_method_refuses_while_stopped(trial: Trial) -> None:
    """Call every method before start and after stop, in a process that may crash."""
    oracle = log_of_many_terms(trial, 3 * CHUNK)
    applied = oracle.id_at(2 * CHUNK)
    taken = trial.run(snapshot_at(trial, oracle, 3 * CHUNK))
    with other_processes(trial) as nursery:
        machine = nursery.spawn(trial.directory())
        calls = _calls(trial, machine, oracle, taken)
        _expect_refusals(machine, calls, ["construct"])
        machine.start()
        machine.apply_chunk(oracle.entries(1, 2 * CHUNK))
        machine.stop()
        history = ["start()", f"apply_chunk up to {applied}", "stop()"]
        _expect_refusals(machine, calls, history)
        machine.start()
        _expect_nothing_changed(machine, applied, [*history, "call every method", "start()"])
        machine.stop()
        _expect_refusals(machine, calls, [*history, "start()", "stop()"])
    trial.evidence["methods"] = sorted(calls)


def _calls(
    trial: Trial, machine: RemoteMachine, oracle: Oracle, taken: Taken
) -> dict[str, Sequence[Any]]:
    """Return the arguments of every method that may not answer; sound ones while running."""
    following = oracle.id_at(2 * CHUNK + 1)
    metadata = _refused_metadata(oracle)
    calls: dict[str, Sequence[Any]] = {
        "get": [KEYS[0]],
        "entry_term": [1],
        "apply_chunk": [oracle.entries(1, 3 * CHUNK)],
        "len": [],
        "is_empty": [],
        "update_last_applied": [following],
        "last_applied": [],
        "persist_last_applied": [following],
        "update_last_snapshot_metadata": [metadata],
        "snapshot_metadata": [],
        "persist_last_snapshot_metadata": [metadata],
        "apply_snapshot_from_file": [taken.metadata, taken.path],
        "generate_snapshot_data": [trial.directory() / "snapshot", oracle.id_at(2 * CHUNK)],
        "save_hard_state": [],
        "flush": [],
        "flush_async": [],
        "reset": [],
        "get_multi": [list(KEYS[:2])],
        "scan_prefix": [b""],
        "query": [b""],
    }
    assert calls.keys() == set(METHODS) - _ANSWERS_ALWAYS, "a method of the contract is missing"
    return {name: args for name, args in calls.items() if hasattr(machine, name)}


def _refused_metadata(oracle: Oracle) -> SnapshotMetadata:
    return metadata_at(oracle.id_at(1), "refused/1", 1)


def _expect_refusals(
    machine: RemoteMachine, calls: Mapping[str, Sequence[Any]], history: list[str]
) -> None:
    __tracebackhide__ = True
    wrong = []
    for name, args in calls.items():
        try:
            observed = f"{machine.request('call', name, *args)!r:.80}"
        except NotRunningError:
            continue
        except ProcessDied as exc:
            observed = f"{name}: the interpreter died {exc.stderr.rpartition(chr(10))[2]}"
            violates("LIFE-3", expected="NotRunningError", observed=observed, history=history)
        except Exception as exc:
            if name in _OWN_LANGUAGE:
                continue
            observed = raised(exc)
        wrong.append(f"{name}: {observed}")
    if wrong:
        found = "; ".join(wrong)
        violates("LIFE-3", expected="NotRunningError", observed=found, history=history)
    expect_equal("LIFE-3", "is_running()", False, machine.is_running(), history)


def _expect_nothing_changed(machine: RemoteMachine, applied: LogId, history: list[str]) -> None:
    """Look for traces of what was refused; that nothing is lost is LIFE-4."""
    __tracebackhide__ = True
    found, metadata = machine.last_applied(), machine.snapshot_metadata()
    is_later = found.index > applied.index
    if is_later or (metadata is not None and metadata.format == "refused/1"):
        violates(
            "LIFE-3",
            expected="what was refused has left no trace",
            observed=f"last_applied() {found}, snapshot_metadata() {metadata}",
            history=history,
        )


def a_stop_does_not_disturb_other_threads(trial: Trial) -> None:
    """Stop while threads read and flush: they get what is right or `NotRunningError`."""
    races = min(trial.effort.kills, _MAX_RACES)
    oracle = trial.oracle((races + 1) * CHUNK)
    with other_processes(trial) as nursery:
        machine = nursery.spawn(trial.directory())
        for number in range(races):
            machine.start()
            applied = machine.last_applied().index
            machine.apply_chunk(oracle.entries(applied + 1, applied + CHUNK))
            history = ["start()", "apply_chunk", "stop() while threads read"]
            _race(machine, history)
            trial.on_progress(number + 1, races)
    trial.evidence["races"] = races


def _race(machine: RemoteMachine, history: list[str]) -> None:
    __tracebackhide__ = True
    try:
        problems = machine.run(stop_while_others_read, list(KEYS[:3]))
    except ProcessDied as exc:
        observed = f"the interpreter died {exc.stderr}"
        violates("LIFE-3", expected="no crash", observed=observed, history=history)
    for name, expected, observed in problems:
        violates("LIFE-3", expected=f"{name}: {expected}", observed=observed, history=history)


# LIFE-5


def never_stopped_it_loses_nothing_flushed(trial: Trial) -> None:
    """End process after process without stop, by SIGKILL and as the interpreter ends."""
    trial.needs_survival()
    ends = max(2, trial.effort.kills // 2)
    oracle = log_of_many_terms(trial, ends * CHUNK, salt=5)
    directory = trial.directory()
    metadata: SnapshotMetadata | None = None
    with other_processes(trial) as nursery:
        for number in range(ends):
            how = "SIGKILL" if number % 2 else "end of the interpreter"
            machine = nursery.spawn(directory)
            machine.start()
            history = [f"after {number} processes that ended without stop()"]
            _expect_flushed(machine, oracle, number * CHUNK, metadata, history)
            index = (number + 1) * CHUNK
            machine.apply_chunk(oracle.entries(index - CHUNK + 1, index))
            metadata = metadata_at(oracle.id_at(index), "elsewhere/1", index)
            machine.persist_last_snapshot_metadata(metadata)
            machine.flush()
            _end(machine, how)
            trial.on_progress(number + 1, ends)
        machine = nursery.spawn(directory)
        machine.start()
        _expect_flushed(machine, oracle, ends * CHUNK, metadata, ["flush()", how])
    trial.evidence["processes"] = ends


def _end(machine: RemoteMachine, how: str) -> None:
    if how == "SIGKILL":
        machine.kill()
        return
    try:
        machine.run(exit_without_stop)
    except ProcessDied:
        machine.wait_until_dead()


def _expect_flushed(
    machine: StateMachine | RemoteMachine,
    oracle: Oracle,
    index: int,
    metadata: SnapshotMetadata | None,
    history: list[str],
) -> None:
    __tracebackhide__ = True
    oracle.check_state("LIFE-5", machine, index=index, history=history)
    expect_terms("LIFE-5", machine, oracle, history=history)
    observed = machine.snapshot_metadata()
    expect_equal("LIFE-5", "snapshot_metadata()", metadata, observed, history)


def dropped_objects_break_nothing(trial: Trial) -> None:
    """Drop machines without stop, and old objects beside a new one, then kill the process."""
    trial.needs_survival()
    oracle = trial.oracle(3 * CHUNK)
    chunks = [oracle.entries(first, first + CHUNK - 1) for first in (1, CHUNK + 1, 2 * CHUNK + 1)]
    with other_processes(trial) as nursery:
        for what, function in {
            "drop a running machine, go on with another": drop_running_machine,
            "stop a machine, go on with another, drop the first": drop_stopped_machine,
        }.items():
            directory = trial.directory()
            host = nursery.spawn(trial.directory("unused"))
            maker = _maker_text(trial)
            index = host.run(function, maker, directory, chunks)
            host.kill()
            history = [what, f"apply and flush up to {span(oracle.entries(1, index))}", "SIGKILL"]
            _expect_found(nursery, directory, oracle, index, history)


def _maker_text(trial: Trial) -> str:
    assert trial.subject.maker is not None
    return trial.subject.maker.to_json()


def _expect_found(
    nursery: Nursery, directory: Path, oracle: Oracle, index: int, history: list[str]
) -> None:
    __tracebackhide__ = True
    machine = nursery.spawn(directory)
    try:
        machine.start()
    except Exception as exc:
        violates("LIFE-5", expected="start()", observed=raised(exc), history=history)
    oracle.check_state("LIFE-5", machine, index=index, history=history)
    machine.kill()


CHECKS = (
    Check("LIFE-3", every_method_refuses_while_stopped),
    Check("LIFE-3", a_stop_does_not_disturb_other_threads),
    Check("LIFE-5", never_stopped_it_loses_nothing_flushed, Profile.QUICK),
    Check("LIFE-5", dropped_objects_break_nothing),
)
