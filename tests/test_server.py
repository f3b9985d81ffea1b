import asyncio
from pathlib import Path

import grpc
import pytest

from dengine_sm.errors import (
    CommitLogError,
    CorruptionError,
    NotRunningError,
    ProposalOutcomeUnknown,
    StorageError,
)
from dengine_sm.kv.commands import CompareAndSwap, Delete, Put, decode_command, encode_command
from dengine_sm.server import (
    NodeServer,
    client_api_pb2_grpc,
    cluster_api_pb2,
    cluster_api_pb2_grpc,
    error_pb2,
    node_api_pb2,
    node_api_pb2_grpc,
)
from dengine_sm.server import client_api_pb2 as pb

WRITE = "/d_engine.client.RaftClientService/HandleClientWrite"
READ = "/d_engine.client.RaftClientService/HandleClientRead"
SCAN = "/d_engine.client.RaftClientService/HandleClientScan"

WRITTEN = b"\x12\x02\x08\x01"


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def kv(channel):
    return client_api_pb2_grpc.RaftClientServiceStub(channel)


@pytest.fixture
def node_service(channel):
    return node_api_pb2_grpc.NodeServiceStub(channel)


class NodeWith:
    """A node with some of its methods replaced; the rest is the node's own."""

    def __init__(self, node, **replaced):
        self._node = node
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._node, name)


def insert(key, value, ttl_secs=0):
    operation = pb.WriteCommand.Insert(key=key, value=value, ttl_secs=ttl_secs)
    return pb.ClientWriteRequest(client_id=1, command=pb.WriteCommand(insert=operation))


def swap(key, expected, new):
    operation = pb.WriteCommand.CompareAndSwap(key=key, expected_value=expected, new_value=new)
    return pb.ClientWriteRequest(command=pb.WriteCommand(compare_and_swap=operation))


async def read_all(kv, *keys):
    response = await kv.HandleClientRead(pb.ClientReadRequest(keys=keys))
    assert response.error == error_pb2.SUCCESS
    return [(result.key, result.value) for result in response.read_data.results]


class TestWireFormat:
    """Bytes written out by hand from d-engine's field numbers."""

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (insert(b"k", b"v", 5), b"\x08\x01\x12\x0a\x0a\x08\x0a\x01k\x12\x01v\x18\x05"),
            (
                pb.ClientWriteRequest(
                    command=pb.WriteCommand(delete=pb.WriteCommand.Delete(key=b"k"))
                ),
                b"\x12\x05\x12\x03\x0a\x01k",
            ),
            (swap(b"k", b"", b"n"), b"\x12\x0a\x1a\x08\x0a\x01k\x12\x00\x1a\x01n"),
            (swap(b"k", None, b"n"), b"\x12\x08\x1a\x06\x0a\x01k\x1a\x01n"),
            (
                pb.ClientReadRequest(client_id=9, keys=[b"a", b"b"], consistency_policy=0),
                b"\x08\x09\x12\x01a\x12\x01b\x18\x00",
            ),
            (pb.ScanRequest(client_id=9, prefix=b"p"), b"\x08\x09\x12\x01p"),
            (pb.ClientResponse(write_result=pb.WriteResult(succeeded=True)), WRITTEN),
            (
                pb.ClientResponse(
                    error=error_pb2.INVALID_REQUEST,
                    metadata=error_pb2.ErrorMetadata(leader_address="h", debug_message="d"),
                ),
                b"\x08\xa3\x1f\x22\x06\x1a\x01h\x7a\x01d",
            ),
            (
                pb.ScanResponse(entries=[pb.KvEntry(key=b"k", value=b"v")], revision=3),
                b"\x0a\x06\x0a\x01k\x12\x01v\x10\x03",
            ),
        ],
    )
    def test_messages_have_d_engine_field_numbers(self, message, expected):
        assert message.SerializeToString(deterministic=True) == expected

    async def test_raw_bytes_of_a_d_engine_client_are_answered_in_kind(self, channel):
        write, read, scan = (channel.unary_unary(method) for method in (WRITE, READ, SCAN))

        written = await write(b"\x08\x01\x12\x08\x0a\x06\x0a\x01k\x12\x01v")
        found = await read(b"\x12\x01k\x12\x06absent\x18\x01")
        scanned = await scan(b"\x12\x01k")

        assert written == WRITTEN
        assert found == b"\x1a\x08\x0a\x06\x0a\x01k\x12\x01v"
        assert scanned == b"\x0a\x06\x0a\x01k\x12\x01v\x10\x01"

    async def test_compressed_requests_are_understood(self, channel):
        write = channel.unary_unary(WRITE)
        request = insert(b"k", b"v" * 5000).SerializeToString()

        assert await write(request, compression=grpc.Compression.Gzip) == WRITTEN

    @pytest.mark.parametrize("watch", ["Watch", "WatchMembership"])
    async def test_watches_are_unimplemented(self, channel, watch):
        call = channel.unary_stream(f"/d_engine.client.RaftClientService/{watch}")(b"")

        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


