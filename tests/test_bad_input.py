"""What users, disks and networks get wrong: a clear error, and nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.backends.file import create_file
from dengine_sm.client import Client
from dengine_sm.codec import encode
from dengine_sm.config import NodeConfig, NodeSection
from dengine_sm.errors import ClientError, ServerError, StorageError, StorageFormatError
from dengine_sm.files import write_checked_file
from dengine_sm.kv import Put, encode_command
from dengine_sm.log.embedded import EmbeddedLog
from dengine_sm.model import Entry, Limits, LogId, Outcome
from dengine_sm.node import Node, NodeBuilder
from dengine_sm.server import NodeServer

LIMIT_FILE_SIZE = (
    "import os, resource, signal, sys; size = int(sys.argv[1]); "
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def node_on(data_dir: Path) -> Node:
    return NodeBuilder(NodeConfig(node=NodeSection(data_dir=data_dir))).build()


def put(key: bytes, value: bytes) -> bytes:
    return encode_command(Put(key, value))


def content(directory: Path) -> dict[str, bytes | None]:
    """Return every file's bytes, and None for each directory."""
    paths = sorted(directory.rglob("*"))
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in paths
    }


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NodeServer]:
    async with node_on(tmp_path / "node") as node, NodeServer(node) as server:
        yield server


@pytest.fixture
async def client(server: NodeServer) -> AsyncIterator[Client]:
    assert server.address is not None
    async with Client(server.address) as client:
        yield client


class TestPorts:
    async def test_a_port_in_use_leaves_both_nodes_working(
        self, tmp_path: Path, server: NodeServer, client: Client
    ) -> None:
        address = server.address
        assert address is not None
        async with node_on(tmp_path / "second") as second:
            with pytest.raises(ServerError, match=re.escape(address)):
                await NodeServer(second, listen=address).start()

            assert (await second.propose(put(b"k", b"second"))).succeeded
            async with NodeServer(second) as elsewhere, Client(elsewhere.address or "") as other:
                assert await other.get(b"k") == b"second"

        await client.put(b"k", b"first")
        assert await client.get(b"k") == b"first"


def sqlite_directory(directory: Path) -> None:
    directory.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(directory / "state.sqlite")) as connection:
        connection.execute("create table kv (key blob, value blob)")
        connection.execute("insert into kv values (x'61', x'62')")
        connection.commit()


def foreign_directory(directory: Path) -> None:
    (directory / "CURRENT").parent.mkdir(parents=True)
    (directory / "CURRENT").write_text("MANIFEST-000005\n")
    (directory / "000004.log").write_bytes(bytes(range(256)))


def text_manifest(directory: Path) -> None:
    directory.mkdir(parents=True)
    write_checked_file(directory / "MANIFEST", encode(["somebody-elses", 1, 1, 0, 1]))


def newer_manifest(directory: Path) -> None:
    machine = create_file(directory)
    machine.start()
    machine.stop()
    write_checked_file(directory / "MANIFEST", encode(["dengine-sm-file", 2, 1, 0, 1, "new"]))


def newer_meta(directory: Path) -> None:
    async def used() -> None:
        log = EmbeddedLog(directory)
        await log.open()
        await log.append([b"x"])
        await log.close()

    asyncio.run(used())
    fields = ["dengine-sm-embedded-log", 2, 1, [0, 0], 1]
    write_checked_file(directory / "META", encode(fields))


class TestForeignDirectories:
    @pytest.mark.parametrize(
        "fill", [sqlite_directory, foreign_directory, text_manifest, newer_manifest]
    )
    async def test_refuses_another_backends_state_and_leaves_it_alone(
        self, tmp_path: Path, fill: Callable[[Path], None]
    ) -> None:
        await asyncio.to_thread(fill, tmp_path / "data" / "state_machine")
        before = content(tmp_path / "data" / "state_machine")

        with pytest.raises(StorageFormatError, match="state_machine") as caught:
            create_file(tmp_path / "data" / "state_machine").start()
        with pytest.raises(StorageFormatError, match="state_machine"):
            await node_on(tmp_path / "data").start()

        assert caught.value.path is not None
        assert caught.value.expected is not None
        assert before == content(tmp_path / "data" / "state_machine")

    @pytest.mark.parametrize("fill", [sqlite_directory, foreign_directory, newer_meta])
    async def test_refuses_another_log_and_leaves_it_alone(
        self, tmp_path: Path, fill: Callable[[Path], None]
    ) -> None:
        await asyncio.to_thread(fill, tmp_path / "log")
        (tmp_path / "log" / "LOCK").unlink(missing_ok=True)
        before = content(tmp_path / "log")

        with pytest.raises(StorageFormatError, match="log"):
            await EmbeddedLog(tmp_path / "log").open()

        assert before == content(tmp_path / "log")

    async def test_state_and_log_refuse_each_others_directories(self, tmp_path: Path) -> None:
        async with node_on(tmp_path) as node:
            await node.propose(put(b"k", b"v"))
        before = content(tmp_path)

        with pytest.raises(StorageFormatError):
            create_file(tmp_path / "log").start()
        with pytest.raises(StorageFormatError):
            await EmbeddedLog(tmp_path / "state_machine").open()

        assert before == content(tmp_path)


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("not a directory")
    return tmp_path / "file" / "data"


