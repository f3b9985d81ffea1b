"""Findings about servers and streams, pure and with real servers that are set up wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from dengine_sm_nats.checks import (
    REPLICAS_PAGE,
    Finding,
    check_replicas,
    check_server,
    check_stream,
    check_version,
    fetch_monitoring,
    refuse_lazy_servers,
)
from dengine_sm_nats.monitoring import MonitoringError, read_monitoring
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.servers import LocalServers
from nats_tools import connected, make_stream, publish, stream_info

from dengine_sm.errors import CommitLogError

SECOND_NS = 1_000_000_000
GOOD_VARZ = {"server_name": "n0", "version": "2.15.1", "max_payload": 8 << 20}
GOOD_JSZ = {"config": {"sync_always": True, "max_storage": 1 << 30}}
GOOD_STREAM = {
    "name": "dengine",
    "subjects": ["log"],
    "num_replicas": 3,
    "discard": "new",
    "deny_delete": True,
    "duplicate_window": 120 * SECOND_NS,
}


def problems(findings: list[Finding]) -> list[str]:
    return [finding.problem for finding in findings]


def pages(servers: LocalServers) -> dict[str, dict[str, Any]]:
    found = [read_monitoring(url, REPLICAS_PAGE) for url in servers.monitoring]
    return {f"n{index}": page for index, page in enumerate(found)}


def copy(first: int, last: int, messages: int, **more: Any) -> dict[str, Any]:
    state = {"first_seq": first, "last_seq": last, "messages": messages, **more}
    detail = {"name": "dengine", "state": state, "config": {"num_replicas": 3}}
    return {"account_details": [{"stream_detail": [detail]}]}


def copies(*found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"n{index}": page for index, page in enumerate(found)}


def test_nothing_is_found_where_nothing_is_wrong():
    assert check_server(GOOD_VARZ, GOOD_JSZ) == []
    assert check_stream(GOOD_STREAM, subject="log") == []
    assert check_replicas(copies(*[copy(5, 9, 5)] * 3), "dengine") == []


@pytest.mark.parametrize("version", ["2.12.3", "2.12.10", "v2.15.1", "2.15.0-dev", "3.0.0"])
def test_a_version_that_is_new_enough(version: str):
    assert check_version("server n0", version) == []


@pytest.mark.parametrize("version", ["2.12.2", "2.12.3-RC.1", "2.9.25", "1.99.99", "", "soon"])
def test_a_version_that_is_too_old(version: str):
    [finding] = check_version("server n0", version)

    assert finding.problem == f"version {version or 'unknown'}"
    assert finding.expected == "2.12.3 or newer, best 2.15.0"


def test_everything_wrong_with_a_server_is_found_at_once():
    varz = {"server_name": "n1", "version": "2.10.0", "max_payload": 1024}
    jsz = {"config": {"sync_interval": 120 * SECOND_NS, "max_storage": 1 << 20}}

    findings = check_server(varz, jsz, min_store_bytes=1 << 30)

    assert {finding.subject for finding in findings} == {"server n1"}
    assert problems(findings) == [
        "version 2.10.0",
        "max_payload is 1024 bytes",
        "syncs every 120 s",
        "max_file_store is 1048576 bytes",
    ]


@pytest.mark.parametrize("jsz", [{"disabled": True, "config": {"max_memory": 0}}, {}])
def test_a_server_without_jetstream_is_found(jsz: dict[str, Any]):
    assert problems(check_server(GOOD_VARZ, jsz)) == ["JetStream is off"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_replicas", 1),
        ("num_replicas", 5),
        ("storage", "memory"),
        ("retention", "workqueue"),
        ("discard", "old"),
        ("max_age", SECOND_NS),
        ("max_msgs", 10),
        ("max_msgs_per_subject", 1),
        ("max_msg_size", 1000),
        ("duplicate_window", 119 * SECOND_NS),
        ("deny_delete", False),
        ("deny_purge", True),
        ("sealed", True),
        ("no_ack", True),
        ("allow_rollup_hdrs", True),
        ("allow_msg_ttl", True),
        ("persist_mode", "async"),
        ("mirror", {"name": "other"}),
        ("sources", [{"name": "other"}]),
        ("subject_transform", {"src": "log", "dest": "other"}),
        ("subjects", ["log", "more"]),
        ("subjects", ["other"]),
    ],
)
def test_every_setting_that_breaks_the_log_is_found(field: str, value: Any):
    [finding] = check_stream(
        {**GOOD_STREAM, field: value}, subject="log", min_message_bytes=1 << 20
    )

    assert finding.subject == "stream 'dengine'"
    assert finding.problem == f"{field} is {value!r}"
    assert finding.reason.endswith(".")


def test_a_finding_reads_as_a_sentence():
    [finding] = check_stream({**GOOD_STREAM, "discard": "old"})

    assert str(finding) == (
        "stream 'dengine': discard is 'old'; expected 'new'. "
        "A full stream would drop its oldest commands silently."
    )


def test_a_subject_is_compared_only_when_it_is_known():
    assert check_stream({**GOOD_STREAM, "subjects": ["other"]}) == []
    assert problems(check_stream({**GOOD_STREAM, "subjects": ["a", "b"]})) == [
        "subjects is ['a', 'b']"
    ]


def test_a_hole_is_found_on_its_server():
    found = check_replicas(copies(copy(1, 9, 9), copy(1, 9, 6), copy(1, 9, 9)), "dengine")

    [finding] = found
    assert finding.subject == "copy of stream 'dengine' on n1"
    assert finding.problem == "3 of the sequences 1 to 9 are missing"
    assert "Stop n1, remove its store" in finding.reason


def test_a_lost_beginning_is_found():
    found = check_replicas(copies(copy(1, 9, 9), copy(4, 9, 6), copy(1, 9, 9)), "dengine")

    assert [(finding.subject, finding.problem) for finding in found] == [
        ("copy of stream 'dengine' on n1", "begins at sequence 4")
    ]


def test_a_copy_that_is_behind_is_no_damage():
    behind, purged = copy(1, 5, 5), copy(4, 9, 6)

    assert check_replicas(copies(behind, purged, purged), "dengine") == []


def test_an_empty_stream_has_no_holes():
    assert check_replicas(copies(*[copy(0, 0, 0)] * 3), "dengine") == []
    assert check_replicas(copies(*[copy(10, 9, 0)] * 3), "dengine") == []


def test_missing_copies_are_found():
    two = copies(copy(1, 9, 9), copy(1, 9, 9), {})

    assert problems(check_replicas(two, "dengine")) == ["copies on n0, n1 only"]
    assert problems(check_replicas(two, "other")) == ["not on n0, n1, n2"]
    # Of a server that was not asked nothing is known.
    assert check_replicas(copies(copy(1, 9, 9)), "dengine") == []


async def test_real_servers_are_as_the_log_needs_them(tmp_path):
    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream())
            last = await publish(client.jetstream(), 10)
            info = await stream_info(client)
        servers.wait_copied("dengine", last)

        for url in servers.monitoring:
            varz, jsz = await fetch_monitoring(url, "/varz"), await fetch_monitoring(url, "/jsz")
            assert check_server(varz, jsz, min_payload_bytes=8 << 20) == []
        assert check_stream(info.config, subject="log") == []
        assert check_replicas(pages(servers), "dengine") == []


async def test_a_real_server_that_is_set_up_wrongly(tmp_path):
    lazy = LocalServers(tmp_path, 1, sync_always=False, max_payload_bytes=1000)
    with lazy as servers:
        async with connected(servers.urls) as client:
            js = client.jetstream()
            await make_stream(js, 1, discard="old", deny_delete=False)
            await publish(js, 5)
            await js.delete_msg("dengine", 3)
            info = await stream_info(client)
        url = servers.monitoring[0]

        found = check_server(read_monitoring(url, "/varz"), read_monitoring(url, "/jsz"))
        assert problems(found) == ["max_payload is 1000 bytes", "syncs every 120 s"]
        assert problems(check_stream(info.config.as_dict())) == [
            "discard is 'old'",
            "deny_delete is False",
            "num_replicas is 1",
        ]
        assert problems(check_replicas(pages(servers), "dengine")) == [
            "1 of the sequences 1 to 5 are missing"
        ]


async def test_a_damaged_copy_is_found_and_mends_when_it_is_wiped(tmp_path):
    with LocalServers(tmp_path) as servers:
        async with connected(servers.urls) as client:
            await make_stream(client.jetstream())
            # More than one block of 8 MiB: the last is still in the Raft log.
            last = await publish(client.jetstream(), 24, b"x" * 1_000_000)
        servers.wait_copied("dengine", last)
        follower = (servers.leader_of("dengine") + 1) % 3
        servers.terminate(follower)
        [block] = servers.store(follower).glob("jetstream/A/streams/dengine/msgs/1.blk")
        data = bytearray(block.read_bytes())
        data[len(data) // 2] ^= 1
        block.write_bytes(data)

        servers.start_one(follower)
        servers.wait_copied("dengine", last)
        damaged = check_replicas(pages(servers), "dengine")
        servers.kill(follower)
        servers.wipe(follower)
        servers.start_one(follower)
        servers.wait_copied("dengine", last)

        assert [finding.subject for finding in damaged] == [
            f"copy of stream 'dengine' on n{follower}"
        ]
        assert check_replicas(pages(servers), "dengine") == []


async def test_a_page_that_cannot_be_read_says_why(tmp_path):
    with LocalServers(tmp_path, 1) as servers:
        [url] = servers.monitoring
        with pytest.raises(MonitoringError, match=r"/nowhere: status 404") as missing:
            await fetch_monitoring(url, "/nowhere")
        assert missing.value.status == 404
        with pytest.raises(MonitoringError, match=r"the answer is no JSON"):
            await fetch_monitoring(url, "/")
        servers.pause(0)
        with pytest.raises(MonitoringError, match=r"timed out; expected an answer within 0\.2 s"):
            await fetch_monitoring(url, "/varz", timeout_s=0.2)

    with pytest.raises(MonitoringError, match="Connection refused"):
        await fetch_monitoring(url, "/varz")
    with pytest.raises(MonitoringError, match=r"expected http://HOST:PORT"):
        await fetch_monitoring("file:///etc/passwd", "")


async def test_a_log_refuses_servers_that_sync_late_or_cannot_be_seen(tmp_path):
    with LocalServers(tmp_path / "good") as good:
        all_seen = NatsLogOptions(good.urls, monitoring=good.monitoring)
        await refuse_lazy_servers(all_seen)
        good.kill(0)
        await refuse_lazy_servers(all_seen)
        good.kill(1)
        with pytest.raises(CommitLogError, match=r"1 of 3 servers .* answered; expected 2 or more"):
            await refuse_lazy_servers(all_seen)
        with pytest.raises(CommitLogError, match=r"0 of 0 servers"):
            await refuse_lazy_servers(NatsLogOptions(good.urls))

    with LocalServers(tmp_path / "lazy", 1, sync_always=False) as lazy:
        options = NatsLogOptions(lazy.urls, replicas=1, monitoring=lazy.monitoring)
        with pytest.raises(CommitLogError, match=r"server n0: syncs every 120 s; expected sync_in"):
            await refuse_lazy_servers(options)
