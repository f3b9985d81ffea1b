import asyncio
import json
import re

import grpc
import pytest

from dengine_sm.client import Client
from dengine_sm.errors import (
    ClientError,
    CommitLogError,
    NotRunningError,
    ProposalOutcomeUnknown,
    StorageError,
)
from dengine_sm.kv.commands import CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import Outcome, ReadConsistency
from dengine_sm.server import NodeServer


@pytest.fixture
async def client(server):
    async with Client(server.address, client_id=7) as client:
        yield client


class NodeWith:
    """A node with some of its methods replaced; the rest is the node's own."""

    def __init__(self, node, **replaced):
        self._node = node
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._node, name)


def raises(exc):
    async def method(*_args, **_kwargs):
        raise exc

    return method


class TestKeysAndValues:
    async def test_puts_gets_and_deletes(self, client):
        await client.put(b"k", b"v")
        await client.put(b"empty", b"")

        assert await client.get(b"k") == b"v"
        await client.delete(b"k")
        await client.delete(b"k")
        assert await client.get_many([b"empty", b"k", b"empty"]) == [b"", None, b""]
        assert await client.get_many([]) == []

    @pytest.mark.parametrize("consistency", list(ReadConsistency))
    async def test_reads_with_either_consistency(self, node, client, consistency):
        await client.put(b"k", b"v")

        assert await client.get(b"k", consistency=consistency) == b"v"
        assert (await client.scan(consistency=consistency)).entries == ((b"k", b"v"),)

    async def test_passes_the_consistency_on(self, node):
        asked = []

        async def read_many(keys, *, consistency):
            asked.append(consistency)
            return await node.read_many(keys, consistency=consistency)

        async with (
            NodeServer(NodeWith(node, read_many=read_many)) as server,
            Client(server.address) as client,
        ):
            for consistency in ReadConsistency:
                await client.get(b"k", consistency=consistency)

        assert asked == list(ReadConsistency)

    @pytest.mark.parametrize("ttl_ms", [None, 1, 999, 1000, 1001, 60_000])
    async def test_a_time_to_live_arrives_as_it_was_given(self, node, ttl_ms):
        proposed = []

        async def propose(command):
            proposed.append(command)
            return await node.propose(command)

        async def propose_many(commands):
            proposed.extend(commands)
            return await node.propose_many(commands)

        async with (
            NodeServer(NodeWith(node, propose=propose, propose_many=propose_many)) as server,
            Client(server.address) as client,
        ):
            await client.put(b"k", b"v", ttl_ms)

        assert proposed == [encode_command(Put(b"k", b"v", ttl_ms))]

    @pytest.mark.parametrize("ttl_ms", [0, -5])
    async def test_a_time_to_live_below_one_is_refused(self, client, ttl_ms):
        with pytest.raises(ClientError, match=f"ttl_ms={ttl_ms} was rejected") as refusal:
            await client.put(b"k", b"v", ttl_ms)

        assert (refusal.value.code, refusal.value.outcome_known) == ("INVALID_REQUEST", True)
        assert await client.get(b"k") is None

    async def test_swaps(self, client):
        assert not await client.compare_and_swap(b"k", b"", b"1")
        assert await client.compare_and_swap(b"k", None, b"")
        assert not await client.compare_and_swap(b"k", None, b"1")
        assert await client.compare_and_swap(b"k", b"", b"1")
        assert not await client.compare_and_swap(b"k", b"2", None)
        assert await client.compare_and_swap(b"k", b"1", None)
        assert await client.get(b"k") is None

    async def test_one_of_many_racing_clients_wins_each_round(self, server):
        async def count_to(client, wins):
            while wins < 10:
                value = await client.get(b"n")
                if await client.compare_and_swap(b"n", value, b"%d" % (int(value or 0) + 1)):
                    wins += 1

        clients = [Client(server.address) for _ in range(5)]
        async with clients[0], clients[1], clients[2], clients[3], clients[4]:
            await asyncio.gather(*(count_to(client, 0) for client in clients))
            assert await clients[0].get(b"n") == b"50"


