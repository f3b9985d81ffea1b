"""Whatever is wrong is told by its name, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from pathlib import Path

import attrs
import pytest
from dengine_sm_nats import NatsLogOptions
from dengine_sm_nats.log import NatsLog
from dengine_sm_nats.server_config import free_ports
from dengine_sm_nats.stream import subject_of
from nats.js.api import StreamConfig
from nats_testing import (
    client_of,
    followed_log,
    log_options,
    node_config,
    put,
    single_server,
)
from nats_tools import add_stream

from dengine_sm import (
    CommitLogError,
    ConfigError,
    LogId,
    NodeBuilder,
    Outcome,
    ProposalOutcomeUnknown,
    StorageFormatError,
    StorageLockedError,
    create_commit_log,
    load_config,
)
from dengine_sm.config import LogSection
from dengine_sm.log.embedded import EmbeddedLog

HASTY = {"publish_timeout_s": 0.2, "outcome_timeout_s": 1.0}


async def refusal(directory: Path, options: dict) -> str:
    """Return why a log does not open; it leaves the directory free for the next try."""
    log = NatsLog(directory / "log", NatsLogOptions(**options))
    with pytest.raises(CommitLogError) as caught:
        await log.open()
    return str(caught.value)


# Servers


@pytest.mark.parametrize("login", [{}, {"user": "ann"}, {"user": "ann", "password": "wrong"}])
async def test_wrong_credentials_are_told(tmp_path, login):
    with single_server(tmp_path / "server", user="ann", password="right") as servers:
        options = log_options(servers, "x", connect_timeout_s=1.0)

        # Several at once: the client library swallows some of the cancellations.
        refusals = (refusal(tmp_path / str(n), {**options, **login}) for n in range(10))
        for told in await asyncio.gather(*refusals):
            assert re.search(r"(?i)authori[sz]ation", told) and servers.urls[0] in told
            assert "right" not in told and "wrong" not in told
        good = NatsLogOptions(**options, user="ann", password="right")
        log = NatsLog(tmp_path / "log", good)
        await log.open()
        await log.close()


async def test_no_server_that_listens_is_told_with_its_address(tmp_path):
    url = f"nats://127.0.0.1:{free_ports(1)[0].client}"

    told = await refusal(tmp_path, {"servers": [url], "connect_timeout_s": 0.5})

    assert url in told and "nothing was changed" in told


@contextlib.asynccontextmanager
async def server_of_version(version: str):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = '{"server_id":"x","version":"%s","proto":1,"headers":true,"max_payload":1048576}'
        writer.write(b"INFO " + (info % version).encode() + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("version", ["2.10.20", "2.12.2"])
async def test_a_server_of_too_old_a_version_is_refused(tmp_path, version):
    async with server_of_version(version) as url:
        told = await refusal(tmp_path, {"servers": [url], "sync": "unverified"})

    assert f"version {version}; expected 2.12.3 or newer" in told
    assert url.removeprefix("nats://") in told


async def test_everything_wrong_with_a_stream_is_told_at_once(tmp_path, server, stream):
    async with client_of(server) as client:
        wrong = StreamConfig(
            stream, subjects=[subject_of(stream), f"{stream}.more"], max_age=60, discard="old"
        )
        await add_stream(client.jetstream(), wrong)

    told = await refusal(tmp_path, log_options(server, stream))

    assert f"stream {stream!r} cannot be the log" in told
    for field in ("discard", "max_age", "subjects", "deny_delete", "its metadata has no id"):
        assert field in told
    assert "nothing was changed" in told


async def test_a_stream_that_the_servers_do_not_make_is_told_with_their_reason(
    tmp_path, server, stream
):
    async with client_of(server) as client:
        other = StreamConfig(f"{stream}-2", subjects=[subject_of(stream)])
        await add_stream(client.jetstream(), other)

    told = await refusal(tmp_path, log_options(server, stream))

    assert "subjects overlap" in told and repr(stream) in told


# Options


def test_all_options_that_are_wrong_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        create_commit_log(
            "nats",
            tmp_path / "log",
            {
                "servers": ["localhost:4222"],
                "stream": "a.b",
                "node": "x y",
                "replicas": 2,
                "max_bytes": 1,
                "sync": "never",
                "publish_timeout_s": 0,
                "silence_s": float("nan"),
                "appends_in_flight": 0,
                "strem": "x",
            },
        )

    told = "\n".join(caught.value.problems)
    for name in (
        *("servers", "stream", "node", "replicas", "max_bytes", "sync", "publish_timeout_s"),
        *("silence_s", "appends_in_flight", "strem"),
    ):
        assert re.search(rf"\b{name}\b", told), name
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("outcome_timeout_s", 61.0), ("outcome_timeout_s", 2.0), ("servers", []), ("replicas", 0)],
)
def test_one_option_out_of_range_is_told_with_what_was_expected(tmp_path, name, value):
    (tmp_path / "node.toml").write_text(
        f'[log]\nengine = "nats"\n[log.options]\n{name} = {value!r}\n'
    )
    config = load_config(tmp_path / "node.toml", environ={})

    with pytest.raises(ConfigError, match=rf"{name}: expected .* observed"):
        create_commit_log(config.log.engine, tmp_path / "log", config.log.options)


# Directories and ids


async def test_two_nodes_with_one_id_are_told_of_each_other(tmp_path, server, stream):
    async with followed_log(tmp_path / "a", server, stream, "n0") as first:
        told = await refusal(tmp_path, log_options(server, stream, "n0"))

        assert "log.options.node: 'n0' is the id of a node that runs on" in told
        assert (await first.log.append([b"goes on"])).first_index == 1


async def test_two_nodes_on_one_data_directory_are_refused(tmp_path, server, stream):
    config = node_config(tmp_path, server, stream)
    async with NodeBuilder(config).build() as first:
        other = NodeBuilder(
            attrs.evolve(config, log=LogSection("nats", log_options(server, stream, "another")))
        ).build()
        with pytest.raises(StorageLockedError, match=re.escape(str(tmp_path / "n0" / "log"))):
            await other.start()

        assert (await first.propose(put(b"goes on"))).index == 1


async def test_the_directory_of_another_log_is_refused_in_both_directions(tmp_path, server, stream):
    embedded = EmbeddedLog(tmp_path / "embedded")
    await embedded.open()
    await embedded.append([b"x"])
    await embedded.close()
    nats = NatsLog(tmp_path / "embedded", NatsLogOptions(**log_options(server, stream)))
    before = sorted(path.name for path in (tmp_path / "embedded").iterdir())
    with pytest.raises(StorageFormatError, match="is not one of the log 'nats'"):
        await nats.open()
    assert before == sorted(path.name for path in (tmp_path / "embedded").iterdir())

    async with followed_log(tmp_path, server, stream) as one:
        await one.log.append([b"x"])
    with pytest.raises(StorageFormatError):
        await EmbeddedLog(tmp_path / "n0").open()
    async with followed_log(tmp_path, server, stream) as one:
        assert await one.log.read_barrier() == 1


# Streams that are not what the node knows


async def delete_stream(server, stream) -> None:
    async with client_of(server) as client:
        await client.jetstream().delete_stream(stream)


async def test_a_stream_that_was_made_anew_is_refused(tmp_path, server, stream):
    config = node_config(tmp_path, server, stream)
    async with NodeBuilder(config).build() as node:
        await node.propose_many([put(b"%d" % n) for n in range(20)])
        await node.take_snapshot()
    await delete_stream(server, stream)

    node = NodeBuilder(config).build()
    with pytest.raises(CommitLogError, match="it was deleted and made anew") as caught:
        await node.start()
    assert str(tmp_path / "n0" / "log") in str(caught.value) and stream in str(caught.value)

    # Its snapshot is not one of the new stream: a new node begins with nothing.
    fresh = node_config(tmp_path, server, stream, node="n1")
    async with NodeBuilder(fresh).build() as node:
        assert (node.status().last_applied, node.status().entries) == (LogId.ZERO, 0)
        await node.propose(put(b"new"))
        assert await node.take_snapshot() is not None
    async with NodeBuilder(node_config(tmp_path, server, stream, node="n2")).build() as node:
        assert node.status().entries == 1


async def test_a_state_ahead_of_the_stream_is_refused(tmp_path, server, stream):
    config = node_config(tmp_path, server, stream)
    async with NodeBuilder(config).build() as node:
        await node.propose_many([put(b"%d" % n) for n in range(20)])
    await delete_stream(server, stream)
    # What it counted is lost too, so only the index tells.
    shutil.rmtree(tmp_path / "n0" / "log")
    async with followed_log(tmp_path, server, stream, "n1") as one:
        await one.log.append([b"x"] * 5)

    node = NodeBuilder(config).build()
    with pytest.raises(CommitLogError, match=r"is at index 20, but stream .* ends at 5"):
        await node.start()


async def test_servers_that_were_set_back_are_refused(tmp_path, stream):
    config_of = lambda servers: node_config(tmp_path, servers, stream)  # noqa: E731
    servers_dir = tmp_path / "server"
    with single_server(servers_dir) as servers:
        async with NodeBuilder(config_of(servers)).build() as node:
            await node.propose(put(b"early"))
    shutil.copytree(servers_dir / "n0", tmp_path / "old")
    with single_server(servers_dir) as servers:
        async with NodeBuilder(config_of(servers)).build() as node:
            for number in range(10):
                await node.propose(put(b"%d" % number))
    shutil.rmtree(servers_dir / "n0")
    shutil.copytree(tmp_path / "old", servers_dir / "n0")

    with single_server(servers_dir) as servers:
        node = NodeBuilder(config_of(servers)).build()
        with pytest.raises(CommitLogError, match="it has lost what was acknowledged"):
            await node.start()


# Sizes


async def test_a_command_larger_than_the_servers_take_is_refused_with_sizes(tmp_path):
    with single_server(tmp_path / "server", max_payload_bytes=1 << 20) as servers:
        async with NodeBuilder(node_config(tmp_path, servers, "s")).build() as node:
            with pytest.raises(
                CommitLogError, match=r"1 commands, 12000\d\d bytes.* 1048576 bytes"
            ):
                await node.propose(put(b"k", b"x" * 1_200_000))

            assert (await node.propose(put(b"k"))).index == 1


async def test_the_largest_command_that_is_not_refused_is_taken(tmp_path):
    with single_server(tmp_path / "server", max_payload_bytes=1 << 20) as servers:
        async with followed_log(tmp_path, servers, "s") as one:
            size = 1 << 20
            while True:
                try:
                    ids = await one.log.append([b"x" * size])
                    break
                except CommitLogError:
                    size -= 1
            assert ids.first_index == 1 and size > (1 << 20) - 200


@pytest.mark.parametrize(("count", "size"), [(30_000, 1), (12_000, 250), (8, 900_000)])
async def test_many_commands_are_split_into_messages_that_the_servers_take(tmp_path, count, size):
    with single_server(tmp_path / "server", max_payload_bytes=1 << 20) as servers:
        async with NodeBuilder(node_config(tmp_path, servers, "s")).build() as node:
            results = await node.propose_many([b"\xff" * size] * count)

            assert list(range(1, count + 1)) == [result.index for result in results]
            results = await asyncio.gather(*(node.propose(b"\xff" * size) for _ in range(10)))
            assert {Outcome.REJECTED} == {result.outcome for result in results}


# Servers that do not answer


async def test_without_servers_the_outcome_is_unknown_and_the_node_stops(tmp_path):
    with single_server(tmp_path / "server") as servers:
        node = NodeBuilder(node_config(tmp_path, servers, "s", **HASTY)).build()
        await node.start()
        await node.propose(put(b"sure"))
        servers.kill(0)

        with pytest.raises(ProposalOutcomeUnknown, match="may or may not be committed"):
            await node.propose(put(b"maybe"))
        under_way = asyncio.create_task(node.propose(put(b"more")))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await node.stop()
        with pytest.raises(ProposalOutcomeUnknown):
            await under_way


async def test_what_is_acknowledged_but_never_delivered_ends_with_an_unknown_outcome(tmp_path):
    with single_server(tmp_path / "server") as servers:
        node = NodeBuilder(node_config(tmp_path, servers, "s", **HASTY)).build()
        await node.start()

        async def nothing(_: object) -> None: ...

        # Deliveries are lost, acknowledgements are not.
        reader = node._log._reader
        reader._create = lambda: nothing(None)
        reader._on_message = nothing
        await reader._end()
        with pytest.raises(ProposalOutcomeUnknown, match="no server has delivered anything"):
            await node.propose(put(b"lost"))
        async with asyncio.timeout(30):
            await node.stop()


# A full stream

SMALL = {"max_bytes": 1 << 20}


async def fill_up(node, number: int = 0) -> int:
    """Propose until the stream is full; return how many were taken."""
    while True:
        try:
            await node.propose(put(b"%06d" % number, b"x" * 10_000))
        except CommitLogError as exc:
            assert not isinstance(exc, ProposalOutcomeUnknown)
            assert "is full" in str(exc) and "nothing was appended" in str(exc)
            return number
        number += 1


async def until_taken(node, command: bytes) -> None:
    """Propose again, as a client does, until there is room."""
    async with asyncio.timeout(30):
        while True:
            try:
                await node.propose(command)
                return
            except CommitLogError:
                await asyncio.sleep(0.01)


async def test_a_full_stream_refuses_commands_until_it_is_purged(tmp_path, server, stream):
    async with (
        NodeBuilder(node_config(tmp_path, server, stream, **SMALL)).build() as a,
        NodeBuilder(node_config(tmp_path, server, stream, node="b", **SMALL)).build() as b,
    ):
        total = 0
        for _ in range(3):
            total = await fill_up(a, total)
            # Full for commands, not for reads.
            assert await b.read(b"%06d" % (total - 1)) is not None
            await until_taken(b, put(b"%06d" % total, b"x"))
            total += 1

        assert total > 200
        assert await a.read(b"000000") is not None
        assert total == (await a.scan()).entries.__len__() == b.status().entries


async def test_a_node_starts_on_a_full_stream(tmp_path, server, stream):
    async with followed_log(tmp_path, server, stream, "raw", **SMALL) as one:
        with pytest.raises(CommitLogError, match="is full"):
            while True:
                await one.log.append([put(b"k", b"x" * 10_000)])

    async with NodeBuilder(node_config(tmp_path, server, stream, **SMALL)).build() as node:
        await node.take_snapshot()
        assert (await node.propose(put(b"more"))).outcome is Outcome.APPLIED
