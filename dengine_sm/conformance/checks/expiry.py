"""Checks that a time to live ends by the log alone (DET-3); for the command set `kv/1`."""

from __future__ import annotations

import asyncio

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.apply import short_or_long
from dengine_sm.conformance.checks.disturbances import EVENTS, disturb
from dengine_sm.conformance.follower import Follower, call_of, chunk_ends
from dengine_sm.conformance.key_value import KeyValueModel
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import expect_equal
from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Command, CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import Entry, Outcome

_KEYS = (b"a", b"b", b"c")
_TTLS_MS = (1, 2, 3, 10)
_IDLE_S = 0.03
"""What a timer of a few milliseconds needs to go off; a right machine has none."""
_MANY = 10_000


@attrs.define
class _Case:
    """Commands with timestamps, one entry a chunk unless told otherwise, and a model."""

    machine: StateMachine
    model: KeyValueModel
    history: list[str] = attrs.field(factory=list)
    index: int = 0

    def entry(self, at_ms: int, command: Command | None) -> Entry:
        """Return the next entry of the log."""
        self.index += 1
        return Entry(self.index, 1, at_ms, b"" if command is None else encode_command(command))

    async def apply(self, *steps: tuple[int, Command | None]) -> None:
        """Apply steps `(timestamp, command)` as one chunk; compare results and state."""
        __tracebackhide__ = True
        chunk = [self.entry(at_ms, command) for at_ms, command in steps]
        told = "; ".join(f"at {at_ms}: {command or 'no command'}" for at_ms, command in steps)
        self.history.append(f"{call_of(chunk)}: {told}")
        expected = [self.model.apply(entry)[0] for entry in chunk]
        observed = [result.outcome for result in await self.machine.apply_chunk(chunk)]
        expect_equal("DET-3", "outcomes", expected, observed, self.history)
        self.check()

    def check(self, what: str = "") -> None:
        """Compare every read with the model."""
        __tracebackhide__ = True
        machine, model, where = self.machine, self.model, f" {what}" if what else ""
        keys = sorted({*model.rows, *_KEYS})
        expected = {key: model.get(key) for key in keys}
        observed = {key: machine.get(key) for key in keys}
        expect_equal("DET-3", f"get of every key{where}", expected, observed, self.history)
        scan_prefix = getattr(machine, "scan_prefix", None)
        if scan_prefix is not None:
            rows = scan_prefix(b"").entries
            what = f"scan_prefix(b''){where}"
            expect_equal("DET-3", what, model.scan(), tuple(rows), self.history)
        get_multi = getattr(machine, "get_multi", None)
        if get_multi is not None:
            values = list(get_multi(keys))
            what = f"get_multi{where}"
            expect_equal("DET-3", what, list(expected.values()), values, self.history)
        expect_equal("DET-3", f"len(){where}", model.len(), machine.len(), self.history)


def _case(trial: Trial) -> _Case:
    trial.needs_key_value("times to live")
    model = trial.subject.workload.model()
    assert isinstance(model, KeyValueModel)
    return _Case(trial.open(), model)


async def keys_go_exactly_at_their_deadline(trial: Trial) -> None:
    """Steps over a deadline a millisecond at a time; reads and commands agree on both sides."""
    a, b = _KEYS[:2]
    probes: dict[str, Command] = {
        "swap for what it was": CompareAndSwap(a, b"1", b"2"),
        "swap for nothing": CompareAndSwap(a, None, b"2"),
        "swap to nothing": CompareAndSwap(a, b"1", None),
        "delete": Delete(a),
        "put": Put(a, b"2"),
    }
    t = FIRST_TIMESTAMP_MS
    for probe in probes.values():
        for at_ms in (t + 99, t + 100, t + 101):
            for in_one_chunk in (False, True):
                case = _case(trial)
                steps = [(t, Put(a, b"1", 100)), (t, Put(b, b"1")), (at_ms, None), (at_ms, probe)]
                for chunk in [steps] if in_one_chunk else [[step] for step in steps]:
                    await case.apply(*chunk)
                # Well past every deadline there was.
                await case.apply((t + 1000, None))
                trial.stop_all()


