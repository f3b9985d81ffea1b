import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dengine_sm.errors import ServerError
from dengine_sm.server import (
    NodeServer,
    client_api_pb2_grpc,
    cluster_api_pb2,
    cluster_api_pb2_grpc,
    error_pb2,
)
from dengine_sm.server import client_api_pb2 as pb

WRITE = "/d_engine.client.RaftClientService/HandleClientWrite"
READ = "/d_engine.client.RaftClientService/HandleClientRead"
SCAN = "/d_engine.client.RaftClientService/HandleClientScan"


@pytest.fixture
async def channel(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def kv(channel):
    return client_api_pb2_grpc.RaftClientServiceStub(channel)


class NodeWith:
    """A node with some of its methods replaced; the rest is the node's own."""

    def __init__(self, node, **replaced):
        self._node = node
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._node, name)


def insert(key, value):
    operation = pb.WriteCommand.Insert(key=key, value=value)
    return pb.ClientWriteRequest(client_id=1, command=pb.WriteCommand(insert=operation))


async def read_all(kv, *keys):
    response = await kv.HandleClientRead(pb.ClientReadRequest(keys=keys))
    assert response.error == error_pb2.SUCCESS
    return [(result.key, result.value) for result in response.read_data.results]


class TestBadInput:
    async def test_garbage_instead_of_http2_leaves_the_server_alive(self, server, kv):
        host, port = server.address.rsplit(":", 1)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for garbage in (b"\x00" * 4096, b"GET / HTTP/1.1\r\n\r\n", preface + b"\xff" * 4096):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(garbage)
            # The server closes the connection, or resets it with our bytes unread.
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        assert (await kv.HandleClientWrite(insert(b"k", b"v"))).write_result.succeeded

    @pytest.mark.parametrize("method", [WRITE, READ, SCAN, "/dengine_sm.v1.NodeService/Scan"])
    async def test_garbage_instead_of_protobuf_leaves_the_server_alive(self, channel, method, kv):
        call = channel.unary_unary(method)(b"\xff" * 100)

        assert await call.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        assert (await kv.HandleClientWrite(insert(b"k", b"v"))).write_result.succeeded

    @pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
    async def test_oversize_requests_are_refused(self, kv, compression):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await kv.HandleClientWrite(insert(b"k", bytes(1_000_001)), compression=compression)

        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await read_all(kv, b"k") == []

    async def test_refuses_a_port_in_use(self, node, server):
        message = f"server: cannot listen on {server.address!r}: "

        with pytest.raises(ServerError, match=re.escape(message)) as refusal:
            await NodeServer(node, listen=server.address).start()

        assert refusal.value.address == server.address

    @pytest.mark.parametrize("listen", ["", "localhost", ":80", "256.1.1.1:0", "127.0.0.1:x"])
    async def test_refuses_a_malformed_address(self, node, listen):
        with pytest.raises(ServerError, match=re.escape(repr(listen))):
            await NodeServer(node, listen=listen).start()


class TestLifecycle:
    async def test_start_and_stop_are_idempotent_and_alternate(self, node):
        server = NodeServer(node)

        for _ in range(2):
            address = await server.start()
            assert await server.start() == address == server.address
            with socket.create_connection(address.rsplit(":", 1)):
                pass
            await server.stop()
            await server.stop()
            assert server.address is None
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address.rsplit(":", 1))

    async def test_stop_lets_calls_under_way_finish(self, node):
        begun, may_go_on = asyncio.Event(), asyncio.Event()

        async def propose(command):
            begun.set()
            await may_go_on.wait()
            return await node.propose(command)

        server = NodeServer(NodeWith(node, propose=propose))
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            kv = client_api_pb2_grpc.RaftClientServiceStub(channel)
            write = asyncio.ensure_future(kv.HandleClientWrite(insert(b"k", b"v")))
            await begun.wait()
            stopping = asyncio.create_task(server.stop(grace_s=60))
            # Its first act: from here on the server is stopping.
            while server.address is not None:
                await asyncio.sleep(0)
            may_go_on.set()

            assert (await write).write_result.succeeded
            await stopping
        assert await node.read(b"k") == b"v"

    async def test_stop_cancels_calls_that_outlast_the_grace(self, node):
        begun = asyncio.Event()

        async def propose(_command):
            begun.set()
            await asyncio.Event().wait()

        server = NodeServer(NodeWith(node, propose=propose))
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            kv = client_api_pb2_grpc.RaftClientServiceStub(channel)
            call = kv.HandleClientWrite(insert(b"k", b"v"))
            waiting = asyncio.ensure_future(call.code())
            await begun.wait()
            await server.stop(grace_s=0)

            assert await waiting in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    async def test_warns_of_an_address_beyond_this_machine(self, node, caplog):
        async with NodeServer(node, listen="127.0.0.1:0"):
            assert "beyond" not in caplog.text
        async with NodeServer(node, listen="0.0.0.0:0"):
            assert "beyond this machine, without encryption or authentication" in caplog.text

    async def test_advertises_another_address(self, node):
        async with (
            NodeServer(node, advertise="db.example:9081") as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = cluster_api_pb2_grpc.ClusterManagementServiceStub(channel)
            members = await stub.GetClusterMetadata(cluster_api_pb2.MetadataRequest())

        assert members.nodes[0].address == "db.example:9081"


class TestHealthAndReflection:
    async def test_health_follows_the_node(self, channel, node):
        stub = health_pb2_grpc.HealthStub(channel)
        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        names = ("", "d_engine.client.RaftClientService")
        requests = [health_pb2.HealthCheckRequest(service=name) for name in names]
        watch = stub.Watch(requests[0])

        assert [(await stub.Check(r)).status for r in requests] == [serving, serving]
        assert (await watch.read()).status == serving
        await node.stop()
        assert [(await stub.Check(r)).status for r in requests] == [not_serving, not_serving]
        assert (await watch.read()).status == not_serving

    async def test_watchers_do_not_hold_up_a_stop(self, node):
        server = NodeServer(node)
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()

            await server.stop(grace_s=5)

            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watch.read() is grpc.aio.EOF

    async def test_unknown_services_have_no_health(self, channel):
        call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"))

        assert await call.code() is grpc.StatusCode.NOT_FOUND

    async def test_reflection_lists_the_services(self, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")

        [response] = [r async for r in stub.ServerReflectionInfo(iter([request]))]

        assert {s.name for s in response.list_services_response.service} == {
            "d_engine.client.RaftClientService",
            "d_engine.server.cluster.ClusterManagementService",
            "dengine_sm.v1.NodeService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


class TestGeneratedCode:
    def test_imports_without_a_warning(self):
        code = "import dengine_sm.server, dengine_sm.client"

        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)

    def test_runs_on_the_oldest_runtimes_that_the_extra_allows(self):
        directory = Path(client_api_pb2_grpc.__file__).parent
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        requirements = project["project"]["optional-dependencies"]["server"]
        bounds = dict(requirement.split(">=") for requirement in requirements)
        modules = sorted(directory.glob("*_pb2*.py"))

        text = "".join(module.read_text() for module in modules)
        grpc_versions = set(re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", text))
        protobuf_versions = set(re.findall(r"Python Version: (.+)", text))

        assert len(modules) == 8
        assert {version_of(v) for v in grpc_versions} == {version_of(bounds["grpcio"])}
        assert {version_of(v) for v in protobuf_versions} == {version_of(bounds["protobuf"])}


def version_of(text):
    numbers = [int(number) for number in text.split(".")]
    return (*numbers, 0, 0)[:3]
