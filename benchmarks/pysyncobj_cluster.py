"""Three PySyncObj nodes, a process each; the leader puts, and prints its rate as JSON.

`DIRECTORY COUNT IN_FLIGHT MODE`, the modes `default` and `notified` of
`benchmarks.pysyncobj_node`. It is given single puts only: with commands of 256 KiB, as
1,000 puts in one are, version 0.3.17 loses itself in half received entries.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from pysyncobj import SyncObjConf

from benchmarks.pysyncobj_node import Pipeline, Store, free_port
from benchmarks.workload import pairs

_NODES = 3
_POLL_S = 0.01
_LONGEST_S = 60.0


def _member(directory: Path, addresses: list[str], count: int, in_flight: int, mode: str) -> None:
    conf = SyncObjConf(
        journalFile=str(directory / "journal"),
        fullDumpFile=str(directory / "dump"),
        appendEntriesUseBatch=mode != "notified",
        logCompactionMinEntries=1 << 30,
        logCompactionMinTime=1 << 30,
    )
    store = Store(addresses[0], conf, addresses[1:])
    rows = pairs(count)
    while not store.isReady() or not _all_connected(store):
        time.sleep(_POLL_S)
    # Who leads may change until the first put has arrived everywhere.
    while not store.state:
        if store._isLeader():
            pipeline = Pipeline(store.put, rows)
            start = time.perf_counter()
            pipeline.begin(in_flight)
            pipeline.done.wait()
            print(json.dumps({"rate": count / (time.perf_counter() - start)}), flush=True)
            break
        time.sleep(_POLL_S)
    time.sleep(_LONGEST_S)  # the parent ends this process


def _all_connected(store: Store) -> bool:
    status = store.getStatus()
    connections = [status[key] for key in status if key.startswith("partner_node_status")]
    return connections == [2] * (_NODES - 1)


def _parent(directory: str, *arguments: str) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(_NODES)]
    members: list[subprocess.Popen[bytes]] = []
    reading, writing = os.pipe()
    try:
        for number in range(_NODES):
            own = Path(directory) / str(number)
            own.mkdir(parents=True, exist_ok=True)
            order = addresses[number:] + addresses[:number]
            program = [sys.executable, "-m", "benchmarks.pysyncobj_cluster", "member"]
            members.append(
                subprocess.Popen([*program, str(own), *arguments, *order], stdout=writing)
            )
        if not select.select([reading], [], [], _LONGEST_S)[0]:
            raise TimeoutError(f"no node led and put everything within {_LONGEST_S} s")
        print(os.read(reading, 1000).decode(), end="", flush=True)
    finally:
        for member in members:
            member.kill()
            member.wait()


if __name__ == "__main__":
    if sys.argv[1] == "member":
        own, count, in_flight, mode = sys.argv[2:6]
        _member(Path(own), sys.argv[6:], int(count), int(in_flight), mode)
    else:
        _parent(*sys.argv[1:])
