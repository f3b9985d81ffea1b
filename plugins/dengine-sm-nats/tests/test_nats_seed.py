"""From a log of one node to three on the servers, and back."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from dengine_sm_nats import NatsLogOptions
from dengine_sm_nats.seed import TERMS_APART, seed_stream
from dengine_sm_nats.servers import LocalServers
from nats_testing import client_of, followed_log, log_options, node_config, put
from nats_tools import stream_info, without_a_leader

from dengine_sm import (
    CommitLogError,
    LogGapError,
    LogId,
    Node,
    NodeBuilder,
    NodeConfig,
    Outcome,
    SnapshotError,
)
from dengine_sm.cli import exit_codes, main
from dengine_sm.config import NodeSection, SnapshotSection, StateMachineSection
from dengine_sm.kv import Put, encode_command

BACKENDS = ("memory", "sqlite", "rocksdb")


def embedded_config(directory: Path, backend: str = "file") -> NodeConfig:
    return NodeConfig(
        node=NodeSection("single", directory / "single"),
        state_machine=StateMachineSection(backend, validate="structure"),
        snapshot=SnapshotSection(every_entries=None, every_bytes=None, keep_log_entries=0),
    )


async def single_node_archive(directory: Path, *, restarts: int = 3) -> tuple[Path, list]:
    """Run a node by itself for a few terms; return its newest archive and its content."""
    for part in range(restarts):
        async with NodeBuilder(embedded_config(directory)).build() as node:
            await node.propose_many([put(b"%d-%d" % (part, n)) for n in range(100)])
            await node.propose(encode_command(Put(b"ttl-%d" % part, b"t", 3_600_000)))
            content = list((await node.scan()).entries)
            await node.take_snapshot()
            newest = node.handler.snapshots.newest()
    return newest.path, content


async def content_of(node: Node) -> list:
    return list((await node.scan()).entries)


async def test_a_single_node_becomes_three_with_other_backends_and_back_again(tmp_path):
    archive, content = await single_node_archive(tmp_path)
    with LocalServers(tmp_path / "servers", 3) as servers:
        seeded = await seed_stream(NatsLogOptions(**log_options(servers, "log")), archive)
        assert (LogId(3, 303), 3 + TERMS_APART) == (seeded.last_included, seeded.term)
        assert archive.exists()
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(
                    NodeBuilder(
                        node_config(tmp_path, servers, "log", node=f"n{n}", backend=backend)
                    ).build()
                )
                for n, backend in enumerate(BACKENDS)
            ]
            for node in nodes:
                assert content == await content_of(node)
                assert LogId(3, 303) == node.status().last_applied
            result = await nodes[1].propose(put(b"more"))
            assert (result.outcome, result.index) == (Outcome.APPLIED, 304)
            snapshots = [await node.take_snapshot() for node in nodes]
            assert snapshots[0] == snapshots[1] == snapshots[2]
            assert (
                snapshots[0] is not None and LogId(seeded.term, 304) == snapshots[0].last_included
            )
            after = await content_of(nodes[2])
            back = nodes[2].handler.snapshots.newest()
            assert back is not None

    async with NodeBuilder(embedded_config(tmp_path / "back", "lmdb")).build() as node:
        await node.install_snapshot(back.path)
        assert after == await content_of(node)
        result = await node.propose(put(b"at home"))
        assert result.index == 305 and node.status().last_applied >= LogId(seeded.term, 305)
    async with NodeBuilder(embedded_config(tmp_path / "back", "lmdb")).build() as node:
        assert await node.read(b"at home") == b"v" and await node.read(b"more") == b"v"


async def test_nodes_on_a_seeded_stream_restart_purge_and_are_joined(tmp_path, server):
    archive, _ = await single_node_archive(tmp_path, restarts=1)
    await seed_stream(NatsLogOptions(**log_options(server, "restart")), archive)
    config = node_config(tmp_path, server, "restart")
    for part in range(4):
        async with NodeBuilder(config).build() as node:
            assert node.status().entries == 101 + part * 10
            await node.propose_many([put(b"%d/%d" % (part, n)) for n in range(10)])
            assert await node.take_snapshot() is not None
    async with client_of(server) as client:
        assert (await stream_info(client, "restart")).state.first_seq > 1

    joining = node_config(tmp_path, server, "restart", node="n1", backend="memory")
    async with NodeBuilder(joining).build() as node:
        assert node.status().entries == 141
        assert node.status().last_applied == LogId(1 + TERMS_APART, 141)


async def test_log_time_does_not_go_back_behind_the_seed(tmp_path, server):
    archive, _ = await single_node_archive(tmp_path, restarts=1)
    seeded = await seed_stream(NatsLogOptions(**log_options(server, "clock")), archive)

    async with followed_log(tmp_path, server, "clock", first_index=102) as one:
        await one.log.append([b"x"])
        assert (await one.until(102))[0].timestamp_ms >= seeded.clock_ms > 0


async def test_a_stream_that_exists_is_not_seeded(tmp_path, server):
    archive, _ = await single_node_archive(tmp_path, restarts=1)
    async with followed_log(tmp_path, server, "exists") as one:
        await one.log.append([b"x"])

        with pytest.raises(CommitLogError, match=r"'exists' exists and holds .* nothing"):
            await seed_stream(NatsLogOptions(**log_options(server, "exists")), archive)

        assert (await one.log.append([b"y"])).first_index == 2


async def test_seeding_waits_for_servers_that_elect_a_leader(tmp_path):
    archive, _ = await single_node_archive(tmp_path, restarts=1)
    with LocalServers(tmp_path / "servers") as servers:
        options = NatsLogOptions(**log_options(servers, "late"), sync="unverified")
        async with without_a_leader(servers):
            seeding = asyncio.create_task(seed_stream(options, archive))

        assert (await seeding).stream == "late"


async def test_a_damaged_archive_seeds_nothing(tmp_path, server):
    archive, _ = await single_node_archive(tmp_path, restarts=1)
    content = bytearray(archive.read_bytes())
    content[-1] ^= 1
    archive.write_bytes(content)

    with pytest.raises(SnapshotError):
        await seed_stream(NatsLogOptions(**log_options(server, "damaged")), archive)

    async with client_of(server) as client:
        names = [info.config.name for info in await client.jetstream().streams_info()]
    assert "damaged" not in names


async def test_nothing_is_left_of_a_stream_whose_archive_could_not_be_uploaded(
    tmp_path, server, monkeypatch
):
    archive, _ = await single_node_archive(tmp_path, restarts=1)

    async def refuse(*_):
        raise CommitLogError("the upload failed")

    options = NatsLogOptions(**log_options(server, "upload"))
    with monkeypatch.context() as patched:
        patched.setattr("dengine_sm_nats.published.SnapshotBoard.publish", refuse)
        with pytest.raises(CommitLogError, match="the upload failed"):
            await seed_stream(options, archive)

    assert (await seed_stream(options, archive)).term == 1 + TERMS_APART


@pytest.mark.parametrize("restarts", [0, 1, 2])
async def test_a_state_of_the_old_log_does_not_follow_the_new_one(
    tmp_path, server, stream, restarts
):
    async with NodeBuilder(embedded_config(tmp_path)).build() as node:
        await node.propose_many([put(b"early")] * 5)
        await node.take_snapshot()
        archive = node.handler.snapshots.newest().path
        await node.propose_many([put(b"later")] * 5)
    for _ in range(restarts):
        async with NodeBuilder(embedded_config(tmp_path)).build() as node:
            await node.propose_many([put(b"later still")] * 5)
    await seed_stream(NatsLogOptions(**log_options(server, stream)), archive)
    # The single node's data with the other log: what it applied since is in no stream.
    config = node_config(tmp_path, server, stream)
    moved = attrs.evolve(config, node=NodeSection("n0", tmp_path / "single"))
    (tmp_path / "single" / "log").rename(tmp_path / "embedded-log")

    node = NodeBuilder(moved).build()
    with pytest.raises(CommitLogError, match=f"is not a place in stream {stream!r}"):
        await node.start()


async def test_a_snapshot_from_elsewhere_is_refused_before_anything_changes(tmp_path, server):
    archive, _ = await single_node_archive(tmp_path, restarts=2)
    async with NodeBuilder(node_config(tmp_path, server, "elsewhere")).build() as node:
        await node.propose(put(b"own"))

        with pytest.raises(CommitLogError, match="dengine-sm cluster seed"):
            await node.install_snapshot(archive)

        assert archive.exists() and node.handler.snapshots.newest() is None
        assert (LogId(1, 1), 1) == (node.status().last_applied, node.status().entries)
        assert (await node.propose(put(b"goes on"))).index == 2


async def test_without_its_snapshot_a_seeded_stream_is_refused(tmp_path, server):
    archive, _ = await single_node_archive(tmp_path, restarts=1)
    await seed_stream(NatsLogOptions(**log_options(server, "lost")), archive)
    async with client_of(server) as client:
        await client.jetstream().delete_object_store("lost-snapshots")
    config = node_config(tmp_path, server, "lost", publish_timeout_s=0.2, outcome_timeout_s=1.0)

    node = NodeBuilder(config).build()
    with pytest.raises(LogGapError, match="the log begins at index 102"):
        await node.start()


def test_the_command_begins_a_stream_once(tmp_path, server):
    archive, content = asyncio.run(single_node_archive(tmp_path))
    config = node_config(tmp_path, server, "by-command")
    options = "".join(f"{k} = {json.dumps(v)}\n" for k, v in config.log.options.items())
    file = tmp_path / "node.toml"
    file.write_text(f'[log]\nengine = "nats"\n[log.options]\n{options}')
    command = ["cluster", "seed", "--config", str(file), "--archive", str(archive)]

    first = CliRunner().invoke(main, [*command, "--json"])
    again = CliRunner().invoke(main, command)

    assert first.exit_code == 0, first.output
    seeded = {"event": "seeded", "stream": "by-command", "term": 3 + TERMS_APART, "index": 303}
    assert seeded == json.loads(first.stdout)
    assert again.exit_code == exit_codes.STORAGE
    assert "stream 'by-command' exists" in again.stderr

    async def joined() -> list:
        async with NodeBuilder(config).build() as node:
            return await content_of(node)

    assert content == asyncio.run(joined())
