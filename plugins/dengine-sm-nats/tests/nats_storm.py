"""Three servers, three nodes on three backends, clients on all of them, and faults.

    python plugins/dengine-sm-nats/tests/nats_storm.py --seconds 600 --seed 1

Afterwards: whatever was acknowledged is there, nothing is in the log twice, all nodes have the
same indices and the same state, and what the clients saw is linearizable.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
from dengine_sm_nats.connection import connect, patiently
from dengine_sm_nats.frames import Commands, UnreadableMessageError, decode_frame
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.published import SnapshotBoard
from dengine_sm_nats.reader import Reader
from nats_faults import (
    BACKENDS,
    NODE_FAULTS,
    SERVER_FAULTS,
    STREAM,
    Cluster,
    Fault,
    keep_failing,
)
from nats_nodes import NodeProcess

from dengine_sm.client import Client
from dengine_sm.errors import ClientError
from dengine_sm.kv import Put, encode_command
from dengine_sm.model import Outcome, ReadConsistency

REGISTERS = 6


@attrs.define
class Recorder:
    """What clients asked for and saw, by one clock."""

    operations: list[dict[str, Any]] = attrs.field(factory=list)
    dropped: list[dict[str, Any]] = attrs.field(factory=list)
    """Reads that failed, and writes that were told not to have happened."""
    acknowledged: set[bytes] = attrs.field(factory=set)
    last_ack_s: float = attrs.field(factory=time.monotonic)
    longest_gap_s: float = 0.0
    unknown: int = 0
    refused: int = 0

    def acked(self) -> None:
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_ack_s)
        self.last_ack_s = now_s


# Clients


async def work_registers(
    name: str, node: NodeProcess, recorder: Recorder, rng: random.Random, stop: asyncio.Event
) -> None:
    """Read, write and compare-and-swap a few keys, one operation at a time."""
    number = 0
    seen: dict[bytes, bytes | None] = {}
    while not stop.is_set():
        async with client_of(node) as client:
            while not stop.is_set():
                number += 1
                key = b"r/%d" % rng.randrange(REGISTERS)
                new = f"{name}-{number}".encode()
                kind = rng.choice(("read", "read", "write", "cas"))
                operation: dict[str, Any] = {"process": name, "key": key, "kind": kind}
                operation["call"] = time.monotonic()
                try:
                    if kind == "read":
                        operation["result"] = seen[key] = await client.get(key)
                    elif kind == "write":
                        operation["argument"] = new
                        await client.put(key, new)
                        seen[key] = new
                    else:
                        expected = seen.get(key)
                        operation["argument"] = (expected, new)
                        matched = await client.compare_and_swap(key, expected, new)
                        operation["result"] = matched
                        # Another client may have been faster; the next read tells.
                        seen.pop(key, None)
                        if matched:
                            seen[key] = new
                except ClientError as exc:
                    if kind != "read" and not exc.outcome_known:
                        recorder.unknown += 1
                        operation["returned"] = None
                        recorder.operations.append(operation)
                    else:
                        recorder.refused += 1
                        operation["refused"] = str(exc)
                        recorder.dropped.append(operation)
                    await asyncio.sleep(0.05)
                    break
                operation["returned"] = time.monotonic()
                recorder.operations.append(operation)
                recorder.acked()
                await asyncio.sleep(0.002)


async def work_blocks(
    name: str, node: NodeProcess, recorder: Recorder, stop: asyncio.Event
) -> None:
    """Write keys that nobody else writes, 20 in a request."""
    number = 0
    while not stop.is_set():
        async with client_of(node) as client:
            while not stop.is_set():
                keys = [f"b/{name}/{number + i:08}".encode() for i in range(20)]
                number += 20
                try:
                    results = await client.apply([encode_command(Put(k, k[-8:])) for k in keys])
                except ClientError:
                    await asyncio.sleep(0.05)
                    break
                assert all(result.outcome is Outcome.APPLIED for result in results)
                recorder.acknowledged.update(keys)
                recorder.acked()
                await asyncio.sleep(0.005)


def client_of(node: NodeProcess) -> Client:
    return node.client(timeout_s=8.0)


# Judgement


async def judge(cluster: Cluster, recorder: Recorder) -> dict[str, Any]:
    """Compare the nodes with each other, with the log, and with what clients were told."""
    stopped = [node for node in cluster.nodes if not node.is_running]
    for node in stopped:
        # It gave up on servers that did not answer in time; a supervisor starts it again.
        print(f"{node.name} stopped itself:\n{node.errors[-500:]}", file=sys.stderr)
        await node.start_until_ready()
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(node.client(timeout_s=60.0)) for node in cluster.nodes
        ]
        await clients[0].put(b"end", b"1")
        states = []
        for client in clients:
            await client.get(b"end")  # linearizable: everything before it is applied here
            entries: dict[bytes, bytes] = {}
            async for page in client.scan_pages(consistency=ReadConsistency.EVENTUAL):
                entries.update(page.entries)
            states.append(entries)
        indices = [(await client.status())["last_applied"]["index"] for client in clients]
    lost = [key for key in recorder.acknowledged if any(key not in state for state in states)]
    doubled, log_index = await read_log(cluster)
    return {
        "lost": len(lost),
        "doubled": doubled,
        "indices": indices,
        "log_index": log_index,
        "states_equal": all(state == states[0] for state in states),
        "entries": len(states[0]),
        "stopped_themselves": [node.name for node in stopped],
    }


async def read_log(cluster: Cluster) -> tuple[int, int]:
    """Count what the stream holds, from the older published snapshot on.

    Returns:
        How many messages are in it twice, and the index of the last command.
    """
    options = NatsLogOptions(servers=list(cluster.servers.urls))
    client = await connect(options, "judge")
    try:
        js = client.jetstream()
        board = SnapshotBoard(js, options)
        await board.open()
        published = await board.published()
        index, sequence = 0, 0
        if published:
            index, sequence = published[-1].position.index, published[-1].position.sequence
        last = (await patiently(lambda: js.stream_info(STREAM), 30)).state.last_seq
        seen: Counter[tuple[bytes, int]] = Counter()
        batches = Reader(client, js, STREAM, sequence + 1, 3.0).batches()
        while sequence < last:
            for message in await anext(batches):
                sequence = message.sequence
                try:
                    frame = decode_frame(message.data)
                except UnreadableMessageError:
                    index += 1
                    continue
                if isinstance(frame, Commands):
                    seen[frame.sender, frame.number] += 1
                    index += len(frame.payloads)
        await batches.aclose()
        return sum(number - 1 for number in seen.values()), index
    finally:
        await client.close()


def linearizable(recorder: Recorder) -> str | None:
    """Return what is wrong with the history, or None."""
    from linearizability import Operation, check

    verdict = check(
        [
            Operation(
                process=operation["process"],
                key=operation["key"],
                kind=operation["kind"],
                argument=operation.get("argument"),
                result=operation.get("result"),
                call=operation["call"],
                returned=operation["returned"],
            )
            for operation in recorder.operations
        ]
    )
    return None if verdict.linearizable else str(verdict)


async def storm(
    directory: Path,
    seconds: float,
    seed: int,
    *,
    pause_s: float = 10.0,
    server_faults: tuple[Fault, ...] = SERVER_FAULTS,
    node_faults: tuple[Fault, ...] = NODE_FAULTS,
    backends: tuple[str, ...] = BACKENDS,
) -> dict[str, Any]:
    """Run faults under load for some seconds, then judge."""
    rng = random.Random(seed)
    recorder, counts, stop = Recorder(), Counter[str](), asyncio.Event()
    cluster = Cluster(directory, backends)
    began_s = time.monotonic()
    try:
        await cluster.start()
        recorder.last_ack_s = time.monotonic()
        clients = [
            asyncio.create_task(
                work_registers(
                    f"c{i}", cluster.nodes[i % 3], recorder, random.Random(rng.random()), stop
                )
            )
            for i in range(6)
        ] + [
            asyncio.create_task(work_blocks(f"w{i}", cluster.nodes[i], recorder, stop))
            for i in range(3)
        ]
        until_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as faults:
            for kinds in filter(None, (server_faults, node_faults)):
                own = random.Random(rng.random())
                faults.create_task(keep_failing(cluster, kinds, own, pause_s, counts, until_s))
        await cluster.healed()
        await asyncio.sleep(2.0)  # some writes without a fault, so that all is seen to go on
        stop.set()
        await asyncio.gather(*clients)
        report = await judge(cluster, recorder)
        (directory / "operations.txt").write_text(
            "\n".join(map(repr, recorder.operations + recorder.dropped))
        )
        report["wrong"] = await asyncio.to_thread(linearizable, recorder)
        report |= {
            "seconds": round(time.monotonic() - began_s),
            "operations": len(recorder.operations),
            "acknowledged": len(recorder.acknowledged),
            "unknown": recorder.unknown,
            "refused": recorder.refused,
            "longest_gap_s": round(recorder.longest_gap_s, 1),
            "faults": dict(counts),
            "node_starts": [node.starts for node in cluster.nodes],
            "stream_bytes": (
                await asyncio.to_thread(cluster.servers.replica_state, 0, STREAM) or {}
            ).get("bytes"),
        }
        return report
    finally:
        stop.set()
        with contextlib.suppress(Exception):
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        await cluster.stop()


def assert_sound(report: dict[str, Any]) -> None:
    assert report["lost"] == 0, report
    assert report["doubled"] == 0, report
    assert len(set(report["indices"])) == 1, report
    assert report["indices"][0] == report["log_index"], report
    assert report["states_equal"], report
    assert report["wrong"] is None, report["wrong"]
    assert report["acknowledged"] > 0, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=10, help="seconds of a freeze or partition")
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--faults", nargs="*", help="only these")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests" / "kit"))
    wanted = set(given.faults or ())
    directory = given.dir or Path(tempfile.mkdtemp(prefix="nats-storm-"))
    report = asyncio.run(
        storm(
            directory,
            given.seconds,
            given.seed,
            pause_s=given.pause,
            server_faults=tuple(f for f in SERVER_FAULTS if not wanted or f.__name__ in wanted),
            node_faults=tuple(f for f in NODE_FAULTS if not wanted or f.__name__ in wanted),
        )
    )
    print(json.dumps(report, indent=1))
    assert_sound(report)
    if given.dir is None:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