class TestScan:
    async def test_scans_at_one_point_in_time(self, client):
        for key in (b"b/2", b"a", b"b/1", b"b/3"):
            await client.put(key, key)

        result = await client.scan(b"b/", limit=2, start_after=b"b/1")

        assert result.entries == ((b"b/2", b"b/2"), (b"b/3", b"b/3"))
        assert result.last_applied.index == 4

    @pytest.mark.parametrize("page_entries", [1, 2, 3, 6, 7, 100])
    async def test_pages_are_the_whole_range_once(self, client, page_entries):
        expected = [(b"k%d" % i, b"v") for i in range(6)]
        await client.apply([encode_command(Put(k, v)) for k, v in expected])

        pages = [page async for page in client.scan_pages(b"k", page_entries=page_entries)]

        assert [entry for page in pages for entry in page.entries] == expected
        assert all(0 < len(page.entries) <= page_entries for page in pages)

    async def test_pages_go_on_where_a_message_was_full(self, client):
        for key in (b"a", b"b", b"c"):
            await client.put(key, b"v" * 600_000)

        keys = [[k for k, _ in page.entries] async for page in client.scan_pages()]

        assert keys == [[b"a"], [b"b"], [b"c"]]

    async def test_pages_get_past_an_entry_larger_than_a_message(self, node, client):
        for key in (b"a", b"b"):
            await node.propose(encode_command(Put(key, bytes(1_000_001))))

        keys = [[k for k, _ in page.entries] async for page in client.scan_pages()]

        assert keys == [[b"a"], [b"b"]]

    async def test_a_scan_that_does_not_fit_is_an_error_not_a_part(self, client):
        for key in (b"a", b"b"):
            await client.put(key, b"v" * 600_000)

        with pytest.raises(ClientError, match="only 1 entries of it do") as refusal:
            await client.scan()

        assert refusal.value.code == "RESOURCE_EXHAUSTED"


class TestNodeCalls:
    async def test_applies_commands_in_order(self, client):
        results = await client.apply(
            [encode_command(Put(b"k", b"v")), b"no command", encode_command(Delete(b"k"))]
        )

        assert [r.index for r in results] == [1, 2, 3]
        assert [r.outcome for r in results] == [Outcome.APPLIED, Outcome.REJECTED, Outcome.APPLIED]
        assert await client.apply([]) == []

    async def test_tells_the_status_in_values_that_json_knows(self, client):
        await client.put(b"k", b"v")
        metadata = await client.take_snapshot()

        status = await client.status()

        assert json.loads(json.dumps(status)) == status
        assert status["last_applied"]["index"] == status["commit_index"] == 1
        assert (status["running"], status["entries"], status["failure"]) == (True, 1, None)
        assert metadata is not None
        assert status["snapshot"] == {
            "last_included": {"term": metadata.last_included.term, "index": 1},
            "checksum": metadata.checksum.hex(),
            "format": metadata.format,
        }


class TestSessions:
    async def test_a_lost_answer_executes_nothing_twice(self, node):
        lost = iter([False, True, True, False])

        async def propose_many(commands):
            results = await node.propose_many(commands)
            if next(lost):
                raise ProposalOutcomeUnknown("the answer is lost")
            return results

        async with (
            NodeServer(NodeWith(node, propose_many=propose_many)) as server,
            Client(server.address) as client,
        ):
            session = await client.open_session()
            result = await session.propose(CompareAndSwap(b"k", None, b"v"))

            assert (result.index, result.outcome) == (4, Outcome.APPLIED)
            assert await client.get(b"k") == b"v"

    async def test_a_refusal_is_the_clients_own_error(self, node):
        refuses = raises(CommitLogError("no leader; nothing was committed"))
        async with (
            NodeServer(NodeWith(node, propose_many=refuses)) as server,
            Client(server.address) as client,
        ):
            with pytest.raises(ClientError, match="no leader") as failure:
                await client.open_session()

        assert failure.value.outcome_known

    async def test_no_answer_in_time_is_an_unknown_outcome(self, node):
        async def propose_many(_commands):
            await asyncio.Event().wait()

        async with (
            NodeServer(NodeWith(node, propose_many=propose_many)) as server,
            Client(server.address, timeout_s=0.2) as client,
        ):
            with pytest.raises(ProposalOutcomeUnknown, match=r"no answer within 0\.2 s"):
                await client.open_session()


