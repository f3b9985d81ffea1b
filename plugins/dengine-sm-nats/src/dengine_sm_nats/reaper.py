"""Kills the processes that a dead parent left behind; run as a program, by `Children`.

Standard input is a pipe that the parent, and nobody else, keeps open. Each child writes its
own process id there before it becomes the program it is to be, and when the pipe ends, the
parent is gone, whatever killed it. `PR_SET_PDEATHSIG` would be shorter, but it acts when the
thread that started the child ends, and it is easily a worker's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys


def watch(announcements: int) -> None:
    """Hold a handle of every announced process; kill all of them when the pipe ends."""
    handles = []
    with open(announcements, encoding="ascii") as pids:
        for line in pids:
            # A handle, as the number may be another process's by then.
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(int(line)))
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    for handle in handles:
        select.select([handle], [], [])


if __name__ == "__main__":
    watch(sys.stdin.fileno())