def in_proc(_tmp_path: Path) -> Path:
    return Path("/proc/dengine-sm-data")


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "immutable"
    directory.mkdir()
    try:
        made = subprocess.run(["chattr", "+i", directory], capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"this file system has no immutable directories: {made.stderr!r}")
    except FileNotFoundError:
        pytest.skip("chattr is not installed")
    yield directory
    subprocess.run(["chattr", "-i", directory], check=True)


class TestUnwritableDirectories:
    @pytest.mark.parametrize("place", [below_a_file, in_proc])
    async def test_says_which_directory_it_cannot_use(
        self, tmp_path: Path, place: Callable[[Path], Path]
    ) -> None:
        await self.refuse(place(tmp_path))

    async def test_says_so_of_an_immutable_directory(self, immutable: Path) -> None:
        await self.refuse(immutable)

        assert content(immutable) == {}

    async def refuse(self, path: Path) -> None:
        machine = create_file(path)
        with pytest.raises(StorageError, match=re.escape(str(path))):
            machine.start()
        assert not machine.is_running()
        with pytest.raises(StorageError, match=re.escape(str(path))):
            await EmbeddedLog(path).open()
        with pytest.raises(StorageError, match=re.escape(str(path))):
            await node_on(path).start()


class RunningNode:
    """A `dengine-sm run` process that said it is ready."""

    def __init__(self, data_dir: Path, largest_file_bytes: int | None = None) -> None:
        command = [sys.executable, "-m", "dengine_sm.cli", "run", "--json"]
        command += ["--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
        if largest_file_bytes is not None:
            limit = [sys.executable, "-c", LIMIT_FILE_SIZE, str(largest_file_bytes)]
            command = limit + command
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=30)[1]
        self.listen: str = json.loads(line)["listen"]

    def stop(self, *, tell: bool = True) -> tuple[int, str]:
        if tell:
            self.process.terminate()
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr

    def __enter__(self) -> RunningNode:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


async def fill_until_refused(client: Client) -> tuple[dict[bytes, bytes], list[ClientError]]:
    """Write until the disk is full, then try a few times more."""
    acked: dict[bytes, bytes] = {}
    refused: list[ClientError] = []
    rng = random.Random(5)
    for number in range(2000):
        key, value = b"key %d" % number, rng.randbytes(rng.choice((10, 3000, 9000)))
        try:
            await client.put(key, value)
        except ClientError as exc:
            refused.append(exc)
            if len(refused) == 5:
                break
        else:
            acked[key] = value
    return acked, refused


async def check_after_full(data_dir: Path, acked: dict[bytes, bytes]) -> None:
    with RunningNode(data_dir) as node:
        async with Client(node.listen) as client:
            keys = list(acked)
            assert list(acked.values()) == await client.get_many(keys)
            await client.put(b"after", b"it goes on")
            assert await client.get(b"after") == b"it goes on"
        assert node.stop()[0] == 0


class TestFullDisk:
    async def use_up(self, node: RunningNode) -> dict[bytes, bytes]:
        async with Client(node.listen) as client:
            acked, refused = await fill_until_refused(client)
            assert acked
            assert len(refused) == 5
            # Later ones may also say that the node has stopped itself.
            assert re.search("No space left|File too large", str(refused[0]))
            # A full log refuses and lives; a full state machine ends the node by itself.
            lives = all(error.code == "PROPOSE_FAILED" for error in refused)
            if lives:
                assert list(acked.values()) == await client.get_many(list(acked))
        code, stderr = node.stop(tell=lives)
        assert code == (0 if lives else 4), stderr
        assert lives or re.search("stopped itself.*(No space left|File too large)", stderr)
        assert "Traceback" not in stderr
        return acked

    @pytest.mark.parametrize("largest_file_bytes", [20_000, 150_000])
    async def test_refuses_clearly_and_keeps_what_was_acknowledged(
        self, tmp_path: Path, largest_file_bytes: int
    ) -> None:
        with RunningNode(tmp_path / "data", largest_file_bytes) as node:
            acked = await self.use_up(node)

        await check_after_full(tmp_path / "data", acked)

    async def test_a_full_file_system(self, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False, text=True)
        except FileNotFoundError:
            pytest.skip("mount is not installed")
        if mounted.returncode:
            pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.strip()}")
        try:
            with RunningNode(small / "data") as node:
                acked = await self.use_up(node)
            subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
            await check_after_full(small / "data", acked)
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)


