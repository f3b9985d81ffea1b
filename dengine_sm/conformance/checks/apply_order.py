"""Checks of what is delivered twice, too early or in a wrong order (APPLY-5, APPLY-6)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from hypothesis import strategies as st

from dengine_sm.conformance.checks.apply import SEEDS, SIZES, commands_of, short_or_long
from dengine_sm.conformance.follower import Follower, call_of, chunk_ends
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import violates
from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS, log_of
from dengine_sm.errors import LogGapError, LogOrderError
from dengine_sm.kv.commands import CompareAndSwap, Put, encode_command
from dengine_sm.model import Entry

_CENTURY_MS = 100 * 365 * 24 * 3600 * 1000


def altered(entries: Sequence[Entry], commands: Sequence[bytes], shift_ms: int) -> list[Entry]:
    """Return entries of the same ids with other data and other timestamps."""
    return [
        attrs.evolve(
            entry,
            data=commands[entry.index % len(commands)],
            timestamp_ms=max(0, entry.timestamp_ms + shift_ms),
        )
        for entry in entries
    ]


def duplicates_change_nothing(trial: Trial) -> None:
    """Delivers entries again with other content, alone and before new ones."""
    commands = commands_of(trial)

    @trial.given(
        commands=short_or_long(trial, commands, least=2),
        others=st.lists(commands, min_size=1, max_size=5),
        sizes=SIZES,
        again=st.integers(1, 9),
        shift_ms=st.sampled_from((0, -50, 50, _CENTURY_MS)),
        seed_=SEEDS,
    )
    async def history(
        commands: list[bytes],
        others: list[bytes],
        sizes: list[int],
        again: int,
        shift_ms: int,
        seed_: int,
    ) -> None:
        __tracebackhide__ = True
        oracle = Oracle(trial.subject.workload, log_of(commands, seed_))
        follower = Follower(oracle, trial.open())
        for last in chunk_ends(len(commands), sizes):
            old = altered(oracle.entries(1, follower.applied)[-again:], others, shift_ms)
            await _deliver_again(follower, old, others=True)
            await _deliver_again(follower, [*old, *follower.chunk_to(last)], others=True)

    trial.evidence["examples"] = trial.effort.examples


async def _deliver_again(follower: Follower, chunk: list[Entry], *, others: bool = False) -> None:
    __tracebackhide__ = True
    before = follower.applied
    what = call_of(chunk)
    if others and chunk and chunk[0].index <= before:
        last = min(before, chunk[-1].index)
        what += f", those of {chunk[0].index}..{last} delivered before with other content"
    results = await follower.deliver("APPLY-5", chunk, what)
    follower.oracle.check_results(
        "APPLY-5", chunk, results, applied=before, history=follower.history
    )
    follower.check("APPLY-5")


async def whole_log_again_changes_nothing(trial: Trial) -> None:
    """Delivers the whole log a second time, in other chunks; also after a restart."""
    oracle = trial.oracle(salt=5)
    follower = Follower(oracle, trial.open())
    await follower.follow_all("APPLY-5", (5,))
    others = [entry.data for entry in oracle.log[:7]]
    for number in range(1 if trial.subject.is_transient else 2):
        if number:
            follower.restart()
        for log in (oracle.log, altered(oracle.log, others, _CENTURY_MS)):
            for size in (1, 4, len(log)):
                for start in range(0, len(log), size):
                    chunk = log[start : start + size]
                    what = f"{call_of(chunk)}, all delivered before"
                    results = await follower.deliver("APPLY-5", chunk, what)
                    oracle.check_results(
                        "APPLY-5", chunk, results, applied=len(log), history=follower.history[-3:]
                    )
                follower.check("APPLY-5")
                follower.history.clear()


async def swaps_are_not_swapped_again(trial: Trial) -> None:
    """Delivers a swap again that did not match the first time and would match now."""
    trial.needs_key_value()
    key, a, b, x = b"key", b"a", b"b", b"x"
    commands = (Put(key, b), CompareAndSwap(key, a, x), CompareAndSwap(key, b, a))
    log = log_of([encode_command(command) for command in commands], 0)
    oracle = Oracle(trial.subject.workload, log)
    follower = Follower(oracle, trial.open())
    await follower.follow("APPLY-5", 3)
    for first in (2, 3, 1):
        await _deliver_again(follower, oracle.entries(first, 3))
        if follower.machine.get(key) != a:
            violates(
                "APPLY-5",
                expected=f"get({key!r}): {a!r}",
                observed=f"get({key!r}): {follower.machine.get(key)!r}",
                history=[*map(str, commands), *follower.history],
            )


async def duplicates_do_not_move_the_clock(trial: Trial) -> None:
    """Delivers duplicates stamped far ahead; a time to live ends when it would have."""
    trial.needs_key_value("times to live")
    t = FIRST_TIMESTAMP_MS
    put, nothing = encode_command(Put(b"a", b"1", 100)), b""
    steps = [(0, put), (0, nothing), (99, nothing), (100, nothing), (100, put), (199, nothing)]
    steps += [(200, nothing)]
    log = [Entry(i, 1, t + at_ms, data) for i, (at_ms, data) in enumerate(steps, start=1)]
    follower = Follower(Oracle(trial.subject.workload, log), trial.open())
    for last in range(1, len(log) + 1):
        await follower.follow("APPLY-5", last)
        follower.check("APPLY-5")
        old = altered(log[:last], [put, nothing], _CENTURY_MS)
        await _deliver_again(follower, old, others=True)


async def misplaced_entries_are_refused(trial: Trial) -> None:
    """Delivers every kind of gap and disorder; each raises, and the right chunk then works."""
    log = [attrs.evolve(entry, term=entry.term + 5) for entry in trial.oracle(30, salt=6).log]
    oracle = Oracle(trial.subject.workload, log)
    follower = Follower(oracle, trial.open())
    refused = 0
    for last in (3, 4, 15, 30):
        for what, chunk in _misplaced(follower).items():
            await _refuse(follower, what, chunk)
            refused += 1
        await follower.follow("APPLY-6", last)
        follower.check("APPLY-6")
    if not trial.subject.is_transient:
        for what, chunk in _misplaced(follower).items():
            await _refuse(follower, what, chunk)
        follower.restart()
        follower.check("APPLY-6", "after a restart")
    trial.evidence["refused"] = refused


def _misplaced(follower: Follower) -> dict[str, list[Entry]]:
    """Return chunks that must not be applied now; `n` is the applied index."""
    n = follower.applied
    term = follower.oracle.id_at(n).term if n else 0
    data = [entry.data for entry in follower.oracle.log if entry.data][:5] or [b""]

    def made(*places: tuple[int, int]) -> list[Entry]:
        return [
            Entry(n + ahead, term + later, FIRST_TIMESTAMP_MS + n, data[position % len(data)])
            for position, (ahead, later) in enumerate(places)
        ]

    cases = {
        "n+2": made((2, 1)),
        "n+1000": made((1000, 1)),
        "n+2, n+3": made((2, 1), (3, 1)),
        "n+1, n+3": made((1, 1), (3, 1)),
        "n+1, n+2, n+3, n+5, n+6": made((1, 1), (2, 1), (3, 1), (5, 1), (6, 1)),
        "n+1, n+1": made((1, 1), (1, 1)),
        "n+1, n+2, n+2, n+3": made((1, 1), (2, 1), (2, 1), (3, 1)),
        "n+2, n+1": made((2, 1), (1, 1)),
        "n+1, n+3, n+2": made((1, 1), (3, 1), (2, 1)),
        "n+1 with a higher term, n+2 with the old one": made((1, 3), (2, 2)),
        "n+1, n+2, n+3 with a lower term": made((1, 2), (2, 2), (3, 1)),
    }
    if n:
        cases["n, n+2"] = [follower.oracle.log[n - 1], *made((2, 1))]
        cases["n+1 with a lower term"] = made((1, -1))
        cases["n+1, n+2 with lower terms"] = made((1, -1), (2, -1))
        cases["n, n+1 with a lower term"] = [follower.oracle.log[n - 1], *made((1, -1))]
        # Some of the new entries are well-ordered, though not after what is applied.
        cases["n+1 with a lower term, n+2"] = made((1, -1), (2, 1))
    return cases


async def _refuse(follower: Follower, what: str, chunk: list[Entry]) -> None:
    __tracebackhide__ = True
    terms = ", ".join(str(entry.term) for entry in chunk)
    follower.history.append(
        f"apply_chunk([{what}]), n = {follower.applied}, terms {terms}: must be refused"
    )
    observed = "no exception"
    try:
        await follower.machine.apply_chunk(chunk)
    except (LogGapError, LogOrderError):
        observed = ""
    except Exception as exc:
        observed = f"{type(exc).__name__}: {exc}"
    if observed:
        violates(
            "APPLY-6",
            expected=f"LogGapError or LogOrderError for {what}",
            observed=observed,
            history=follower.history,
        )
    follower.check("APPLY-6", f"after {what}")
    del follower.history[-1]


CHECKS = (
    Check("APPLY-5", swaps_are_not_swapped_again, Profile.QUICK),
    Check("APPLY-5", duplicates_do_not_move_the_clock, Profile.QUICK),
    Check("APPLY-5", whole_log_again_changes_nothing, Profile.QUICK),
    Check("APPLY-5", duplicates_change_nothing),
    Check("APPLY-6", misplaced_entries_are_refused, Profile.QUICK),
)
