"""`dengine-sm cluster up` as a real process, and `cluster check` against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result
from dengine_sm_nats.monitoring import MonitoringError, read_monitoring
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.servers import LocalServers
from dengine_sm_nats.stream import stream_config
from dengine_sm_nats.survey import survey
from nats_tools import add_stream, connected, make_stream, publish, without_a_leader

from dengine_sm.cli import exit_codes, main
from dengine_sm.client import Client

Event = dict[str, Any]


class Up:
    """`dengine-sm cluster up --json` as a user's process."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "dengine_sm.cli", "cluster", "up", "--json"]
        self.process = subprocess.Popen(
            [*command, "--dir", str(directory), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def next_event(self) -> Event:
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def events_until(self, last: str) -> list[Event]:
        found = [self.next_event()]
        while found[-1]["event"] != last:
            found.append(self.next_event())
        return found

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def up(directory: Path, *arguments: str) -> Iterator[Up]:
    running = Up(directory, *arguments)
    with running.process:
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.stop(signal.SIGTERM)


def named(events: list[Event], kind: str) -> dict[str, Event]:
    return {event["name"]: event for event in events if event["event"] == kind}


def assert_gone(servers: dict[str, Event], handles: list[int]) -> None:
    for handle in handles:
        assert select.select([handle], [], [], 30)[0], "a node still runs"
        os.close(handle)
    for server in servers.values():
        with pytest.raises(MonitoringError):
            read_monitoring(server["monitoring"], "/varz")


async def test_a_cluster_comes_up_stops_and_goes_on(tmp_path):
    backends = ["--backend", "memory", "--backend", "file", "--backend", "sqlite"]
    with up(tmp_path, *backends) as first:
        events = first.events_until("ready")
        nodes = named(events, "node")
        assert [nodes[f"node-{n}"]["backend"] for n in (1, 2, 3)] == ["memory", "file", "sqlite"]
        async with Client(nodes["node-1"]["listen"]) as client:
            await client.put(b"greeting", b"hello")
        handles = [os.pidfd_open(node["pid"]) for node in nodes.values()]

        assert first.stop(signal.SIGTERM) == 0
        assert_gone(named(events, "server"), handles)

    with up(tmp_path) as second:
        nodes = named(second.events_until("ready"), "node")
        assert nodes["node-3"]["backend"] == "sqlite"
        async with Client(nodes["node-3"]["listen"]) as client:
            assert await client.get(b"greeting") == b"hello"
        check = ["check", "--config", str(tmp_path / "node-2" / "node.toml")]
        assert (await asyncio.to_thread(call, *check)).exit_code == 0

        os.kill(nodes["node-1"]["pid"], signal.SIGKILL)
        assert second.next_event() == {"event": "ended", "name": "node-1"}
        async with Client(nodes["node-2"]["listen"]) as client:
            assert await client.get(b"greeting") == b"hello"


def test_servers_alone_stop_at_ctrl_c(tmp_path):
    with up(tmp_path, "--nodes", "0") as running:
        events = running.events_until("ready")

        assert running.stop(signal.SIGINT) == 0
        assert_gone(named(events, "server"), [])
        assert len(named(events, "server")) == 3


def test_nothing_outlives_a_killed_up(tmp_path):
    with up(tmp_path, "--nodes", "1") as running:
        events = running.events_until("ready")
        handles = [os.pidfd_open(node["pid"]) for node in named(events, "node").values()]

        running.stop(signal.SIGKILL)

        assert_gone({}, handles)


def test_a_node_that_does_not_start_shows_its_log_and_stops_everything(tmp_path):
    with up(tmp_path, "--nodes", "2", "--backend", "file", "--backend", "nonsense") as running:
        output, errors = running.process.communicate(timeout=120)

    assert running.process.returncode == exit_codes.CONFIG
    assert "error: node node-2 ended with code 3; the end of " in errors
    assert "no state machine backend named 'nonsense'" in errors
    events = [json.loads(line) for line in output.splitlines()]
    assert_gone(named(events, "server"), [])


def test_a_number_of_backends_that_fits_nothing_is_refused(tmp_path):
    done = call("up", "--dir", str(tmp_path), "--backend", "file", "--backend", "memory")

    assert done.exit_code == exit_codes.CONFIG
    assert done.stderr == (
        "error: --backend: 2 are given for 3 nodes; expected one for all, or one of each\n"
    )


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cluster", *arguments])


def flags(servers: LocalServers) -> list[str]:
    found = [flag for url in servers.urls for flag in ("--server", url)]
    return found + [flag for url in servers.monitoring for flag in ("--monitoring", url)]


def as_options(servers: LocalServers) -> NatsLogOptions:
    return NatsLogOptions(servers.urls, monitoring=servers.monitoring, max_bytes=1 << 20)


@pytest.fixture
def sound(tmp_path: Path) -> Iterator[LocalServers]:
    with LocalServers(tmp_path / "servers") as servers:
        yield servers


async def test_nothing_is_found_about_a_sound_cluster(sound: LocalServers):
    async with connected(sound.urls) as client:
        await add_stream(client.jetstream(), stream_config(as_options(sound)))

    assert await survey(as_options(sound)) == []


async def test_what_is_missing_is_found_at_once(sound: LocalServers):
    sound.kill(2)

    found = {finding.subject: finding.problem for finding in await survey(as_options(sound))}

    assert found.keys() == {
        f"monitoring {sound.monitoring[2]}",
        f"server {sound.urls[2]}",
        "stream 'dengine'",
    }
    assert "Connection refused" in found[f"monitoring {sound.monitoring[2]}"]


async def test_a_stream_is_asked_for_until_a_leader_answers(sound: LocalServers):
    async with connected(sound.urls) as client:
        await add_stream(client.jetstream(), stream_config(as_options(sound)))
    options = attrs.evolve(as_options(sound), servers=[sound.urls[2]], monitoring=[])

    async with without_a_leader(sound):
        found = asyncio.create_task(survey(options))

    assert {finding.subject for finding in await found} == {"monitoring"}


async def test_servers_without_monitoring_are_not_sound(sound: LocalServers):
    async with connected(sound.urls) as client:
        await add_stream(client.jetstream(), stream_config(as_options(sound)))

    [finding] = await survey(NatsLogOptions(sound.urls))

    assert (finding.subject, finding.problem) == ("monitoring", "no address is given")


def test_check_prints_every_finding_and_exits_with_1(tmp_path):
    async def a_stream_that_is_no_log() -> None:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream(), 1, discard="old", deny_delete=False)
            await publish(client.jetstream(), 3)
            await client.jetstream().delete_msg("dengine", 2)

    with LocalServers(tmp_path, 1, sync_always=False) as servers:
        asyncio.run(a_stream_that_is_no_log())

        as_text = call("check", *flags(servers), "--replicas", "3")
        as_json = call("check", *flags(servers), "--json")

    assert (as_text.exit_code, as_json.exit_code) == (exit_codes.NEGATIVE, exit_codes.NEGATIVE)
    found = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert {each["problem"] for each in found} == {
        "syncs every 120 s",
        "1 of the sequences 1 to 3 are missing",
        "subjects is ['log']",
        "discard is 'old'",
        "deny_delete is False",
        "num_replicas is 1",
    }
    assert found[0].keys() == {"subject", "problem", "expected", "reason"}
    lines = as_text.stdout.splitlines()
    assert len(lines) == len(found)
    assert lines[0].startswith("- server n0: syncs every 120 s; expected sync_interval: always")


def test_check_wants_to_know_which_servers():
    done = call("check")

    assert done.exit_code == exit_codes.USAGE
    assert "give --config FILE, or --server URL and --monitoring URL" in done.stderr


def test_check_refuses_the_configuration_of_another_log(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('[log]\nengine = "embedded"\n')

    done = call("check", "--config", str(file))

    assert done.exit_code == exit_codes.CONFIG
    assert done.stderr.startswith("error: log.engine: expected 'nats', observed 'embedded'")


def test_help_of_the_command_is_listed_without_the_client_library():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from dengine_sm.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "print({'nats', 'dengine_sm_nats.cli'} & set(sys.modules))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "  cluster  run servers and nodes on this machine" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
