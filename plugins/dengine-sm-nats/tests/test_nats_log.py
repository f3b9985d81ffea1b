"""The log on a real server: order, indices, barriers, foreign messages, restarts, marks."""

from __future__ import annotations

import asyncio

import nats.errors
import pytest
from dengine_sm_nats import NatsLogOptions
from dengine_sm_nats.counting import UNREADABLE_COMMAND
from dengine_sm_nats.frames import MAGIC, Commands, encode_frame
from dengine_sm_nats.log import POSITIONS, NatsLog
from dengine_sm_nats.reader import Reader
from nats_testing import (
    Followed,
    followed_log,
    log_options,
    node_config,
    publish_raw,
    put,
    shape,
)

from dengine_sm import (
    CommitLogError,
    LogGapError,
    LogId,
    LogIdRange,
    NodeBuilder,
    NotRunningError,
    Outcome,
    ProposalOutcomeUnknown,
)


async def test_indices_count_commands_not_messages(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        ids = [await one.log.append([b"c"] * count) for count in (1, 3, 2)]

        assert [LogIdRange(1, 1, 1), LogIdRange(1, 2, 3), LogIdRange(1, 5, 2)] == ids
        assert LogId(1, 6) == one.log.last_log_id()


async def test_several_logs_see_the_same_entries_at_the_same_indices(tmp_path, server, stream):
    async with (
        followed_log(tmp_path, server, stream, "a") as a,
        followed_log(tmp_path, server, stream, "b") as b,
        followed_log(tmp_path, server, stream, "c") as c,
    ):
        groups = [
            followed.log.append(
                [b"%s%d-%d" % (name, number, part) for part in range(number % 4 + 1)]
            )
            for number in range(40)
            for name, followed in ((b"a", a), (b"b", b), (b"c", c))
        ]
        ids = await asyncio.gather(*groups)

        last = sum(one.count for one in ids)
        entries = [await followed.until(last) for followed in (a, b, c)]
        assert entries[0] == entries[1] == entries[2]
        assert list(range(1, last + 1)) == [entry.index for entry in entries[0]]
        times = [entry.timestamp_ms for entry in entries[0]]
        assert sorted(times) == times


async def test_every_append_is_told_the_indices_of_its_own_commands(tmp_path, server, stream):
    async with (
        followed_log(tmp_path, server, stream, "a") as a,
        followed_log(tmp_path, server, stream, "b") as b,
    ):
        payloads = [[b"%d/%d" % (n, part) for part in range(n % 3 + 1)] for n in range(100)]
        ids = await asyncio.gather(
            *((a, b)[n % 2].log.append(group) for n, group in enumerate(payloads))
        )

        entries = await a.until(max(one.last_index for one in ids))
        data = [entry.data for entry in entries]
        for one, group in zip(ids, payloads, strict=True):
            assert group == data[one.first_index - 1 : one.last_index]


async def test_awaited_appends_are_in_order(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        for number in range(50):
            assert number + 1 == (await one.log.append([b"%d" % number])).first_index

        entries = await one.until(50)
        assert [b"%d" % number for number in range(50)] == [entry.data for entry in entries]


async def test_an_append_stays_together_whoever_else_appends(tmp_path, server, stream):
    async with (
        followed_log(tmp_path, server, stream, "a") as a,
        followed_log(tmp_path, server, stream, "b") as b,
    ):
        groups = [[b"%d" % number] * 20 for number in range(60)]
        await asyncio.gather(*((a, b)[n % 2].log.append(group) for n, group in enumerate(groups)))

        entries = await b.until(1200)
        for start in range(0, 1200, 20):
            assert len({entry.data for entry in entries[start : start + 20]}) == 1


async def test_a_barrier_covers_what_another_node_was_acknowledged(tmp_path, server, stream):
    async with (
        followed_log(tmp_path, server, stream, "a") as a,
        followed_log(tmp_path, server, stream, "b") as b,
    ):
        for number in range(20):
            await a.log.append([b"%d" % number] * 3)
            assert await b.log.read_barrier() >= 3 * (number + 1)

        assert await a.log.read_barrier() == 60
        assert len(await b.until(60)) == 60


async def test_an_append_without_commands_is_refused(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        with pytest.raises(ValueError, match="at least one payload"):
            await one.log.append([])


FOREIGN = {
    "another program's": b"hello",
    "empty": b"",
    "looks like ours": MAGIC + b"\0\0\0\0garbage",
    "damaged": encode_frame(Commands(b"12345678", 1, 0, [b"a", b"b", b"c"]))[:-1] + b"x",
    "held up on its way": encode_frame(Commands(b"12345678", 1, 0, [put(b"a"), put(b"b")])),
}


@pytest.mark.parametrize("message", FOREIGN.values(), ids=FOREIGN)
async def test_what_is_none_of_ours_counts_as_one_rejected_entry_on_every_node(
    tmp_path, server, stream, message
):
    configs = [
        node_config(tmp_path, server, stream, node=name, backend=backend)
        for name, backend in (("a", "file"), ("b", "memory"))
    ]
    async with NodeBuilder(configs[0]).build() as a, NodeBuilder(configs[1]).build() as b:
        await a.propose(put(b"before"))
        await publish_raw(server, stream, [message] * 2)
        after = await b.propose(put(b"after"))

        assert (after.outcome, after.index) == (Outcome.APPLIED, 4)
        for node in (a, b):
            assert await node.read(b"after") == b"v"
            assert LogId(1, 4) == node.status().last_applied
        snapshots = [await node.take_snapshot() for node in (a, b)]
        assert snapshots[0] is not None and snapshots[0] == snapshots[1]
    async with followed_log(tmp_path, server, stream, "c") as c:
        entries = await c.until(4)
        assert [put(b"before"), UNREADABLE_COMMAND, UNREADABLE_COMMAND, put(b"after")] == [
            entry.data for entry in entries
        ]


async def test_commands_that_arrive_too_late_are_told_to_be_rejected(
    tmp_path, server, stream, monkeypatch
):
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"in time"])
        now_ms = one.log._clock.now_ms
        monkeypatch.setattr(one.log._clock, "now_ms", lambda: now_ms() - 61_000)
        with pytest.raises(CommitLogError, match=r"reached the log 61 s after they were sent"):
            await one.log.append([b"late"] * 3)

        assert [entry.data for entry in await one.until(2)] == [b"in time", UNREADABLE_COMMAND]


async def test_a_restart_counts_on_from_its_positions(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        for number in range(1, 30):
            await one.log.append([b"%d" % number] * number)
    before = shape(one.entries)
    async with followed_log(tmp_path, server, stream, first_index=300) as one:
        assert LogId(1, 435) == one.log.last_log_id()
        ids = await one.log.append([b"more"])

        assert ids.first_index == 436
        assert [*before[299:], (436, b"more")] == shape(await one.until(436))


async def test_positions_are_saved_on_the_way_and_counting_goes_on_from_each(
    tmp_path, server, stream
):
    async with followed_log(tmp_path, server, stream) as one:
        for _ in range(30):
            await asyncio.gather(*(one.log.append([b"x"] * (n % 3 + 1)) for n in range(100)))
        last = one.log.last_log_id().index
        # As after a kill: what was saved meanwhile, not what is saved at the end.
        saved = (tmp_path / "n0" / POSITIONS).read_bytes()
    (tmp_path / "n0" / POSITIONS).write_bytes(saved)
    async with followed_log(tmp_path, server, stream, first_index=last - 5) as one:
        assert 0 < one.log.last_log_id().index < last

        assert await one.log.read_barrier() == last
        assert [last - 5, last] == [(await one.until(last))[0].index, one.entries[-1].index]


async def test_reading_ends_when_it_is_cancelled_and_goes_on_where_it_is_resumed(
    tmp_path, server, stream
):
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"1", b"2", b"3"])
        await one.end()
        waiting = asyncio.create_task(one.log.append([b"4", b"5"]))
        resumed = Followed(one.log, 3)

        assert LogIdRange(1, 4, 2) == await waiting
        assert shape(await resumed.until(5)) == [(3, b"3"), (4, b"4"), (5, b"5")]
        assert await one.log.read_barrier() == 5
        await resumed.end()


