"""Reads in other threads while a machine stops; runs in the machine's own process."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dengine_sm.errors import NotRunningError

Problem = list[str]
"""`[method, expected, observed]`"""

_THREADS = 3
_SWITCH_INTERVAL_S = 2e-5
_MAX_PROBLEMS = 3


def stop_while_others_read(machine: Any, keys: Sequence[bytes]) -> list[Problem]:
    """Stop a running machine that nobody changes, while threads read it and flush it.

    Returns:
        What a call gave that was neither what it gave before nor `NotRunningError`, or,
        once `stop` had returned, anything but that.
    """
    calls = _calls(machine, keys)
    # A method that refuses these arguments also while running tells nothing.
    before = {name: call() for name, call in calls.items() if _answers(call)}
    race = _Race({name: (calls[name], value) for name, value in before.items()})
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        race.begin()
        machine.stop()
    finally:
        race.end()
        sys.setswitchinterval(interval_s)
    return race.problems[:_MAX_PROBLEMS]


def _calls(machine: Any, keys: Sequence[bytes]) -> dict[str, Callable[[], Any]]:
    calls: dict[str, Callable[[], Any]] = {
        name: getattr(machine, name)
        for name in ("last_applied", "len", "is_empty", "snapshot_metadata", "flush")
    }
    calls["flush_async"] = lambda: asyncio.run(machine.flush_async())
    calls["entry_term"] = partial(machine.entry_term, 1)
    for number, key in enumerate(keys):
        calls[f"get, key {number}"] = partial(machine.get, key)
    if hasattr(machine, "get_multi"):
        calls["get_multi"] = partial(machine.get_multi, list(keys))
    if hasattr(machine, "scan_prefix"):
        calls["scan_prefix"] = partial(machine.scan_prefix, b"")
    return calls


def _answers(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


class _Race:
    def __init__(self, reads: dict[str, tuple[Callable[[], Any], Any]]) -> None:
        self.problems: list[Problem] = []
        self._reads = reads
        self._has_stopped = threading.Event()
        self._all_read = threading.Barrier(_THREADS + 1)
        self._threads = [threading.Thread(target=self._run) for _ in range(_THREADS)]

    def begin(self) -> None:
        """Return when every thread has read everything once."""
        for thread in self._threads:
            thread.start()
        self._all_read.wait()

    def end(self) -> None:
        """Let every thread read once more, and end."""
        self._has_stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        self._look(has_stopped=False)
        self._all_read.wait()
        while not self._has_stopped.is_set() and not self.problems:
            self._look(has_stopped=False)
        self._has_stopped.wait()
        self._look(has_stopped=True)

    def _look(self, *, has_stopped: bool) -> None:
        for name, (read, value) in self._reads.items():
            expected = "NotRunningError" if has_stopped else f"{value!r:.200} or NotRunningError"
            try:
                observed = read()
            except NotRunningError:
                continue
            except BaseException as exc:  # a native library's panic is no Exception
                self.problems.append([name, expected, f"{type(exc).__name__}: {exc}"])
            else:
                if has_stopped or observed != value:
                    self.problems.append([name, expected, f"{observed!r:.200}"])