class TestFailures:
    @pytest.mark.parametrize(
        ("exc", "put_code", "apply_code", "outcome_known"),
        [
            (NotRunningError("n"), "CLUSTER_UNAVAILABLE", "FAILED_PRECONDITION", True),
            (CommitLogError("n"), "PROPOSE_FAILED", "ABORTED", True),
            (ProposalOutcomeUnknown("n"), "CONNECTION_TIMEOUT", "UNKNOWN", False),
            (StorageError("n"), "STORAGE_IO_ERROR", "INTERNAL", False),
            (RuntimeError("n"), "GENERAL", "INTERNAL", False),
        ],
    )
    async def test_tells_whether_a_write_may_have_happened(
        self, node, exc, put_code, apply_code, outcome_known
    ):
        failing = NodeWith(
            node, propose=raises(exc), propose_many=raises(exc), read_many=raises(exc)
        )
        async with NodeServer(failing) as server, Client(server.address) as client:
            with pytest.raises(ClientError) as put:
                await client.put(b"k", b"v")
            with pytest.raises(ClientError) as apply:
                await client.apply([b""])
            with pytest.raises(ClientError) as get:
                await client.get(b"k")

        assert (put.value.code, put.value.outcome_known) == (put_code, outcome_known)
        assert (apply.value.code, apply.value.outcome_known) == (apply_code, outcome_known)
        assert (get.value.code, get.value.outcome_known) == (put_code, True)
        for failure in (put, apply):
            assert ("may or may not" in str(failure.value)) is not outcome_known

    async def test_a_bulk_write_of_several_appends_may_have_begun(self, node):
        refusing = NodeWith(node, propose_many=raises(NotRunningError("stopped")))
        several = [b""] * (node.config.node.max_batch_entries + 1)
        async with NodeServer(refusing) as server, Client(server.address) as client:
            with pytest.raises(ClientError, match="those before it are committed") as running:
                await client.apply(several)
            await node.stop()
            with pytest.raises(ClientError) as stopped:
                await client.apply(several)

        assert (running.value.code, running.value.outcome_known) == ("UNKNOWN", False)
        assert (stopped.value.code, stopped.value.outcome_known) == ("FAILED_PRECONDITION", True)

    async def test_a_write_that_takes_too_long_may_have_happened(self, node):
        may_go_on = asyncio.Event()
        proposals = []

        async def propose(command):
            proposals.append(command)
            await asyncio.shield(may_go_on.wait())
            return await node.propose(command)

        async with (
            NodeServer(NodeWith(node, propose=propose)) as server,
            Client(server.address, timeout_s=0.3) as client,
        ):
            with pytest.raises(ClientError, match="may or may not have happened") as failure:
                await client.put(b"k", b"v")
            may_go_on.set()

            assert (failure.value.code, failure.value.outcome_known) == ("DEADLINE_EXCEEDED", False)
            assert len(proposals) == 1

    async def test_a_server_that_goes_away_meanwhile_leaves_the_outcome_open(self, node):
        begun = asyncio.Event()
        proposals = []

        async def propose(command):
            proposals.append(command)
            begun.set()
            await asyncio.Event().wait()

        server = NodeServer(NodeWith(node, propose=propose))
        async with Client(await server.start()) as client:
            writing = asyncio.create_task(client.put(b"k", b"v"))
            await begun.wait()
            await server.stop(grace_s=0)

            with pytest.raises(ClientError) as failure:
                await writing
        assert failure.value.outcome_known is False
        assert len(proposals) == 1

    async def test_nothing_was_sent_to_a_server_that_is_not_there(self, node):
        server = NodeServer(node)
        address = await server.start()
        await server.stop()

        async with Client(address) as client:
            with pytest.raises(ClientError, match=re.escape(f"server {address!r}: ")) as failure:
                await client.put(b"k", b"v")

        assert (failure.value.code, failure.value.outcome_known) == ("UNAVAILABLE", True)

    async def test_finds_a_restarted_server(self, node):
        server = NodeServer(node)
        address = await server.start()
        async with Client(address) as client:
            await client.put(b"k", b"v")
            await server.stop()
            with pytest.raises(ClientError, match=re.escape("no connection within 0.01 s")):
                await client.wait_ready(timeout_s=0.01)

            async with NodeServer(node, listen=address):
                await client.wait_ready()
                assert await client.get(b"k") == b"v"

    async def test_an_oversize_write_certainly_did_not_happen(self, client):
        for write in (client.put(b"k", bytes(1_000_001)), client.apply([bytes(1_000_001)])):
            with pytest.raises(ClientError) as failure:
                await write
            assert failure.value.code == "RESOURCE_EXHAUSTED"
            assert failure.value.outcome_known

        assert await client.get(b"k") is None

    async def test_a_server_of_another_kind_is_told_of(self):
        other = grpc.aio.server()
        port = other.add_insecure_port("127.0.0.1:0")
        await other.start()
        async with Client(f"127.0.0.1:{port}") as client:
            with pytest.raises(ClientError) as failure:
                await client.put(b"k", b"v")
        await other.stop(None)

        assert (failure.value.code, failure.value.outcome_known) == ("UNIMPLEMENTED", True)

    async def test_a_closed_client_sends_nothing(self, server):
        client = Client(server.address)
        for call in (client.get(b"k"), client.wait_ready()):
            with pytest.raises(ClientError, match="the client is closed") as failure:
                await call
            assert (failure.value.code, failure.value.outcome_known) == ("CLOSED", True)

    async def test_closing_ends_calls_under_way_with_an_error(self, node):
        begun = asyncio.Event()

        async def propose(_command):
            begun.set()
            await asyncio.Event().wait()

        async with NodeServer(NodeWith(node, propose=propose)) as server:
            client = Client(server.address)
            async with client:
                writing = asyncio.create_task(client.put(b"k", b"v"))
                await begun.wait()
            with pytest.raises(ClientError, match="closed meanwhile") as failure:
                await writing
        assert (failure.value.code, failure.value.outcome_known) == ("CLOSED", False)

    async def test_cancelling_a_call_cancels_it(self, node):
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def propose(_command):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with (
            NodeServer(NodeWith(node, propose=propose)) as server,
            Client(server.address) as client,
        ):
            writing = asyncio.create_task(client.put(b"k", b"v"))
            await begun.wait()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await cancelled.wait()