async def test_a_follower_that_was_forgotten_does_not_disturb_the_next_one(
    tmp_path, server, stream
):
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"1"])
        await one.end()
        forgotten = one.log.follow(1)
        await anext(forgotten)
        resumed = Followed(one.log, 1)
        await resumed.until(1)
        appends = [asyncio.create_task(one.log.append([b"x"])) for _ in range(20)]
        await asyncio.sleep(0)
        await forgotten.aclose()

        assert set(range(2, 22)) == {(await append).first_index for append in appends}
        await resumed.end()


async def test_a_follower_ends_when_the_log_is_closed(tmp_path, server, stream):
    log = NatsLog(tmp_path / "a", NatsLogOptions(**log_options(server, stream, "a")))
    await log.open()
    followed = Followed(log)
    await log.append([b"x"])

    await log.close()

    async with asyncio.timeout(10):
        await followed.task
    assert followed.failure is None
    with pytest.raises(NotRunningError, match="closed; nothing was changed"):
        await log.append([b"y"])


async def test_closing_tells_the_appends_under_way_that_their_outcome_is_unknown(
    tmp_path, server, stream
):
    async with followed_log(tmp_path, server, stream) as one:
        acknowledged = [await one.log.append([b"sure"]) for _ in range(3)]
        await one.end()
        appends = [asyncio.create_task(one.log.append([b"maybe"])) for _ in range(50)]
        await asyncio.sleep(0)
        await one.log.close()

        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert {ProposalOutcomeUnknown} == {type(outcome) for outcome in outcomes}
    async with followed_log(tmp_path, server, stream) as one:
        last = await one.log.read_barrier()
        entries = await one.until(last) if last else []
        assert [entry.data for entry in entries[: len(acknowledged)]] == [b"sure"] * 3


