"""Machines in other processes: called as if they were here, killed for real."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from dengine_sm.conformance.maker import Maker
from dengine_sm.conformance.processes.wire import (
    ProcessDied,
    pack,
    receive,
    send,
    unpack,
    unpack_error,
)
from dengine_sm.contract import (
    StateMachine,
    SupportsGetMulti,
    SupportsQuery,
    SupportsScanPrefix,
)
from dengine_sm.validation import protocol_methods

ANSWER_TIMEOUT_S = 120.0
"""A machine that is silent for so long hangs; a backstop, not a measure."""

METHODS = tuple(
    name
    for protocol in (StateMachine, SupportsGetMulti, SupportsScanPrefix, SupportsQuery)
    for name in protocol_methods(protocol)
)


class Nursery:
    """Starts machines of one factory, each in a process of its own; a context manager.

    Args:
        maker: how the new process finds the factory.
        environment: variables to set in the processes; None removes one.
    """

    def __init__(self, maker: Maker, environment: Mapping[str, str | None] | None = None) -> None:
        self._maker = maker
        self._environment = environment or {}
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._machines: list[RemoteMachine] = []

    def __enter__(self) -> Nursery:
        self._directory = tempfile.TemporaryDirectory(prefix="dengine-sm-nursery-")
        stderr = self._stderr_path.open("wb")
        with stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    # Not a shim: strace would count the shim's system calls too.
                    os.path.realpath(sys.executable)
                    if sys.prefix == sys.base_prefix
                    else sys.executable,
                    "-m",
                    "dengine_sm.conformance.processes.nursery",
                    str(self._socket_path),
                    self._maker.to_json(),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._merged_environment(),
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            said = self.stderr()
            self.__exit__(None, None, None)
            raise ProcessDied(
                f"another process cannot construct the machine ({self._maker.name}): {said}",
                stderr=said,
            )
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for machine in self._machines:
            machine.kill()
        self._machines.clear()
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def spawn(self, directory: Path, *preparations: Sequence[Any]) -> RemoteMachine:
        """Construct a machine on a directory in a new process; it is not started.

        Args:
            directory: the machine's.
            preparations: `(name, *args)` of functions of `nursery.PREPARATIONS`, called first.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(str(self._socket_path))
        machine = RemoteMachine(connection, self)
        self._machines.append(machine)
        for name, *args in preparations:
            machine.request("prepare", name, *args)
        machine.construct(directory)
        return machine

    def stderr(self) -> str:
        """Return the end of what the processes wrote to stderr."""
        with contextlib.suppress(OSError):
            return self._stderr_path.read_text(errors="replace")[-4000:].strip()
        return ""

    @property
    def _root(self) -> Path:
        assert self._directory is not None, "the nursery is not entered"
        return Path(self._directory.name)

    @property
    def _socket_path(self) -> Path:
        return self._root / "socket"

    @property
    def _stderr_path(self) -> Path:
        return self._root / "stderr"

    def _merged_environment(self) -> dict[str, str]:
        merged = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        for name, value in self._environment.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = value
        return merged


@attrs.frozen
class StepReport:
    """What became of one step of a script."""

    number: int
    begun: bool = False
    ended: bool = False
    value: Any = None
    error: Exception | None = None


@attrs.frozen
class ScriptReport:
    """What a process told of its script before it ended or was killed."""

    steps: tuple[StepReport, ...]
    is_done: bool
    """False when the process was killed meanwhile."""

    @property
    def ended(self) -> int:
        """How many steps ended without an error."""
        return sum(step.ended for step in self.steps)


class RemoteMachine:
    """A machine in another process.

    It has the machine's methods, all of them sync here: `apply_chunk` too is called
    without await. Errors of dengine_sm come back as themselves, others as `RemoteError`;
    `ProcessDied` says that the process is gone.
    """

    def __init__(self, connection: socket.socket, nursery: Nursery) -> None:
        self._connection = connection
        self._nursery = nursery
        self._methods: frozenset[str] = frozenset()
        _, self.pid = self._receive()
        self._pidfd = os.pidfd_open(self.pid)

    def construct(self, directory: Path) -> None:
        """Construct the machine; `spawn` does it."""
        self._methods = frozenset(self.request("construct", "", directory, METHODS))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(f"the machine has no method {name!r}")

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.request("call", name, *args, **kwargs)

        return call

    def call_in_thread(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a sync method of the machine in another thread of its process."""
        return self.request("call_in_thread", name, *args, **kwargs)

    def begin(self, task: str, name: str, *args: Any) -> None:
        """Begin an async method and leave it where it first waits."""
        self.request("begin", task, name, *args)

    def finish(self, task: str) -> Any:
        """Wait for what `begin` began."""
        return self.request("finish", task)

    def prepare(self, name: str, *args: Any) -> Any:
        """Call a function of `nursery.PREPARATIONS` in the process."""
        return self.request("prepare", name, *args)

    def request(self, kind: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Ask and wait for the answer."""
        self._send([kind, name, pack(list(args)), pack(kwargs)])
        return self._answer()

    def begin_script(self, steps: Sequence[tuple[str, Sequence[Any], bool]]) -> None:
        """Let the process call methods on its own: `(method, args, may_fail)` each."""
        packed = pack([[[name, list(args), may_fail] for name, args, may_fail in steps]])
        self._send(["script", "", packed, pack({})])

    def script_events(self) -> Iterator[tuple[str, int]]:
        """Yield `(begin | end | error | done, step)` as they come; ends when the process does."""
        for kind, number, *_ in self._raw_events():
            yield kind, number

    def script_report(self, steps: int) -> ScriptReport:
        """Read what the process tells until the script, or the process, ends."""
        found = {number: StepReport(number) for number in range(steps)}
        is_done = False
        for kind, number, *more in self._raw_events():
            match kind:
                case "begin":
                    found[number] = StepReport(number, begun=True)
                case "end":
                    found[number] = StepReport(number, True, True, unpack(more[0]))
                case "error":
                    found[number] = StepReport(number, True, False, None, unpack_error(more[0]))
                case "done":
                    is_done = True
        return ScriptReport(tuple(found.values()), is_done)

    def _raw_events(self) -> Iterator[list[Any]]:
        while True:
            try:
                item = self._receive()
            except ProcessDied:
                return
            yield item
            if item[0] == "done":
                self._answer()
                return

    def kill(self) -> None:
        """Send SIGKILL and wait until the process is gone, with its locks; idempotent."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.wait_until_dead()

    def wait_until_dead(self) -> None:
        """Wait for the end of the process, and forget it."""
        if self._pidfd < 0:
            return
        select.select([self._pidfd], [], [], ANSWER_TIMEOUT_S)
        os.close(self._pidfd)
        self._pidfd = -1
        self._connection.close()

    def _send(self, item: Any) -> None:
        try:
            send(self._connection, item)
        except OSError as exc:
            raise self._died() from exc

    def _receive(self) -> Any:
        try:
            return receive(self._connection)
        except EOFError:
            raise self._died() from None
        except TimeoutError:
            self.kill()
            raise AssertionError(
                f"the machine's process gave no answer for {ANSWER_TIMEOUT_S:.0f} s; killed"
            ) from None

    def _answer(self) -> Any:
        is_well, value = self._receive()
        if is_well:
            return unpack(value)
        raise unpack_error(value)

    def _died(self) -> ProcessDied:
        said = self._nursery.stderr()
        return ProcessDied(
            f"the machine's process {self.pid} is gone{said and ': ' + said}", stderr=said
        )