async def commands_set_and_clear_deadlines(trial: Trial) -> None:
    """Puts, swaps, deletes and renewals after a put with a time to live, and what then lives."""
    a = _KEYS[0]
    t = FIRST_TIMESTAMP_MS
    successors: tuple[tuple[Command, ...], ...] = (
        (Put(a, b"2"),),
        (Put(a, b"1"),),
        (CompareAndSwap(a, b"1", b"2"),),
        (CompareAndSwap(a, b"1", b"1"),),
        (CompareAndSwap(a, b"other", b"2"),),
        (Put(a, b"2", 500),),
        (Put(a, b"2", 10),),
        (Put(a, b"2", 0),),
        (Put(a, b"2", -1),),
        (Delete(a), Put(a, b"2")),
        (Delete(a), Put(a, b"2", 500)),
        (CompareAndSwap(a, b"1", None), CompareAndSwap(a, None, b"2")),
        (Put(a, b"2"), Put(a, b"3", 100)),
    )
    for after in successors:
        for in_one_chunk in (False, True):
            case = _case(trial)
            steps: list[tuple[int, Command | None]] = [(t, Put(a, b"1", 100))]
            steps += [(t + 50, command) for command in after]
            for chunk in [steps] if in_one_chunk else [[step] for step in steps]:
                await case.apply(*chunk)
            for at_ms in (59, 60, 99, 100, 149, 150, 549, 550, 10_000):
                await case.apply((t + at_ms, None))
            trial.stop_all()


async def no_clock_but_the_log_expires(trial: Trial) -> None:
    """Stamps entries long ago and far ahead, and waits: only the next entry's stamp counts."""
    a, b, c = _KEYS
    for t in (1, 1_000, FIRST_TIMESTAMP_MS, FIRST_TIMESTAMP_MS * 3):
        case = _case(trial)
        await case.apply((t, Put(a, b"1", 2)), (t, Put(b, b"1", 4000)), (t, Put(c, b"1", 4001)))
        await asyncio.sleep(_IDLE_S)
        case.check("after a while without entries")
        await case.apply((t + 1, Put(a, b"2")))
        await case.apply((t + 3999, None))
        await case.apply((t + 4000, None))
        await case.apply((t + 4001, CompareAndSwap(c, b"1", b"2")))
        trial.stop_all()


async def the_clock_of_the_log_stands_still_backwards(trial: Trial) -> None:
    """Lets timestamps fall: deadlines count from the largest so far, also after a restart."""
    a, b, c = _KEYS
    t = FIRST_TIMESTAMP_MS
    case = _case(trial)
    await case.apply((t, Put(a, b"1", 100)))
    await case.apply((t + 100, None), (0, CompareAndSwap(a, None, b"2")))
    if not trial.subject.is_transient:
        case.history += ["stop()", "start()"]
        case.machine.stop()
        case.machine.start()
        case.check("after a restart")
    await case.apply((t - 5000, Put(b, b"1", 50)), (t + 20, Put(c, b"1", 60)))
    for at_ms in (t + 149, t + 150, t + 120, t + 159, t + 160):
        await case.apply((at_ms, None))


async def what_happens_in_between_moves_no_deadline(trial: Trial) -> None:
    """Restarts, replays, or moves by snapshot, then only lets time pass over the deadlines."""
    trial.needs_key_value("times to live")
    t = FIRST_TIMESTAMP_MS
    a, b, c = _KEYS
    commands: list[tuple[int, Command | None]] = [
        (0, Put(a, b"1", 100)),
        (0, Put(b, b"", 1_000)),
        (0, Put(c, b"1", 150)),
        (50, Put(c, b"2")),
        (60, None),
        *((at_ms, None) for at_ms in (99, 100, 150, 999)),
        (1_000, CompareAndSwap(b, None, b"2")),
        (5_000, None),
    ]
    log = [
        Entry(i, 1, t + at_ms, encode_command(command) if command else b"")
        for i, (at_ms, command) in enumerate(commands, start=1)
    ]
    for event in EVENTS:
        for disturbed in (5, 6, 8):
            follower = Follower(Oracle(trial.subject.workload, log), trial.open())
            for last in range(1, len(log) + 1):
                await follower.follow("DET-3", last)
                follower.check("DET-3")
                if last == disturbed:
                    await disturb("DET-3", trial, follower, event)
            trial.stop_all()


@attrs.frozen
class _Step:
    """One entry, and what happens to the machine after it."""

    command: bytes
    jump_ms: int
    event: str


