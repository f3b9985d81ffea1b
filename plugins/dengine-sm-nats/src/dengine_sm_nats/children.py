"""Child processes that die with their parent, even when that one is killed. Linux only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

_REAPER = Path(__file__).with_name("reaper.py")
_STOP_TIMEOUT_S = 10.0

# The child itself tells the reaper its number, so that no moment is left in which it runs and
# the reaper does not know; then it lets go of the pipe, whose end is the parent's end.
_ANNOUNCE = 'echo $$ >&0; exec "$@" </dev/null'


class Children:
    """Starts processes, each in a session of its own, and leaves none behind.

    A second program, the reaper, kills them when this process is gone. It also inherits
    `keep_open`: a lock that a file descriptor holds is free only when they are dead. A copy
    of this process made by `os.fork` alone counts as this process.
    """

    def __init__(self, *, keep_open: Sequence[int] = ()) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        reading, self._pipe = os.pipe()
        try:
            self._reaper = subprocess.Popen(  # noqa: S603 - a program of ours
                [sys.executable, "-I", "-S", str(_REAPER)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                pass_fds=keep_open,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reading)

    def spawn(
        self,
        command: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes] = subprocess.STDOUT,
    ) -> subprocess.Popen[bytes]:
        """Start a process; the caller waits for it or leaves it to `close`."""
        process = subprocess.Popen(  # noqa: S603 - what the caller wants
            ["/bin/sh", "-c", _ANNOUNCE, "sh", *command],
            stdin=self._pipe,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Stop every process, by SIGTERM and then by SIGKILL, and the reaper; idempotent."""
        for process in self._processes:
            signal_process(process, signal.SIGCONT)
            signal_process(process, signal.SIGTERM)
        for process in self._processes:
            end(process)
        self._processes.clear()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
            self._reaper.wait()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def signal_process(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process; nothing happens when it is gone."""
    if process.poll() is None:
        process.send_signal(number)


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to stop; kill it when it takes too long."""
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
