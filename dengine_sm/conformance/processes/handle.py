"""A process that is not our child: signalled and waited for without mistaking another for it."""

from __future__ import annotations

import contextlib
import os
import select
import signal


class ProcessHandle:
    """Refers to one process, also when its number belongs to another by now.

    Raises:
        ProcessLookupError: there is no such process any more.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        """Send a signal and do not wait; nothing happens to a process that is gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the process and forget it; kill it when the time is over.

        Returns:
            Whether it ended in time.
        """
        if self._pidfd < 0:
            return True
        ended = select.poll()  # select() takes no descriptor above 1023
        ended.register(self._pidfd, select.POLLIN)
        has_ended = bool(ended.poll(timeout_s * 1000))
        if not has_ended:
            self.send_signal(signal.SIGKILL)
        os.close(self._pidfd)
        self._pidfd = -1
        return has_ended
