"""A process that copies again and again, each time in a child that is killed at another point.

Run as `python copy_child.py SOURCE TARGET`, both `BACKEND:DIR`. For each number on stdin a
child copies and kills itself before its file operation of that number; the answer is a line
with how many operations were left when the copy ended, or `killed`. A child that is to be
killed before operation 1,000,000 so tells how many there are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dengine_sm import loader
from dengine_sm.copying import BackendDirectory, copy_state
from dengine_sm.files import OsFileSystem, replaced_file_system

AUDITED = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "sqlite3.connect",
}


class Countdown:
    """Kills the process before an operation; path operations below the root count."""

    def __init__(self, operations: int, root: str) -> None:
        self.left = operations
        self._root = root

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and arguments and str(arguments[0]).startswith(self._root):
            self.tick()

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Counted(OsFileSystem):
    """The file system, for the calls that are not audited by Python."""

    def __init__(self, countdown: Countdown) -> None:
        self._countdown = countdown

    def write(self, fd: int, data: Any) -> int:
        self._countdown.tick()
        return super().write(fd, data)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self._countdown.tick()
        return super().pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        self._countdown.tick()
        super().fsync(fd)

    def sync_directory(self, path: Path) -> None:
        self._countdown.tick()
        super().sync_directory(path)


def place(text: str) -> BackendDirectory:
    backend, _, directory = text.partition(":")
    return BackendDirectory(backend, Path(directory))


def copy_and_die(operations: int, source: BackendDirectory, target: BackendDirectory) -> None:
    # The preflight works elsewhere; it would only take time.
    loader.run_preflight = lambda *_, **__: []  # type: ignore[assignment]
    countdown = Countdown(operations, str(target.directory))
    sys.addaudithook(countdown.audit)
    with replaced_file_system(Counted(countdown)):
        asyncio.run(copy_state(source, target))
    print(countdown.left, flush=True)


def main() -> None:
    source, target = place(sys.argv[1]), place(sys.argv[2])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            copy_and_die(int(line), source, target)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == signal.SIGKILL:
            print("killed", flush=True)
        elif status:
            sys.exit(f"the copy failed by itself: {status}")


if __name__ == "__main__":
    main()
