"""Every server's own copy, read and compared: what no server has noticed yet."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from dengine_sm_nats.copies import Copy, compare_copies, survey_copies
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.server_config import free_ports
from dengine_sm_nats.servers import LocalServers
from nats_tools import connected, make_stream, publish, without_a_leader

from dengine_sm.cli import main


@asynccontextmanager
async def filled_servers(
    directory: Path, count: int, data: bytes = b"x"
) -> AsyncIterator[tuple[LocalServers, NatsLogOptions]]:
    """Three servers that all have the same messages."""
    with LocalServers(directory) as servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream())
            last = await publish(client.jetstream(), count, data)
        servers.wait_copied("dengine", last)
        yield servers, NatsLogOptions(servers=servers.urls, monitoring=servers.monitoring)


def copies(*checksums: list[int]) -> dict[str, Copy]:
    return {f"n{i}": Copy(5, array("q", each), True) for i, each in enumerate(checksums)}


def told(*checksums: list[int], first: int = 5) -> list[tuple[str, str]]:
    found = compare_copies(copies(*checksums), "dengine", first, 4 + len(checksums[0]))
    return [(each.subject.rpartition(" ")[2], each.problem) for each in found]


def test_equal_copies_are_whole() -> None:
    assert told([1, 2, 3], [1, 2, 3], [1, 2, 3]) == []
    assert told([1, 2, 3]) == []


def test_a_message_that_only_one_lacks() -> None:
    whole = [1, 2, 3, 4]
    assert told(whole, [1, -1, -1, 4], whole) == [("n1", "2 are missing, the first is 6")]


def test_a_message_that_is_another_on_one() -> None:
    whole = [1, 2, 3]
    assert told(whole, whole, [1, 2, 9]) == [("n2", "1 differ, the first is 7")]


def test_without_a_majority_all_are_suspect() -> None:
    assert told([1], [2]) == [(f"n{i}", "1 differ, the first is 5") for i in (0, 1)]
    assert [name for name, _ in told([1], [2], [3])] == ["n0", "n1", "n2"]


def test_what_was_purged_or_is_nowhere_is_not_compared() -> None:
    assert told([-1, 2, 3], [1, 2, 3], [1, 2, 3], first=6) == []
    assert told([1, -1], [1, -1], [1, -1]) == []


@pytest.mark.timeout(120)
async def test_a_flipped_byte_that_no_server_has_read(tmp_path) -> None:
    # More than one block of 8 MiB: the first one is not in the servers' memory, or not for long.
    async with filled_servers(tmp_path, 24, b"x" * 1_000_000) as (servers, options):
        assert await survey_copies(options) == []
        follower = (servers.leader_of("dengine") + 1) % 3
        [block] = servers.store(follower).glob("jetstream/A/streams/dengine/msgs/1.blk")
        with block.open("r+b") as file:
            file.seek(block.stat().st_size // 2)
            file.write(b"y")
        damaged = f"copy of stream 'dengine' on n{follower}"
        arguments = [f"--server={url}" for url in servers.urls]
        arguments += [f"--monitoring={url}" for url in servers.monitoring]
        check = ["cluster", "check", *arguments, "--copies"]

        findings = []
        while not findings:
            await asyncio.sleep(0.5)
            findings = await survey_copies(options)

        assert [finding.subject for finding in findings] == [damaged]
        result = await asyncio.to_thread(CliRunner().invoke, main, check)
        assert result.exit_code == 1
        assert damaged in result.stdout


@pytest.mark.timeout(120)
async def test_a_server_that_is_down_is_no_damage(tmp_path) -> None:
    async with filled_servers(tmp_path, 50) as (servers, options):
        follower = (servers.leader_of("dengine") + 1) % 3
        servers.kill(follower)

        [finding] = await survey_copies(options)

        assert finding.subject == f"copy of stream 'dengine' on n{follower}"
        assert finding.problem == "could not be read to its end"


async def test_copies_are_asked_for_until_a_leader_answers(tmp_path) -> None:
    async with filled_servers(tmp_path, 5) as (servers, options):
        async with without_a_leader(servers):
            survey = asyncio.create_task(survey_copies(options))

        assert await survey == []


async def test_the_copy_of_a_server_alone(tmp_path) -> None:
    with LocalServers(tmp_path, 1) as servers:
        options = NatsLogOptions(servers=servers.urls, monitoring=servers.monitoring)
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream(), 1)
            assert await survey_copies(options) == []
            await publish(client.jetstream(), 50)
        read: list[tuple[str, int, int]] = []

        assert await survey_copies(options, lambda *told: read.append(told)) == []

        assert read[-1] == ("n0", 50, 50)


def test_without_servers_everything_is_told(tmp_path) -> None:
    url = f"nats://127.0.0.1:{free_ports(1)[0].client}"
    config = tmp_path / "node.toml"
    config.write_text(
        f"[log]\nengine = 'nats'\n[log.options]\nservers = ['{url}']\nconnect_timeout_s = 0.5\n"
    )

    check = ["cluster", "check", "--config", str(config), "--copies", "--json"]
    result = CliRunner().invoke(main, check)

    subjects = [json.loads(line)["subject"] for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert subjects == ["monitoring", f"server {url}", "copies of stream 'dengine'"]