class TestClientService:
    async def test_reads_what_was_written(self, kv):
        await kv.HandleClientWrite(insert(b"b", b"2"))
        await kv.HandleClientWrite(insert(b"a", b""))

        observed = await read_all(kv, b"b", b"absent", b"a", b"b")

        assert observed == [(b"b", b"2"), (b"a", b""), (b"b", b"2")]

    async def test_no_keys_give_no_results(self, kv):
        response = await kv.HandleClientRead(pb.ClientReadRequest())

        assert response.WhichOneof("success_result") == "read_data"
        assert not response.read_data.results

    async def test_deletes_and_deletes_again(self, kv):
        await kv.HandleClientWrite(insert(b"k", b"v"))
        request = pb.ClientWriteRequest(
            command=pb.WriteCommand(delete=pb.WriteCommand.Delete(key=b"k"))
        )

        for _ in range(2):
            response = await kv.HandleClientWrite(request)
            assert response.write_result.succeeded
        assert await read_all(kv, b"k") == []

    async def test_swaps_only_what_is_expected(self, kv):
        outcomes = [
            (await kv.HandleClientWrite(request))
            for request in (
                swap(b"k", b"", b"x"),
                swap(b"k", None, b""),
                swap(b"k", None, b"x"),
                swap(b"k", b"", b"2"),
            )
        ]

        assert [o.write_result.succeeded for o in outcomes] == [False, True, False, True]
        assert {o.error for o in outcomes} == {error_pb2.SUCCESS}
        assert await read_all(kv, b"k") == [(b"k", b"2")]

    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            (insert(b"k", b"v"), Put(b"k", b"v")),
            (insert(b"k", b"v", 3), Put(b"k", b"v", 3000)),
            (insert(b"k", b"v", 2**64 - 1), Put(b"k", b"v", 2**64 - 1)),
            (swap(b"k", None, b""), CompareAndSwap(b"k", None, b"")),
            (swap(b"k", b"", b"n"), CompareAndSwap(b"k", b"", b"n")),
        ],
    )
    async def test_proposes_the_command_asked_for(self, node, request_, expected):
        proposed = []

        async def propose(command):
            proposed.append(decode_command(command))
            return await node.propose(command)

        async with (
            NodeServer(NodeWith(node, propose=propose)) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            await client_api_pb2_grpc.RaftClientServiceStub(channel).HandleClientWrite(request_)

        assert proposed == [expected]

    @pytest.mark.parametrize(("policy", "expected"), [(None, "L"), (0, "L"), (1, "L"), (2, "E")])
    async def test_maps_the_consistency_policy(self, node, policy, expected):
        asked = []

        async def read_many(keys, *, consistency):
            asked.append(consistency.name[0])
            return await node.read_many(keys, consistency=consistency)

        async with (
            NodeServer(NodeWith(node, read_many=read_many)) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            request = pb.ClientReadRequest(keys=[b"k"], consistency_policy=policy)
            await client_api_pb2_grpc.RaftClientServiceStub(channel).HandleClientRead(request)

        assert asked == [expected]

    async def test_refuses_an_unknown_consistency_policy(self, kv):
        response = await kv.HandleClientRead(
            pb.ClientReadRequest(keys=[b"k"], consistency_policy=9)
        )

        assert response.error == error_pb2.INVALID_REQUEST
        assert response.metadata.debug_message == (
            "read: consistency_policy: expected 0 (lease), 1 (linearizable) or 2 (eventual), "
            "observed 9; nothing was read"
        )

    @pytest.mark.parametrize(
        "request_", [pb.ClientWriteRequest(), pb.ClientWriteRequest(command=pb.WriteCommand())]
    )
    async def test_refuses_a_write_without_operation(self, kv, node, request_):
        before = node.status().last_log_id

        response = await kv.HandleClientWrite(request_)

        assert response.error == error_pb2.INVALID_REQUEST
        assert node.status().last_log_id == before

    async def test_a_key_over_the_limits_is_an_error_that_names_them(self, kv):
        response = await kv.HandleClientWrite(insert(b"k" * 65537, b"v"))

        assert response.error == error_pb2.INVALID_REQUEST
        assert "key of 65537 bytes and a value of 1 bytes" in response.metadata.debug_message
        assert "key 65536 and value 16777216" in response.metadata.debug_message
        assert (await kv.HandleClientScan(pb.ScanRequest())).entries == []

    async def test_scans_a_prefix_in_order_with_the_index_of_that_state(self, kv):
        for key in (b"b/2", b"a", b"b/1", b"c"):
            await kv.HandleClientWrite(insert(key, key.upper()))

        response = await kv.HandleClientScan(pb.ScanRequest(prefix=b"b/"))
        everything = await kv.HandleClientScan(pb.ScanRequest())

        assert [(e.key, e.value) for e in response.entries] == [(b"b/1", b"B/1"), (b"b/2", b"B/2")]
        assert response.revision == 4
        assert [e.key for e in everything.entries] == [b"a", b"b/1", b"b/2", b"c"]

    async def test_answers_too_large_are_refused(self, kv):
        for key in (b"a", b"b"):
            await kv.HandleClientWrite(insert(key, b"v" * 600_000))

        read = await kv.HandleClientRead(pb.ClientReadRequest(keys=[b"a", b"a"]))
        with pytest.raises(grpc.aio.AioRpcError) as scan:
            await kv.HandleClientScan(pb.ScanRequest())

        assert read.error == error_pb2.INVALID_REQUEST
        assert scan.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await read_all(kv, b"b")) == 1

    async def test_200_concurrent_puts_are_all_there(self, kv):
        keys = [b"%03d" % i for i in range(200)]

        responses = await asyncio.gather(*(kv.HandleClientWrite(insert(k, k * 2)) for k in keys))

        assert all(r.write_result.succeeded for r in responses)
        scanned = await kv.HandleClientScan(pb.ScanRequest())
        assert [(e.key, e.value) for e in scanned.entries] == [(k, k * 2) for k in keys]
        assert scanned.revision == 200

    async def test_one_of_many_swaps_wins(self, kv):
        values = [b"%d" % i for i in range(50)]

        responses = await asyncio.gather(
            *(kv.HandleClientWrite(swap(b"k", None, value)) for value in values)
        )

        won = [v for v, r in zip(values, responses, strict=True) if r.write_result.succeeded]
        assert len(won) == 1
        assert await read_all(kv, b"k") == [(b"k", won[0])]

    async def test_d_engine_clients_find_their_leader(self, channel, server):
        stub = cluster_api_pb2_grpc.ClusterManagementServiceStub(channel)

        members = await stub.GetClusterMetadata(cluster_api_pb2.MetadataRequest())
        leader = await stub.DiscoverLeader(cluster_api_pb2.LeaderDiscoveryRequest())

        [member] = members.nodes
        assert (member.id, member.address) == (members.current_leader_id, server.address)
        assert (leader.leader_id, leader.leader_address) == (member.id, member.address)


FAILURES = [
    (NotRunningError("n"), "CLUSTER_UNAVAILABLE", "FAILED_PRECONDITION"),
    (ProposalOutcomeUnknown("n"), "CONNECTION_TIMEOUT", "UNKNOWN"),
    (CommitLogError("n"), "PROPOSE_FAILED", "ABORTED"),
    (CorruptionError("n", path=Path("f"), offset=1), "DATA_CORRUPTION", "DATA_LOSS"),
    (StorageError("n"), "STORAGE_IO_ERROR", "INTERNAL"),
    (RuntimeError("n"), "GENERAL", "INTERNAL"),
]


class TestFailures:
    @pytest.mark.parametrize(("exc", "code", "status"), FAILURES)
    async def test_each_has_a_code_and_leaves_the_server_alive(self, node, exc, code, status):
        async def fails(*_args, **_kwargs):
            raise exc

        failing = NodeWith(node, propose=fails, propose_many=fails, scan=fails)
        async with (
            NodeServer(failing) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            kv = client_api_pb2_grpc.RaftClientServiceStub(channel)
            own = node_api_pb2_grpc.NodeServiceStub(channel)
            written = await kv.HandleClientWrite(insert(b"k", b"v"))
            calls = (
                own.ApplyCommands(node_api_pb2.ApplyCommandsRequest(commands=[b""])),
                own.Scan(node_api_pb2.ScanRequest()),
                kv.HandleClientScan(pb.ScanRequest()),
            )
            statuses = [await call.code() for call in calls]

        assert error_pb2.ErrorCode.Name(written.error) == code
        assert written.WhichOneof("success_result") is None
        assert written.metadata.debug_message.endswith("n")
        assert [s.name for s in statuses] == [status] * 3

    async def test_a_full_disk_is_called_so(self, node):
        async def fails(_command):
            try:
                raise OSError(28, "No space left on device")
            except OSError as exc:
                raise StorageError("log: full") from exc

        async with (
            NodeServer(NodeWith(node, propose=fails)) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            kv = client_api_pb2_grpc.RaftClientServiceStub(channel)
            written = await kv.HandleClientWrite(insert(b"k", b"v"))

        assert written.error == error_pb2.DISK_FULL

    async def test_a_stopped_node_is_told_of(self, node, kv, node_service):
        await node.stop()

        written = await kv.HandleClientWrite(insert(b"k", b"v"))
        read = await kv.HandleClientRead(pb.ClientReadRequest(keys=[b"k"]))
        status = await node_service.Status(node_api_pb2.StatusRequest())

        assert written.error == read.error == error_pb2.CLUSTER_UNAVAILABLE
        assert not status.running


class TestNodeService:
    async def test_applies_commands_in_order(self, node_service):
        commands = [
            encode_command(CompareAndSwap(b"k", None, b"1")),
            encode_command(CompareAndSwap(b"k", None, b"2")),
            b"no command",
            encode_command(Delete(b"k")),
        ]
        request = node_api_pb2.ApplyCommandsRequest(commands=commands)

        response = await node_service.ApplyCommands(request)

        assert [(r.index, r.outcome) for r in response.results] == [(1, 1), (2, 2), (3, 2), (4, 1)]

    async def test_no_commands_give_no_results(self, node_service, node):
        response = await node_service.ApplyCommands(node_api_pb2.ApplyCommandsRequest())

        assert not response.results
        assert node.status().last_applied.index == 0

    async def test_a_scan_is_cut_where_a_message_is_full(self, kv, node_service):
        for key in (b"a", b"b", b"c"):
            await kv.HandleClientWrite(insert(key, b"v" * 400_000))

        first = await node_service.Scan(node_api_pb2.ScanRequest())
        rest = await node_service.Scan(node_api_pb2.ScanRequest(start_after=b"b", limit=5))

        assert ([e.key for e in first.entries], first.truncated) == ([b"a", b"b"], True)
        assert ([e.key for e in rest.entries], rest.truncated) == ([b"c"], False)
        assert first.last_applied.index == 3

    @pytest.mark.parametrize("bad", [{"limit": 0}, {"consistency": 7}])
    async def test_refuses_senseless_scans(self, node_service, bad):
        call = node_service.Scan(node_api_pb2.ScanRequest(**bad))

        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    async def test_tells_status_and_takes_snapshots(self, kv, node_service):
        await kv.HandleClientWrite(insert(b"k", b"v"))

        taken = await node_service.TakeSnapshot(node_api_pb2.TakeSnapshotRequest())
        status = await node_service.Status(node_api_pb2.StatusRequest())

        assert taken.snapshot.last_included.index == 1
        assert len(taken.snapshot.checksum) == 32
        assert (status.backend, status.running, status.entries) == ("memory", True, 1)
        assert status.last_applied.index == status.last_log_id.index == 1
        assert not status.HasField("failure")
