"""Checks that sessions depend on the log alone (DET-1, SNAP-9); for the command set `kv/1`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.apply import short_or_long
from dengine_sm.conformance.checks.disturbances import EVENTS, disturb
from dengine_sm.conformance.checks.key_value_hand import entries_of
from dengine_sm.conformance.follower import Follower, chunk_ends
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.kv.commands import (
    Change,
    Command,
    CompareAndSwap,
    Delete,
    InSession,
    OpenSession,
    Put,
)
from dengine_sm.model import Limits

_FIRST, _SECOND = 1, 4
"""Indices in `_STORY` that open a session."""
_TAKEN, _FREE = CompareAndSwap(b"a", None, b"2"), CompareAndSwap(b"b", None, b"1")
_STORY: tuple[Command, ...] = (
    OpenSession(),
    InSession(_FIRST, 1, Put(b"a", b"1")),
    InSession(_FIRST, 2, _TAKEN),
    OpenSession(),
    InSession(_SECOND, 1, _FREE),
    InSession(_SECOND, 1, _FREE),
    Delete(b"a"),
    # What was rejected stays rejected, although it would fit now.
    InSession(_FIRST, 2, _TAKEN),
    InSession(_FIRST, 1, Put(b"a", b"1")),
    InSession(_FIRST, 40, _TAKEN),
    Delete(b"a"),
    InSession(_FIRST, 40, _TAKEN),
    InSession(_FIRST, 40, Put(b"a", b"another command")),
    InSession(_SECOND, 1, _FREE),
    InSession(_SECOND, 2, Put(b"c", b"1", 0)),
    InSession(_SECOND, 2, Put(b"c", b"1")),
    InSession(_SECOND, (1 << 64) - 1, Put(b"c", b"2", 2)),
    InSession(_SECOND, (1 << 64) - 1, Put(b"c", b"2", 2)),
    Put(b"x", b""),
    InSession(_SECOND, (1 << 64) - 2, Put(b"c", b"3")),
    InSession(2, 1, Put(b"a", b"in no session")),
    InSession((1 << 64) - 1, 1, Put(b"a", b"in no session")),
)


async def a_sequence_is_executed_once(trial: Trial) -> None:
    """Repeats commands of sessions, at once and later, in one chunk and in many."""
    trial.needs_key_value("sessions")
    oracle = Oracle(trial.subject.workload, entries_of(_STORY))
    for sizes in ([1], [2], [3, 1], [len(_STORY)]):
        follower = Follower(oracle, trial.open())
        await follower.follow_all("DET-1", sizes)
        follower.check("DET-1")
        trial.stop_all()


async def sessions_move_with_snapshots(trial: Trial) -> None:
    """Snapshots at every entry, installed elsewhere: repetitions are still no news."""
    trial.needs_key_value("sessions")
    oracle = Oracle(trial.subject.workload, entries_of(_STORY))
    for label in range(1, len(_STORY)):
        follower = Follower(oracle, trial.open())
        await follower.follow_all("SNAP-9", [len(_STORY)], to=label)
        await disturb("SNAP-9", trial, follower, "install")
        await follower.follow_all("SNAP-9", [1])
        follower.check("SNAP-9")
        trial.stop_all()


async def what_happens_in_between_keeps_sessions(trial: Trial) -> None:
    """Restarts or replays between the first time and the repetition."""
    trial.needs_key_value("sessions")
    oracle = Oracle(trial.subject.workload, entries_of(_STORY))
    for event in ("restart", "replay"):
        follower = Follower(oracle, trial.open())
        for last in chunk_ends(len(_STORY), [1]):
            await follower.follow("DET-1", last)
            await disturb("DET-1", trial, follower, event)
        trial.stop_all()


async def the_session_unused_for_longest_goes_first(trial: Trial) -> None:
    """Opens more sessions than a state holds; who goes is the same after a restart or install."""
    trial.needs_key_value("sessions")
    limits = trial.subject.limits or Limits()
    oracle = Oracle(trial.subject.workload, entries_of(_crowd(limits.max_sessions)))
    full = limits.max_sessions + 2
    for event in ("", *EVENTS):
        follower = Follower(oracle, trial.open())
        await follower.follow_all("DET-1", [500], to=full)
        await disturb("DET-1", trial, follower, event)
        await follower.follow_all("DET-1", [3])
        await disturb("DET-1", trial, follower, event)
        trial.stop_all()
    trial.evidence["sessions"] = limits.max_sessions


def _crowd(most: int) -> Sequence[Command]:
    """Return as many sessions as fit, two uses, some more sessions, and a try of each early one."""
    used = (1, min(3, most))
    commands: list[Command] = [OpenSession()] * most
    commands += [InSession(session_id, 1, Put(b"a", b"%d" % session_id)) for session_id in used]
    for session_id in range(1, 6):
        commands += [
            OpenSession(),
            # A repetition is no use.
            InSession(used[0], 1, Delete(b"a")),
            InSession(session_id, 2, Put(b"b", b"%d" % session_id)),
        ]
    return commands


@attrs.frozen
class _Step:
    """One entry, and what happens to the machine after it."""

    opens: bool
    session: int
    """Which of the sessions opened so far, from the newest."""
    ahead: int
    """How far its sequence is beyond the highest so far."""
    change: Change
    event: str


def _steps() -> st.SearchStrategy[_Step]:
    keys, values = st.sampled_from((b"a", b"b")), st.sampled_from((b"", b"1"))
    expected = st.none() | values
    changes = st.one_of(
        st.builds(CompareAndSwap, keys, expected, expected),
        st.builds(Put, keys, values, st.sampled_from((None, 2))),
        st.builds(Delete, keys),
    )
    opens = st.sampled_from((True, False, False, False))
    ahead = st.sampled_from((0, 0, 1, 1, 3, -1))
    events = st.sampled_from(("", "", "", *EVENTS))
    return st.builds(_Step, opens, st.integers(0, 3), ahead, changes, events)


def _commands(steps: Sequence[_Step]) -> Iterator[Command]:
    """Yield what the steps say, with the ids that the sessions will have."""
    opened: list[int] = []
    highest: dict[int, int] = {}
    for index, step in enumerate(steps, start=1):
        if step.opens or not opened:
            opened.append(index)
            yield OpenSession()
            continue
        session_id = opened[-1 - step.session % len(opened)]
        sequence = max(1, highest.get(session_id, 0) + step.ahead)
        highest[session_id] = max(sequence, highest.get(session_id, 0))
        yield InSession(session_id, sequence, step.change)


def sessions_survive_everything_exactly(trial: Trial) -> None:
    """Restarts, replays the log, moves to other machines by snapshot; nothing comes twice."""
    trial.needs_key_value("sessions")

    @trial.given(
        steps=short_or_long(trial, _steps(), least=3),
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    )
    async def history(steps: list[_Step], sizes: list[int]) -> None:
        __tracebackhide__ = True
        log = entries_of(list(_commands(steps)))
        follower = Follower(Oracle(trial.subject.workload, log), trial.open())
        for last in chunk_ends(len(log), sizes):
            await follower.follow("DET-1", last)
            await disturb("DET-1", trial, follower, steps[last - 1].event)

    trial.evidence["examples"] = trial.effort.examples


CHECKS = (
    Check("DET-1", a_sequence_is_executed_once, Profile.QUICK),
    Check("DET-1", what_happens_in_between_keeps_sessions, Profile.QUICK),
    Check("DET-1", the_session_unused_for_longest_goes_first),
    Check("DET-1", sessions_survive_everything_exactly),
    Check("SNAP-9", sessions_move_with_snapshots, Profile.QUICK),
)
