"""Checks that a replica cannot differ from another, nor look at what differs (DET-1, DET-2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.apply import SIZES, commands_of, short_or_long
from dengine_sm.conformance.follower import Follower, chunk_ends
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS
from dengine_sm.model import Entry, Outcome, SnapshotMetadata
from dengine_sm.snapshot import PORTABLE_FORMAT

_YEAR_S = 365 * 24 * 3600


@attrs.frozen
class _Setting:
    """Where and how one replica applies the log."""

    name: str
    environment: Mapping[str, str]
    sizes: tuple[int, ...]
    clock: tuple[int, int] | None = None
    """Arguments of `shift_clock`."""
    pause: str = ""
    """What happens at some places of the log: `restart`, `snapshot` or `install`."""


def _settings(seed: int) -> tuple[_Setting, ...]:
    def environment(number: int, zone: str, locale: str) -> dict[str, str]:
        hash_seed = str((seed * 4 + number) % 2**32)
        return {"PYTHONHASHSEED": hash_seed, "TZ": zone, "LC_ALL": locale, "LANG": locale}

    return (
        _Setting("in UTC", environment(0, "UTC", "C"), (7,)),
        _Setting(
            "in Kiritimati, entry by entry, with restarts",
            environment(1, "Pacific/Kiritimati", "tr_TR.UTF-8"),
            (1,),
            pause="restart",
        ),
        _Setting(
            "in Saint John's, ten years ahead, with snapshots",
            environment(2, "America/St_Johns", "de_DE.UTF-8"),
            (13, 2),
            clock=(10 * _YEAR_S, 3600),
            pause="snapshot",
        ),
        _Setting(
            "in Tokyo, thirty years behind, moved by snapshots",
            environment(3, "Asia/Tokyo", "ja_JP.UTF-8"),
            (4, 60),
            clock=(-30 * _YEAR_S, -1800),
            pause="install",
        ),
    )


@attrs.define
class _Replica:
    """One machine, and all that it answered."""

    trial: Trial
    setting: _Setting
    nursery: Nursery
    machine: RemoteMachine
    results: dict[int, tuple[Outcome, bytes | None]] = attrs.field(factory=dict)
    states: dict[int, Any] = attrs.field(factory=dict)
    history: list[str] = attrs.field(factory=list)

    def run(self, log: Sequence[Entry], looks: Sequence[int]) -> None:
        """Apply the log; look at the state, and pause, at some indices."""
        for last in looks:
            self._apply(log, last)
            self._look(last)
            if last != looks[-1]:
                self._pause()
                # A TRANSIENT machine begins again; its answers must be the same again.
                self._apply(log, last)
                self._look(last)

    def _apply(self, log: Sequence[Entry], last: int) -> None:
        first = self.machine.last_applied().index
        for end in chunk_ends(last, self.setting.sizes, start=first):
            for result in self.machine.apply_chunk(log[first:end]):
                answer = result.outcome, result.value
                known = self.results.setdefault(result.index, answer)
                what = f"result of entry {result.index}, applied again from the start"
                expect_equal("DET-1", what, known, answer, self.history)
            first = end
        self.history.append(f"applied up to index {last}, in chunks of {self.setting.sizes}")

    def _look(self, index: int) -> None:
        workload = self.trial.subject.workload
        at_once = workload.observe_at_once(self.machine)
        state = (
            workload.observe(self.machine),
            at_once and at_once[0],
            self.machine.len(),
        )
        known = self.states.setdefault(index, state)
        what = f"state, state at once and len() at index {index}, {self.setting.pause or 'again'}"
        expect_equal("DET-1", what, known, state, self.history)

    def _pause(self) -> None:
        if self.setting.pause == "restart":
            self.history += ["stop()", "start()"]
            self.machine.stop()
            self.machine.start()
        elif self.setting.pause:
            metadata, directory = self.snapshot()
            if self.setting.pause == "install":
                self.machine.kill()
                self.machine = _spawn(self.trial, self.nursery, self.setting)
                self.history.append("install it in a new machine")
                self.machine.apply_snapshot_from_file(metadata, directory)

    def snapshot(self) -> tuple[SnapshotMetadata, Path]:
        """Write a snapshot of the present state."""
        directory = self.trial.directory("snapshot") / "data"
        place = self.machine.last_applied()
        self.history.append(f"generate_snapshot_data at {place}")
        self.machine.generate_snapshot_data(directory, place)
        return self.machine.snapshot_metadata(), directory


def _spawn(trial: Trial, nursery: Nursery, setting: _Setting) -> RemoteMachine:
    shifts = [("shift_clock", *setting.clock)] if setting.clock else []
    machine = nursery.spawn(trial.directory(), *shifts)
    machine.start()
    return machine


def replicas_agree(trial: Trial) -> None:
    """Applies one log under other hash seeds, zones, locales, clocks, cuts, restarts, snapshots."""
    trial.needs_maker()
    assert trial.subject.maker is not None
    count = trial.effort.entries * 2
    log = trial.oracle(count, salt=20).log
    looks = [count // 3, count // 2, count - 5, count]
    first: tuple[_Replica, dict[str, bytes]] | None = None
    settings = _settings(trial.seed)
    for number, setting in enumerate(settings):
        with Nursery(trial.subject.maker, setting.environment) as nursery:
            replica = _Replica(trial, setting, nursery, _spawn(trial, nursery, setting))
            replica.run(log, looks)
            found = replica, _portable_files(*replica.snapshot())
            first = first or found
            _compare(*first, *found)
        trial.on_progress(number + 1, len(settings))
    trial.evidence |= {"replicas": len(settings), "entries": count}


def _portable_files(metadata: SnapshotMetadata | None, directory: Path) -> dict[str, bytes]:
    """Return the files of a portable snapshot; none of any other format."""
    if metadata is None or metadata.format != PORTABLE_FORMAT:
        return {}
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _compare(
    one: _Replica, files: dict[str, bytes], other: _Replica, other_files: dict[str, bytes]
) -> None:
    __tracebackhide__ = True
    names = f"{one.setting.name!r} and {other.setting.name!r}"
    history = [*other.history[-12:], f"compared: {names}"]
    for index, result in one.results.items():
        what = f"result of entry {index}"
        expect_equal("DET-1", what, result, other.results[index], history)
    for index, state in one.states.items():
        what = f"state at index {index}"
        expect_equal("DET-1", what, state, other.states[index], history)
    if files != other_files:
        same = files.keys() & other_files.keys()
        wrong = sorted(files.keys() ^ other_files.keys()) or sorted(
            name for name in same if files[name] != other_files[name]
        )
        violates(
            "SNAP-11",
            expected=f"equal bytes of format {PORTABLE_FORMAT} for equal states",
            observed=f"other bytes in {wrong[:5]}",
            history=history,
        )


def _expect_nothing(trial: Trial, machine: RemoteMachine, call: str, *args: Any) -> None:
    """Call with the tripwires armed."""
    __tracebackhide__ = True
    machine.prepare("arm_tripwires")
    try:
        getattr(machine, call)(*args)
    finally:
        found = machine.prepare("disarm_tripwires")
    trial.evidence["calls watched"] = trial.evidence.get("calls watched", 0) + 1
    if found:
        places = [f"{what} at {file}:{line} in {name}" for what, file, line, name in found]
        violates(
            "DET-2",
            expected=f"no clock, randomness, environment or network in {call}",
            observed=places[0] if len(places) == 1 else f"{len(places)} looks: {places[0]}, ...",
            history=places,
        )


def applying_looks_at_the_log_alone(trial: Trial) -> None:
    """Applies with tripwires on clocks, randomness, environment and sockets."""
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle = trial.oracle(trial.effort.entries * 2, salt=21)
    with Nursery(trial.subject.maker) as nursery:
        machine = nursery.spawn(trial.directory(), ("set_tripwires",))
        machine.start()
        first = 0
        for last in chunk_ends(len(oracle.log), (1, 3, 20, 2)):
            again = min(first, last % 3)
            chunk = oracle.entries(first - again + 1, last)
            _expect_nothing(trial, machine, "apply_chunk", chunk)
            first = last
        oracle.check_state("DET-2", machine, index=first)


def installing_looks_at_the_snapshot_alone(trial: Trial) -> None:
    """Installs with the same tripwires, into an empty machine and over an older state."""
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle = trial.oracle(60, salt=22)
    with Nursery(trial.subject.maker) as nursery:
        source = nursery.spawn(trial.directory())
        source.start()
        source.apply_chunk(oracle.entries(1, 50))
        directory = trial.directory("snapshot") / "data"
        source.generate_snapshot_data(directory, oracle.id_at(50))
        metadata = source.snapshot_metadata()
        for before in (0, 20):
            target = nursery.spawn(trial.directory(), ("set_tripwires",))
            target.start()
            if before:
                target.apply_chunk(oracle.entries(1, before))
            _expect_nothing(trial, target, "apply_snapshot_from_file", metadata, directory)
            _expect_nothing(trial, target, "apply_chunk", oracle.entries(51, 60))
            oracle.check_state("DET-2", target, index=60)


def time_never_goes_back(trial: Trial) -> None:
    """Applies logs whose timestamps go far back; the model's clock stands still meanwhile."""
    jumps = st.sampled_from((0, 1, 30, 400, 6000, -1, -400, -6000, -FIRST_TIMESTAMP_MS))

    @trial.given(
        steps=short_or_long(trial, st.tuples(commands_of(trial), jumps), least=2),
        sizes=SIZES,
        restart=st.booleans(),
    )
    async def history(steps: list[tuple[bytes, int]], sizes: list[int], restart: bool) -> None:
        __tracebackhide__ = True
        log = []
        for index, (data, jump) in enumerate(steps, start=1):
            log.append(Entry(index, 1, FIRST_TIMESTAMP_MS + jump, data))
        follower = Follower(Oracle(trial.subject.workload, log), trial.open())
        half = len(log) // 2
        for last in chain(chunk_ends(half, sizes), chunk_ends(len(log), sizes, start=half)):
            await follower.follow("DET-2", last)
            follower.check("DET-2", f"timestamps {[entry.timestamp_ms for entry in log[:last]]}")
            if last == half and restart and not trial.subject.is_transient:
                follower.restart()

    trial.evidence["examples"] = trial.effort.examples


CHECKS = (
    Check("DET-1", replicas_agree, Profile.QUICK, also=("SNAP-11",)),
    Check("DET-2", time_never_goes_back),
    Check("DET-2", applying_looks_at_the_log_alone, Profile.QUICK),
    Check("DET-2", installing_looks_at_the_snapshot_alone),
)