class TestOversized:
    @pytest.mark.parametrize(
        ("key_bytes", "value_bytes"),
        [(Limits().max_key_bytes + 1, 1), (1, Limits().max_value_bytes + 1)],
    )
    async def test_rejects_and_goes_on(
        self, tmp_path: Path, key_bytes: int, value_bytes: int
    ) -> None:
        machine = create_file(tmp_path)
        machine.start()
        command = put(b"k" * key_bytes, b"v" * value_bytes)
        entries = [Entry(1, 1, 1, command), Entry(2, 1, 1, put(b"k", b"v"))]

        results = await machine.apply_chunk(entries)

        assert [result.outcome for result in results] == [Outcome.REJECTED, Outcome.APPLIED]
        assert machine.scan_prefix(b"").entries == ((b"k", b"v"),)
        assert machine.last_applied().index == 2
        machine.stop()

    async def test_the_client_is_told_and_the_node_goes_on(self, client: Client) -> None:
        too_long = b"k" * (Limits().max_key_bytes + 1)

        with pytest.raises(ClientError) as caught:
            await client.put(too_long, b"v")
        [result] = await client.apply([put(too_long, b"v")])

        assert caught.value.outcome_known
        assert result.outcome is Outcome.REJECTED
        await client.put(too_long[:-1], b"v")
        assert (await client.status())["entries"] == 1


def tcp_garbage(rng: random.Random) -> list[bytes]:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
        rng.randbytes(100_000),
        preface + rng.randbytes(10_000),
        preface + b"\xff\xff\xff\x00\x00\x00\x00\x00\x00" + bytes(50_000),
        preface[:9],
    ]


def send_garbage(address: str, data: bytes) -> socket.socket:
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    with contextlib.suppress(OSError):  # being thrown out is what it asks for
        connection.sendall(data)
    return connection


class TestGarbage:
    async def test_connections_full_of_garbage_do_not_disturb_others(
        self, server: NodeServer, client: Client
    ) -> None:
        rng = random.Random(11)
        address = server.address or ""
        kept_open = []

        for number, data in enumerate(tcp_garbage(rng) * 3):
            kept_open.append(await asyncio.to_thread(send_garbage, address, data))
            await client.put(b"key %d" % number, data[:10])
            assert await client.get(b"key %d" % number) == data[:10]
        for connection in kept_open:
            connection.close()

        status = await client.status()
        assert status["running"] and status["entries"] == 21
        assert status["last_applied"]["index"] == 21

    @pytest.mark.parametrize(
        "method",
        [
            "/d_engine.client.RaftClientService/HandleClientWrite",
            "/d_engine.client.RaftClientService/HandleClientRead",
            "/d_engine.client.RaftClientService/HandleClientScan",
            "/d_engine.client.RaftClientService/NoSuchMethod",
            "/no.such.Service/AtAll",
        ],
    )
    async def test_messages_full_of_garbage_do_not_disturb_others(
        self, server: NodeServer, client: Client, method: str
    ) -> None:
        rng = random.Random(method)
        await client.put(b"k", b"v")
        before = (await client.scan()).entries

        async with grpc.aio.insecure_channel(server.address or "") as channel:
            call: Any = channel.unary_unary(method)
            for size in (1, 2, 5, 50, 5000):
                # Field 31 with wire type 7, which no message has: never parses by luck.
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\xff" + rng.randbytes(size) + b"\xff", timeout=10)
                assert caught.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED

        assert before == (await client.scan()).entries
        await client.put(b"k", b"w")
        assert await client.get(b"k") == b"w"


def test_this_file_leaves_no_descriptor_behind() -> None:
    """The refusals above, again and again in one process."""

    def refuse_once(directory: Path) -> None:
        with pytest.raises(StorageFormatError):
            create_file(directory).start()

    directory = Path(__file__).parent
    refuse_once(directory)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        refuse_once(directory)

    assert before == len(os.listdir("/proc/self/fd"))


def test_the_file_backend_takes_no_application_machine_for_its_own_damaged_one(tmp_path: Path):
    class Nothing:
        def dump(self):
            return []

    application = ApplicationStateMachine(Nothing, tmp_path, format="nothing/1")
    application.start()
    application.persist_last_applied(LogId(1, 1))
    application.stop()
    before = content(tmp_path)

    with pytest.raises(StorageFormatError, match=re.escape("'application.manifest'")):
        create_file(tmp_path).start()

    assert before == content(tmp_path)
