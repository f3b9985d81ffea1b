"""A machine in this process, called as one in another: all its methods are sync."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dengine_sm.conformance.trial import Trial


class LocalMachine:
    """What `RemoteMachine` offers, without the process, hence without a real kill."""

    def __init__(self, trial: Trial, directory: Path) -> None:
        self._trial = trial
        self._machine = trial.open(directory, start=False)
        self._tasks: dict[str, asyncio.Future[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._machine, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            outcome = method(*args, **kwargs)
            return self._trial.run(outcome) if inspect.isawaitable(outcome) else outcome

        return call

    def call_in_thread(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a sync method in another thread."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(getattr(self._machine, name), *args, **kwargs).result()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function `(machine, *args)`."""
        outcome = function(self._machine, *args)
        return self._trial.run(outcome) if inspect.isawaitable(outcome) else outcome

    def begin(self, task: str, name: str, *args: Any) -> None:
        """Begin an async method and leave it where it first waits."""

        async def begin() -> None:
            self._tasks[task] = asyncio.ensure_future(getattr(self._machine, name)(*args))
            await asyncio.sleep(0)

        self._trial.run(begin())

    def finish(self, task: str) -> Any:
        """Wait for what `begin` began."""
        return self._trial.run(self._tasks.pop(task))

    def kill(self) -> None:
        """Stop: nothing in this process can be killed."""
        for task in list(self._tasks):
            with contextlib.suppress(Exception):
                self.finish(task)
        with contextlib.suppress(Exception):
            self._machine.stop()
