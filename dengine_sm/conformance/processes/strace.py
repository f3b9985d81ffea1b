"""Attaches strace to a process: lists its write-class system calls, kills or fails one.

strace counts the calls of each name, and of each thread, on its own. A call that is
killed or failed is not carried out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import attrs

from dengine_sm.conformance.violation import CannotCheckError

SYNC_CALLS = ("fsync", "fdatasync", "sync_file_range", "msync")
DATA_CALLS = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "fallocate")
NAME_CALLS = (
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
    *("ftruncate", "truncate", "link", "linkat", "symlink", "symlinkat"),
)
OPEN_CALLS = ("open", "openat", "creat")
"""Only those that may make a file count."""
WRITE_CALLS = (*DATA_CALLS, *SYNC_CALLS, *NAME_CALLS, *OPEN_CALLS)

_SEND = "sendto"
"""How a process tells the kit of its script: it parts the calls of one step from the next."""
_LINE = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_DESCRIPTOR = re.compile(r"(?:AT_FDCWD|\b\d+)<(?P<path>[^>]*)>")
_QUOTED = re.compile(r'"(?P<path>(?:[^"\\]|\\.)*)"')
_WAIT_S = 60.0
_MAX_STRING = 8 << 20
"""Bytes of one write; of a larger one strace shows a part."""


@attrs.frozen
class Call:
    """One system call of a traced process."""

    thread: int
    name: str
    number: int
    """How many of this name the thread had made, this one included."""
    paths: tuple[str, ...]
    """Files that it names, by descriptor or by path."""
    words: int
    """How often the process had told of its script before."""
    is_injected: bool
    is_failed: bool
    """It returned an error, injected or not."""

    @property
    def is_sync(self) -> bool:
        """Whether it asks for durability."""
        return self.name in SYNC_CALLS

    @property
    def step(self) -> int:
        """Number of the script's step that it belongs to."""
        return max(0, self.words - 1) // 2

    def is_below(self, directory: Path) -> bool:
        """Whether it touches a file below a directory; what names no file may."""
        prefix = f"{directory}/"
        return not self.paths or any(f"{path}/".startswith(prefix) for path in self.paths)


def require_strace() -> str:
    """Return strace's path, or leave the check."""
    path = shutil.which("strace")
    if path is None:
        raise CannotCheckError(
            "strace is not installed: no system call can be seen or made to fail"
        )
    return path


class Strace:
    """Traces a process from entering to its end; a context manager.

    Args:
        pid: the process.
        log: file that strace writes.
        inject: `NAME:...` of strace's `-e inject=`, several joined by space; empty for none.
        names: of the calls to log; those that write, unless given.
        with_data: logs all strings whole, in hexadecimal.
    """

    def __init__(
        self,
        pid: int,
        log: Path,
        inject: str = "",
        *,
        names: Iterable[str] = WRITE_CALLS,
        with_data: bool = False,
    ) -> None:
        self._pid = pid
        self._log = log
        self._inject = inject.split()
        self._names = tuple(names)
        self._strings = ("-xx", "-s", str(_MAX_STRING)) if with_data else ("-s", "0")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Strace:
        """Attach.

        Raises:
            CannotCheckError: strace is missing or may not trace.
        """
        traced = ",".join(f"?{name}" for name in (*self._names, _SEND))
        command = [require_strace(), "-f", "-y", *self._strings, "-o", str(self._log)]
        command += ["-p", str(self._pid), "-e", f"trace={traced}", "-e", "signal=none"]
        for inject in self._inject:
            command += ["-e", f"inject={inject}"]
        environment = {**os.environ, "LC_ALL": "C"}
        self._process = subprocess.Popen(  # noqa: S603 - found by name, arguments are ours
            command, stderr=subprocess.PIPE, env=environment
        )
        assert self._process.stderr is not None
        said = b""
        while b" attached" not in said:
            line = self._process.stderr.readline()
            if not line:
                self.__exit__(None, None, None)
                text = said.decode(errors="replace").strip()
                raise CannotCheckError(f"strace cannot trace a process here: {text}")
            said += line
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stderr is not None
        process.terminate()
        try:
            process.wait(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()

    def wait(self) -> None:
        """Wait until the traced process has ended and all is in the log."""
        assert self._process is not None
        self._process.wait(timeout=_WAIT_S)

    def detach(self) -> None:
        """Leave the process alone; what was injected is over."""
        self.__exit__(None, None, None)

    def lines(self) -> list[str]:
        """Return the log so far."""
        return self._log.read_text(errors="replace").splitlines()

    def calls(self) -> list[Call]:
        """Return the write-class calls logged so far, in their order."""
        return parse_log(self.lines())


def parse_log(lines: Iterable[str]) -> list[Call]:
    """Return the write-class calls of a log."""
    counts: Counter[tuple[int, str]] = Counter()
    calls: list[Call] = []
    channel, words = "", 0
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            # A call that was interrupted in the log ends on a line of its own.
            _finish(calls, line)
            continue
        thread, name, rest = int(found["thread"]), found["name"], found["rest"]
        if name == _SEND:
            channel = channel or rest.partition(",")[0]
            words += rest.partition(",")[0] == channel
            continue
        counts[thread, name] += 1
        if name not in OPEN_CALLS or "O_CREAT" in rest or name == "creat":
            number = counts[thread, name]
            paths = _paths_of(name, rest)
            injected, failed = "(INJECTED)" in rest, ") = -1 " in rest
            calls.append(Call(thread, name, number, paths, words, injected, failed))
    return calls


def _finish(calls: list[Call], line: str) -> None:
    """Note on an unfinished call of the same thread how it ended."""
    thread, _, rest = line.partition(" ")
    if not rest.lstrip().startswith("<... ") or ") = -1 " not in rest:
        return
    name = rest.lstrip()[len("<... ") :].partition(" ")[0]
    for place in range(len(calls) - 1, -1, -1):
        call = calls[place]
        if (str(call.thread), call.name) == (thread, name):
            calls[place] = attrs.evolve(call, is_failed=True, is_injected="(INJECTED)" in rest)
            return


def _paths_of(name: str, rest: str) -> tuple[str, ...]:
    """Return the files a call names: of a descriptor, or quoted, below their directory."""
    arguments = rest.partition(") = ")[0]
    if name in DATA_CALLS or name in SYNC_CALLS or name == "ftruncate":
        found = _DESCRIPTOR.match(arguments)
        return (found["path"],) if found else ()
    paths = []
    base = Path("/")
    position = 0
    while position < len(arguments):
        descriptor = _DESCRIPTOR.match(arguments, position)
        quoted = _QUOTED.match(arguments, position)
        if descriptor is not None:
            base = Path(descriptor["path"])
        elif quoted is not None:
            paths.append(str(base / quoted["path"]))
        found = descriptor or quoted
        position = found.end() if found else position + 1
    return tuple(paths)
