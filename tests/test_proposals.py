"""The tracker: every waiter gets exactly its results, however ranges and chunks fall."""

from __future__ import annotations

import asyncio
import random

from dengine_sm import ApplyResult, LogIdRange, Outcome
from dengine_sm.node.proposals import Block, ProposalTracker, Singles


async def test_results_meet_their_waiters_in_any_interleaving():
    loop = asyncio.get_running_loop()
    for seed in range(200):
        rng = random.Random(seed)
        tracker = ProposalTracker()
        total = rng.randint(1, 40)
        ranges, first = [], 1
        while first <= total:
            count = min(rng.randint(1, 12), total + 1 - first)
            if rng.random() < 0.5:
                waiter = Singles([loop.create_future() for _ in range(count)])
            else:
                waiter = Block(count, loop.create_future())
            ranges.append((LogIdRange(1, first, count), waiter))
            first += count
        waiting, next_range, applied = list(ranges), 0, 0
        begun = 0
        appends = []
        while waiting or applied < total:
            committed = waiting[0][0].first_index - 1 if waiting else total
            choice = rng.random()
            if begun < len(ranges) and choice < 0.4:
                appends.append(tracker.begin_append())
                begun += 1
            elif next_range < begun and choice < 0.7:
                ids, waiter = waiting.pop(0)
                tracker.end_append(appends[next_range], ids, waiter)
                next_range += 1
            else:
                # Applied may run ahead of `end_append`, but not of the append itself.
                limit = max(committed, sum(r[0].count for r in ranges[:begun]))
                stop = min(total, limit, applied + rng.randint(1, 9))
                if stop > applied:
                    indices = range(applied + 1, stop + 1)
                    tracker.applied(applied + 1, [ApplyResult(i, Outcome.APPLIED) for i in indices])
                    applied = stop
        for ids, waiter in ranges:
            expected = [
                ApplyResult(i, Outcome.APPLIED) for i in range(ids.first_index, ids.last_index + 1)
            ]
            if isinstance(waiter, Singles):
                assert [future.result() for future in waiter.futures] == expected
            else:
                assert waiter.future.result() == expected


async def test_failure_reaches_everybody_who_waits():
    loop = asyncio.get_running_loop()
    tracker = ProposalTracker()
    singles = Singles([loop.create_future(), loop.create_future()])
    block = Block(2, loop.create_future())
    for ids, waiter in ((LogIdRange(1, 1, 2), singles), (LogIdRange(1, 3, 2), block)):
        tracker.end_append(tracker.begin_append(), ids, waiter)
    tracker.applied(1, [ApplyResult(1, Outcome.APPLIED)])
    tracker.fail(RuntimeError("gone"))
    assert singles.futures[0].result().index == 1
    for future in (singles.futures[1], block.future):
        assert str(future.exception()) == "gone"


def results(first: int, last: int) -> list[ApplyResult]:
    return [ApplyResult(index, Outcome.APPLIED) for index in range(first, last + 1)]


async def test_appends_end_in_any_order():
    tracker = ProposalTracker()
    loop = asyncio.get_running_loop()
    first, second = Block(2, loop.create_future()), Block(2, loop.create_future())
    appends = [tracker.begin_append(), tracker.begin_append()]

    tracker.applied(1, results(1, 4))
    tracker.end_append(appends[1], LogIdRange(1, 3, 2), second)
    tracker.end_append(appends[0], LogIdRange(1, 1, 2), first)

    assert await first.future == results(1, 2)
    assert await second.future == results(3, 4)


async def test_results_are_forgotten_while_appends_overlap_without_end():
    tracker = ProposalTracker()
    append = tracker.begin_append()
    kept = []
    for index in range(1, 200):
        following = tracker.begin_append()
        tracker.applied(index, results(index, index))
        tracker.end_append(append)
        append = following
        kept.append(len(tracker._early))

    assert max(kept) <= 2


async def test_an_install_leaves_nobody_waiting():
    tracker = ProposalTracker()
    loop = asyncio.get_running_loop()
    before, after, behind = (Block(2, loop.create_future()) for _ in range(3))
    late = tracker.begin_append()
    tracker.end_append(tracker.begin_append(), LogIdRange(1, 1, 2), before)
    tracker.end_append(tracker.begin_append(), LogIdRange(1, 11, 2), behind)

    tracker.skipped(10, RuntimeError("installed"))
    tracker.end_append(late, LogIdRange(1, 3, 2), after)
    tracker.applied(11, results(11, 12))

    assert str(before.future.exception()) == "installed"
    assert str(after.future.exception()) == "installed"
    assert await behind.future == results(11, 12)