async def test_closing_and_opening_again_is_idempotent(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.open()
        await one.log.append([b"x"])
        await one.end()
        await one.log.close()
        await one.log.close()
        await one.log.open()
        again = Followed(one.log)
        assert await one.log.read_barrier() == 1
        await again.end()


async def test_a_purge_beyond_what_was_read_is_refused(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"x"])

        with pytest.raises(CommitLogError, match="nothing was dropped"):
            await one.log.purge(LogId(1, 2))


async def test_reading_again_over_own_old_barriers_is_no_short_log(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        assert await one.log.read_barrier() == 0
        await one.log.append([b"1", b"2"])
        await one.end()
        resumed = Followed(one.log, 3)

        assert (await one.log.append([b"3"])).first_index == 3
        assert shape(await resumed.until(3)) == [(3, b"3")]
        await resumed.end()


async def test_a_log_that_ends_before_the_state_is_refused_at_the_barrier(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"1", b"2"])
    async with followed_log(tmp_path, server, stream, first_index=9) as one:
        await asyncio.sleep(0)  # the follower begins before the barrier, as in a node
        with pytest.raises(CommitLogError, match=r"is at index 8, but stream .* ends at 2"):
            await one.log.read_barrier()


@pytest.mark.parametrize("position", [0, -1], ids=["not recognisable", "damaged"])
async def test_a_message_that_arrives_damaged_is_read_from_another_copy(
    tmp_path, server, stream, monkeypatch, position
):
    async def deliver_damaged(self, msg):
        if msg.data:
            damaged = bytearray(msg.data)
            damaged[position] ^= 1
            msg.data = bytes(damaged)
        await deliver(self, msg)

    deliver = Reader._on_message
    monkeypatch.setattr(Reader, "_on_message", deliver_damaged)
    async with followed_log(tmp_path, server, stream) as one:
        assert LogIdRange(1, 1, 3) == await one.log.append([b"1", b"2", b"3"])
        assert shape(await one.until(3)) == [(1, b"1"), (2, b"2"), (3, b"3")]


async def test_an_unreadable_message_whose_copies_cannot_be_had_is_not_counted(
    tmp_path, server, stream, monkeypatch
):
    async def no_answer(*_, **__):
        raise nats.errors.TimeoutError

    monkeypatch.setattr("dengine_sm_nats.reader._RETRY_PAUSE_S", 0.001)
    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"1"])
        one.log._js.get_msg = no_answer
        await publish_raw(server, stream, [b"foreign"])

        with pytest.raises(LogGapError, match="0 of 16 times a server answered"):
            await one.until(2)
        assert LogId(1, 1) == one.log.last_log_id()
