"""One PySyncObj node with a journal, in a process of its own; prints its rate as JSON.

`default` leaves the ticking to its own thread, as its documentation does; `notified`
lets every command wake that thread; `tick` ticks in a busy loop, which is the fastest way;
`tick-synced` does so too and syncs the journal before each tick, so that, as on the
embedded log, nothing is acknowledged that is not on the disk.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated

from benchmarks.workload import pairs


class Store(SyncObj):  # type: ignore[misc]  # pysyncobj has no annotations
    """A replicated dict."""

    def __init__(self, address: str, conf: Any, others: Sequence[str] = ()) -> None:
        super().__init__(address, list(others), conf=conf)
        self.state: dict[bytes, bytes] = {}

    @replicated  # type: ignore[untyped-decorator]  # pysyncobj has no annotations
    def put(self, key: bytes, value: bytes) -> bool:
        """Put a key."""
        self.state[key] = value
        return True


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pipeline:
    """Keeps a number of puts in flight until all are done."""

    def __init__(self, put: Callable[..., Any], work: Sequence[tuple[Any, ...]]) -> None:
        self._put = put
        self._work = iter(work)
        self._missing = len(work)
        self.done = threading.Event()

    def begin(self, in_flight: int) -> None:
        """Start the first puts; each that ends starts the next."""
        for _ in range(in_flight):
            self._next()

    def _next(self) -> None:
        for arguments in self._work:
            self._put(*arguments, callback=self._finished)
            return

    def _finished(self, result: Any, error: Any) -> None:
        if error or result is not True:
            raise RuntimeError(f"put: expected True, observed {result!r}, error {error!r}")
        self._missing -= 1
        if self._missing:
            self._next()
        else:
            self.done.set()


def _journal_sync(store: Store) -> Callable[[], object]:
    # PySyncObj has no setting for it; a tick acknowledges what the tick before it wrote.
    flush: Callable[[], object] = store._SyncObj__raftLog.flush
    return flush


def main(arguments: list[str]) -> None:
    """Measure once: DIRECTORY COUNT IN_FLIGHT MODE."""
    directory, count, in_flight, mode = Path(arguments[0]), *map(int, arguments[1:3]), arguments[3]
    ticking = mode.startswith("tick")
    conf = SyncObjConf(
        journalFile=str(directory / "journal"),
        fullDumpFile=str(directory / "dump"),
        autoTick=not ticking,
        appendEntriesUseBatch=mode != "notified",
        logCompactionMinEntries=1 << 30,
        logCompactionMinTime=1 << 30,
    )
    store = Store(f"127.0.0.1:{free_port()}", conf)
    while not store.isReady() or store._getLeader() is None:
        if ticking:
            store.doTick(0.01)
        else:
            time.sleep(0.01)
    sync = _journal_sync(store) if mode == "tick-synced" else None
    pipeline = Pipeline(store.put, pairs(count))
    start = time.perf_counter()
    pipeline.begin(in_flight)
    if ticking:
        while not pipeline.done.is_set():
            if sync is not None:
                sync()
            store.doTick(0.0)
    else:
        pipeline.done.wait()
    elapsed = time.perf_counter() - start
    assert len(store.state) == count
    print(json.dumps({"rate": count / elapsed}), flush=True)
    store.destroy()


if __name__ == "__main__":
    main(sys.argv[1:])
