"""Checks of a machine's place in the log (LOG-1 to LOG-4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.life_parts import (
    CHUNK,
    NO_OP_EVERY,
    expect_terms,
    is_no_op,
    log_of_many_terms,
    metadata_at,
    other_processes,
)
from dengine_sm.conformance.checks.snapshot_parts import (
    Taken,
    expect_unchanged,
    raised,
    restart,
    sight_of,
    snapshot_at,
    snapshot_of,
    span,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import expect_equal, expect_true, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import LogOrderError
from dengine_sm.model import Entry, LogId, SnapshotMetadata

_ADVANCES = ("update_last_applied", "persist_last_applied")
_MAX_KILLS = 12

# LOG-1


async def no_advance_goes_back(trial: Trial) -> None:
    """Offer earlier ids after applies, advances, an install and a restart; all are refused."""
    oracle = log_of_many_terms(trial, 8 * NO_OP_EVERY)
    ahead = await snapshot_at(trial, oracle, 4 * NO_OP_EVERY)
    machine = trial.open()
    await apply_all(machine, oracle.entries(1, NO_OP_EVERY + 1))
    _expect_no_way_back(trial, machine, oracle, ["apply_chunk"])
    await apply_all(machine, oracle.entries(NO_OP_EVERY + 2, 2 * NO_OP_EVERY - 1))
    machine.update_last_applied(oracle.id_at(2 * NO_OP_EVERY))
    _expect_no_way_back(trial, machine, oracle, ["apply_chunk", "update_last_applied"])
    await machine.apply_snapshot_from_file(ahead.metadata, ahead.path)
    _expect_no_way_back(trial, machine, oracle, ["apply_snapshot_from_file"])
    if restart(trial, machine):
        _expect_no_way_back(trial, machine, oracle, ["stop", "start"])
    await apply_all(machine, oracle.entries(machine.last_applied().index + 1, len(oracle.log)))
    _expect_no_way_back(trial, machine, oracle, ["apply_chunk"])


def _expect_no_way_back(
    trial: Trial, machine: StateMachine, oracle: Oracle, history: list[str]
) -> None:
    __tracebackhide__ = True
    before = sight_of(trial, machine)
    now = before.last_applied
    for name in _ADVANCES:
        for lower in _lower_ids(oracle, now):
            call = f"{name}({lower}) at {now}"
            try:
                getattr(machine, name)(lower)
            except LogOrderError:
                pass
            except Exception as exc:
                violates("LOG-1", expected="LogOrderError", observed=raised(exc), history=history)
            else:
                observed = f"it is taken; last_applied() {machine.last_applied()}"
                violates(
                    "LOG-1", expected="LogOrderError", observed=observed, history=[*history, call]
                )
            expect_unchanged("LOG-1", trial, machine, before, call, history)
        getattr(machine, name)(now)
        expect_unchanged("LOG-1", trial, machine, before, f"{name} of the same id", history)


def _lower_ids(oracle: Oracle, now: LogId) -> Iterator[LogId]:
    yield oracle.id_at(now.index - 1)
    yield oracle.id_at(now.index // 2)
    yield LogId.ZERO
    if now.term > 1:
        yield LogId(now.term - 1, now.index)
        yield LogId(now.term - 1, now.index + 1)


async def applying_goes_on_after_an_advance(trial: Trial) -> None:
    """Skip entries that carry no command, one and several at once, and apply what follows."""
    oracle = log_of_many_terms(trial, 6 * NO_OP_EVERY, salt=1)
    single = len(oracle.log)
    oracle.extend(_idle_stretches(oracle))
    machine = trial.open()
    unseen: set[int] = set()
    applied = number = 0
    while applied < len(oracle.log):
        target = _last_no_op_from(oracle, applied + 1)
        if target > applied:
            name = _ADVANCES[number % 2]
            number += 1
            getattr(machine, name)(oracle.id_at(target))
            history = [f"{name}({oracle.id_at(target)}) at index {applied}"]
            unseen.update(range(applied + 1, target))
        else:
            target = applied + 1
            # The entry before it is a duplicate, also when it was skipped.
            chunk = oracle.entries(max(1, applied), target)
            results = await machine.apply_chunk(chunk)
            history = [f"apply_chunk({span(chunk)}) at index {applied}"]
            oracle.check_results("LOG-1", chunk, results, applied=applied, history=history)
        applied = target
        oracle.check_state("LOG-1", machine, index=applied, history=history)
        expect_terms("LOG-2", machine, oracle, unseen=unseen, history=history)
    trial.evidence.update(skipped_at_once=[1, 3, 4], entries=single)


def _idle_stretches(oracle: Oracle) -> list[Entry]:
    """Return three and four entries without a command, the term rising inside, one after each."""
    command, no_op = oracle.log[0], oracle.log[NO_OP_EVERY - 1]
    entries: list[Entry] = []
    for data_of in (command, no_op, no_op, no_op, command, no_op, no_op, no_op, no_op, command):
        index, term = oracle.last.index + len(entries) + 1, oracle.last.term + len(entries) // 3
        stamp_ms = no_op.timestamp_ms if data_of is no_op else oracle.log[-2].timestamp_ms
        entries.append(Entry(index, term, stamp_ms, data_of.data))
    return entries


def _last_no_op_from(oracle: Oracle, index: int) -> int:
    """Return the last index of the run of entries without a command that begins there."""
    while index <= len(oracle.log) and oracle.log[index - 1].timestamp_ms == 0:
        index += 1
    return index - 1


def the_applied_id_only_rises(trial: Trial) -> None:
    """Do what a node may do, in any order; the applied id is never lower than before."""
    oracle = log_of_many_terms(trial, _AHEAD + 8 * 7, salt=2)
    ahead = trial.run(snapshot_at(trial, oracle, _AHEAD))
    doings = st.tuples(st.sampled_from(sorted(_DOINGS)), st.integers(1, 6))

    @trial.given(plan=st.lists(doings, max_size=8))
    async def rises(plan: list[tuple[str, int]]) -> None:
        scene = _Scene(trial, oracle, ahead, trial.open())
        before = LogId.ZERO
        history: list[str] = []
        for name, number in plan:
            history.append(f"{name} {number}")
            await _DOINGS[name](scene, number)
            now = scene.machine.last_applied()
            is_kept = now >= before and now.index >= before.index
            expected = f"last_applied() at least {before}"
            expect_true("LOG-1", expected, now, holds=is_kept, history=history)
            before = now
        oracle.check_state("LOG-1", scene.machine, history=history)


_AHEAD = 20


@attrs.frozen
class _Scene:
    trial: Trial
    oracle: Oracle
    ahead: Taken
    machine: StateMachine

    @property
    def applied(self) -> int:
        return self.machine.last_applied().index


async def _apply(scene: _Scene, number: int) -> None:
    """Apply entries, some of them once more."""
    first = max(1, scene.applied + 1 - number % 3)
    await scene.machine.apply_chunk(scene.oracle.entries(first, scene.applied + number))


async def _apply_again(scene: _Scene, number: int) -> None:
    """Apply the whole log so far once more."""
    if scene.applied:
        await scene.machine.apply_chunk(scene.oracle.entries(1, max(1, scene.applied - number)))


async def _skip(scene: _Scene, number: int) -> None:
    """Advance past the next entry without a command."""
    target = scene.applied + 1
    while not is_no_op(target):
        target += 1
    await apply_all(scene.machine, scene.oracle.entries(scene.applied + 1, target - 1))
    getattr(scene.machine, _ADVANCES[number % 2])(scene.oracle.id_at(target))


async def _stay(scene: _Scene, number: int) -> None:
    """Advance to the id that is applied already."""
    if scene.applied:
        getattr(scene.machine, _ADVANCES[number % 2])(scene.machine.last_applied())


async def _save(scene: _Scene, number: int) -> None:
    """Make everything durable."""
    scene.machine.flush() if number % 2 else scene.machine.save_hard_state()


async def _install_own(scene: _Scene, _number: int) -> None:
    """Write a snapshot and install it, at exactly the applied id."""
    if scene.applied:
        taken = await snapshot_of(scene.trial, scene.machine)
        await scene.machine.apply_snapshot_from_file(taken.metadata, taken.path)


async def _install_ahead(scene: _Scene, _number: int) -> None:
    """Install a snapshot that is ahead, if it is."""
    if scene.applied < _AHEAD:
        await scene.machine.apply_snapshot_from_file(scene.ahead.metadata, scene.ahead.path)


async def _restart(scene: _Scene, _number: int) -> None:
    """Stop and start, unless that loses everything."""
    restart(scene.trial, scene.machine)


_DOINGS: dict[str, Callable[[_Scene, int], Awaitable[None]]] = {
    "apply_chunk": _apply,
    "apply_chunk again": _apply_again,
    "skip": _skip,
    "stay": _stay,
    "save": _save,
    "install its own snapshot": _install_own,
    "install a later snapshot": _install_ahead,
    "restart": _restart,
}


# LOG-2


async def terms_are_exact_for_every_index(trial: Trial) -> None:
    """Ask for the term of every index after every chunk, snapshots and restarts in between."""
    oracle = log_of_many_terms(trial, trial.effort.entries // 2, salt=3)
    machine = trial.open()
    applied = number = 0
    while applied < len(oracle.log):
        chunk = oracle.entries(applied + 1, applied + 1 + number * 3 % 7)
        await machine.apply_chunk(chunk)
        history = [f"apply_chunk({span(chunk)})"]
        if number % 4 == 1:
            await snapshot_of(trial, machine)
            history.append("generate_snapshot_data")
        if number % 4 == 2:
            machine.persist_last_snapshot_metadata(_some_metadata(machine))
            history.append("persist_last_snapshot_metadata")
        if number % 4 == 3 and restart(trial, machine):
            history += ["stop()", "start()"]
        expect_terms("LOG-2", machine, oracle, history=history)
        applied, number = chunk[-1].index, number + 1
        trial.on_progress(applied, len(oracle.log))


def _some_metadata(machine: StateMachine) -> SnapshotMetadata:
    metadata = machine.snapshot_metadata()
    format_name = metadata.format if metadata else "elsewhere/1"
    return metadata_at(machine.last_applied(), format_name, machine.last_applied().index)


async def an_install_begins_the_terms_anew(trial: Trial) -> None:
    """Install over nothing and over another history; below the snapshot no term is known."""
    oracle = log_of_many_terms(trial, 8 * CHUNK, salt=6)
    label = 4 * CHUNK
    taken = await snapshot_at(trial, oracle, label)
    for before in (0, CHUNK, label - 1):
        machine = trial.open()
        await apply_all(machine, oracle.entries(1, before))
        await machine.apply_snapshot_from_file(taken.metadata, taken.path)
        history = [f"apply up to {before}", f"install a snapshot of index {label}"]
        expect_terms("LOG-2", machine, oracle, known_from=label, history=history)
        await apply_all(machine, oracle.entries(label + 1, 6 * CHUNK))
        history.append(f"apply up to {6 * CHUNK}")
        expect_terms("LOG-2", machine, oracle, known_from=label, history=history)
        if restart(trial, machine):
            history += ["stop()", "start()"]
            expect_terms("LOG-2", machine, oracle, known_from=label, history=history)
        await apply_all(machine, oracle.entries(6 * CHUNK + 1, 8 * CHUNK))
        expect_terms("LOG-2", machine, oracle, known_from=label, history=[*history, "apply"])
        machine.stop()


# LOG-3, LOG-4


def a_persisted_id_survives_a_kill(trial: Trial) -> None:
    """Kill right after persist_last_applied returned, past entries and at the applied id."""
    trial.needs_survival()
    oracle = log_of_many_terms(trial, _kills(trial) * NO_OP_EVERY, salt=7)
    with other_processes(trial) as nursery:
        _kill_again_and_again(trial, nursery, oracle, "LOG-3", _persist)


def hard_state_survives_a_kill(trial: Trial) -> None:
    """Kill right after save_hard_state returned, whatever was changed last."""
    trial.needs_survival()
    oracle = log_of_many_terms(trial, _kills(trial) * NO_OP_EVERY, salt=8)
    with other_processes(trial) as nursery:
        _kill_again_and_again(trial, nursery, oracle, "LOG-4", _save_hard_state)


def _kills(trial: Trial) -> int:
    return min(max(4, trial.effort.kills), _MAX_KILLS)


_Left = tuple[int, SnapshotMetadata | None, list[str]]
"""Applied index and metadata, and how the machine came there."""
_Promise = Callable[[RemoteMachine, Oracle, int, int, SnapshotMetadata | None], _Left]
"""Changes a machine that is at the index before one without a command, given its number."""


def _kill_again_and_again(
    trial: Trial, nursery: Nursery, oracle: Oracle, clause: str, promise: _Promise
) -> None:
    __tracebackhide__ = True
    directory = trial.directory()
    kills = _kills(trial)
    metadata: SnapshotMetadata | None = None
    machine = nursery.spawn(directory)
    machine.start()
    for number in range(kills):
        upto = (number + 1) * NO_OP_EVERY - 1
        for entry in oracle.entries(machine.last_applied().index + 1, upto):
            machine.apply_chunk([entry])
        index, metadata, history = promise(machine, oracle, upto, number, metadata)
        machine.kill()
        machine = nursery.spawn(directory)
        machine.start()
        history = [f"apply up to {upto}", *history, "SIGKILL", "start()"]
        oracle.check_state(clause, machine, index=index, history=history)
        expect_terms(clause, machine, oracle, history=history)
        if clause == "LOG-4":
            observed = machine.snapshot_metadata()
            expect_equal(clause, "snapshot_metadata()", metadata, observed, history)
        trial.on_progress(number + 1, kills)
    trial.evidence["kills"] = kills


def _persist(
    machine: RemoteMachine, oracle: Oracle, upto: int, number: int, now: SnapshotMetadata | None
) -> _Left:
    target = oracle.id_at(upto + (number % 3 > 0))
    if number % 3 == 2:
        machine.update_last_applied(target)
    machine.persist_last_applied(target)
    return target.index, now, [f"persist_last_applied({target})"]


def _save_hard_state(
    machine: RemoteMachine, oracle: Oracle, upto: int, number: int, now: SnapshotMetadata | None
) -> _Left:
    history = []
    if number % 3 != 1:
        now = metadata_at(oracle.id_at(upto), "elsewhere/1", upto)
        machine.update_last_snapshot_metadata(now)
        history.append(f"update_last_snapshot_metadata({now.last_included})")
    target = oracle.id_at(upto + number % 2)
    if number % 2:
        machine.update_last_applied(target)
        history.append(f"update_last_applied({target})")
    machine.save_hard_state()
    return target.index, now, [*history, "save_hard_state()"]


CHECKS = (
    Check("LOG-1", no_advance_goes_back, Profile.QUICK),
    Check("LOG-1", applying_goes_on_after_an_advance, Profile.QUICK, also=("LOG-2",)),
    Check("LOG-1", the_applied_id_only_rises),
    Check("LOG-2", terms_are_exact_for_every_index, Profile.QUICK),
    Check("LOG-2", an_install_begins_the_terms_anew, Profile.QUICK),
    Check("LOG-3", a_persisted_id_survives_a_kill, Profile.QUICK),
    Check("LOG-4", hard_state_survives_a_kill, Profile.QUICK),
)
