"""Threads that run checks, each one check after the other.

Hypothesis looks through every object of the process when a thread first uses it, which in a
test run takes longer than many a check.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable


class Worker:
    """A thread that carries out what it is given; it does not hold up the process's end."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def begin(self, name: str, task: Callable[[], None]) -> None:
        """Begin a task that raises nothing; the thread has the name meanwhile and after."""
        self.thread.name = name
        self._tasks.put(task)

    def _run(self) -> None:
        while True:
            self._tasks.get()()


_idle: list[Worker] = []
os.register_at_fork(after_in_child=_idle.clear)  # threads stay behind


def take_worker() -> Worker:
    """Return a worker that has nothing to do."""
    try:
        return _idle.pop()
    except IndexError:
        return Worker()


def give_back(worker: Worker) -> None:
    """Let others have a worker that has done its task, or is about to return from it."""
    _idle.append(worker)