def _steps() -> st.SearchStrategy[_Step]:
    keys, values = st.sampled_from(_KEYS), st.sampled_from((b"", b"1"))
    expected = st.none() | values
    commands: st.SearchStrategy[Command] = st.one_of(
        st.builds(Put, keys, values, st.sampled_from(_TTLS_MS)),
        st.builds(Put, keys, values, st.sampled_from((None, *_TTLS_MS))),
        st.builds(CompareAndSwap, keys, expected, expected),
        st.builds(Delete, keys),
    )
    events = st.sampled_from(("", "", "", "", "", "", *EVENTS))
    data = commands.map(encode_command) | st.just(b"")
    return st.builds(_Step, data, st.sampled_from((0, 1, 2, 5, -3)), events)


def deadlines_survive_everything_exactly(trial: Trial) -> None:
    """Restarts, replays the log, moves to other machines by snapshot; deadlines stay exact."""
    trial.needs_key_value("times to live")

    @trial.given(
        steps=short_or_long(trial, _steps(), least=3),
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    )
    async def history(steps: list[_Step], sizes: list[int]) -> None:
        __tracebackhide__ = True
        log, now_ms = [], FIRST_TIMESTAMP_MS
        for index, step in enumerate(steps, start=1):
            now_ms += step.jump_ms
            log.append(Entry(index, 1, now_ms, step.command))
        follower = Follower(Oracle(trial.subject.workload, log), trial.open())
        for last in chunk_ends(len(log), sizes):
            await follower.follow("DET-3", last)
            follower.check("DET-3")
            await disturb("DET-3", trial, follower, steps[last - 1].event)

    trial.evidence["examples"] = trial.effort.examples


async def many_later_deadlines_starve_no_due_one(trial: Trial) -> None:
    """Sets 10,000 deadlines far ahead around a few near ones, which all go when they are due."""
    trial.needs_key_value("times to live")
    t = FIRST_TIMESTAMP_MS
    many = _MANY if trial.profile > Profile.QUICK else _MANY // 10
    due = 300
    # The due ones are neither first nor last, by key as by age.
    commands = [_later(number) for number in range(many // 2)]
    commands += [Put(b"n%05d" % number, b"due", 60) for number in range(due)]
    commands += [_later(number) for number in range(many // 2, many)]
    machine = trial.open()
    log = [Entry(i, 1, t, encode_command(command)) for i, command in enumerate(commands, start=1)]
    for start in range(0, len(log), 500):
        await machine.apply_chunk(log[start : start + 500])
    history = [f"{many} puts for a day, {due} puts for 60 ms, all at {t}"]
    index = len(log)
    for at_ms, left in ((t + 59, many + due), (t + 60, many), (t + 61, many)):
        index += 1
        history.append(f"no command at {at_ms}")
        await machine.apply_chunk([Entry(index, 1, at_ms, b"")])
        expect_equal("DET-3", "len()", left, machine.len(), history)
        gone = [machine.get(b"n%05d" % number) is None for number in range(due)]
        what = "how many of the keys that are due are gone"
        expect_equal("DET-3", what, many + due - left, sum(gone), history)
    (result,) = await machine.apply_chunk(
        [Entry(index + 1, 1, t, encode_command(CompareAndSwap(b"n00299", None, b"new")))]
    )
    expect_equal("DET-3", "outcome of a swap", Outcome.APPLIED, result.outcome, history)
    trial.evidence["deadlines"] = many + due


def _later(number: int) -> Put:
    key = b"%c%05d" % (b"az"[number % 2], number)
    return Put(key, b"later", 24 * 3600 * 1000 + number % 1000)


CHECKS = (
    Check("DET-3", keys_go_exactly_at_their_deadline, Profile.QUICK),
    Check("DET-3", commands_set_and_clear_deadlines, Profile.QUICK),
    Check("DET-3", no_clock_but_the_log_expires, Profile.QUICK),
    Check("DET-3", the_clock_of_the_log_stands_still_backwards, Profile.QUICK),
    Check("DET-3", what_happens_in_between_moves_no_deadline, Profile.QUICK),
    Check("DET-3", many_later_deadlines_starve_no_due_one, Profile.QUICK),
    Check("DET-3", deadlines_survive_everything_exactly),
)
