"""Machines in other processes: called as if they were here, killed for real."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from dengine_sm.conformance.maker import Maker
from dengine_sm.conformance.processes.handle import ProcessHandle
from dengine_sm.conformance.processes.incubator import kit_environment, lend_incubator
from dengine_sm.conformance.processes.wire import (
    READY,
    ProcessDied,
    ask_for_process,
    framed,
    pack,
    receive,
    refuse_in_nursery,
    send,
    unpack,
    unpack_error,
)
from dengine_sm.conformance.violation import CannotCheckError
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
        self._held = contextlib.ExitStack()
        self._root: Path | None = None
        self._process: ProcessHandle | None = None
        self._control: socket.socket | None = None
        """At its other end the process waits for sockets that machines are to serve."""
        self._machines: list[RemoteMachine] = []

    def __enter__(self) -> Nursery:
        """Start the process that imports the factory.

        Raises:
            CannotCheckError: it does not find the factory.
            RuntimeError: this process is one of the kit's itself.
        """
        refuse_in_nursery()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        environment = kit_environment(self._environment)
        name = self._held.enter_context(tempfile.TemporaryDirectory(prefix="dengine-sm-nursery-"))
        self._root = Path(name)
        self._stderr_path.touch()
        incubator = self._held.enter_context(lend_incubator(environment))
        why = ""
        try:
            control = self._control = incubator.hatch()
            control.settimeout(ANSWER_TIMEOUT_S)
            _, pid = receive(control)
            self._process = ProcessHandle(pid)
            send(control, self._order(environment))
            if control.recv(len(READY)) == READY:
                return
        except TimeoutError:
            why = f"importing it took more than {ANSWER_TIMEOUT_S:.0f} s"
        except (EOFError, OSError):
            pass
        said = self.stderr() or incubator.output()
        why = why or said.rpartition("\n")[2] or "it ended without a word"
        raise CannotCheckError(
            f"another process cannot construct the machine ({self._maker.name}): {why}"
        )

    def _order(self, environment: Mapping[str, str]) -> list[Any]:
        """Return all in which the new process is to be like this one."""
        variables = [[os.fsencode(k), os.fsencode(v)] for k, v in environment.items()]
        path = [os.fsencode(place) for place in sys.path]
        directory = b""
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it
            directory = os.fsencode(Path.cwd())
        return [self._maker.to_json(), path, directory, variables, os.fsencode(self._stderr_path)]

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for machine in self._machines:
            machine.kill()
        self._machines.clear()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            # It has nothing to finish, and may be stuck in an import.
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(ANSWER_TIMEOUT_S)
            self._process = None
        self._held.close()

    def spawn(self, directory: Path, *preparations: Sequence[Any]) -> RemoteMachine:
        """Construct a machine on a directory in a new process; it is not started.

        Args:
            directory: the machine's.
            preparations: `(name, *args)` of functions of `nursery.PREPARATIONS`, called first.
        """
        machine = RemoteMachine(self._connect(), self)
        self._machines.append(machine)
        for name, *args in preparations:
            machine.request("prepare", name, *args)
        machine.construct(directory)
        return machine

    def _connect(self) -> socket.socket:
        """Return a socket that a new process serves."""
        assert self._control is not None, "the nursery is not entered"
        try:
            connection = ask_for_process(self._control)
        except OSError as exc:
            said = self.stderr()
            raise ProcessDied(f"the nursery is gone: {said}", stderr=said) from exc
        connection.settimeout(ANSWER_TIMEOUT_S)
        return connection

    def stderr(self) -> str:
        """Return the end of what the processes wrote to stderr."""
        with contextlib.suppress(OSError):
            return self._stderr_path.read_text(errors="replace")[-4000:].strip()
        return ""

    @property
    def _stderr_path(self) -> Path:
        assert self._root is not None, "the nursery is not entered"
        return self._root / "stderr"


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
        self.pid = 0
        self._process: ProcessHandle | None = None
        try:
            _, self.pid = self._receive()
            self._process = ProcessHandle(self.pid)
        except ProcessLookupError:
            raise self._died() from None
        finally:
            if self._process is None:
                connection.close()

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

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a module-level function `(machine, *args)` in the machine's process."""
        return self.request("run", f"{function.__module__}:{function.__qualname__}", *args)

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

    def script_report(
        self, steps: int, *, on_event: Callable[[str, int], object] = lambda kind, step: None
    ) -> ScriptReport:
        """Read what the process tells until the script, or the process, ends.

        `on_event` is called with every `(begin | end | error | done, step)` as it comes.
        """
        found = {number: StepReport(number) for number in range(steps)}
        is_done = False
        for kind, number, *more in self._raw_events():
            on_event(kind, number)
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
            if isinstance(item[0], bool):  # an answer: the script could not go on
                raise unpack_error(item[1])
            yield item
            if item[0] == "done":
                with contextlib.suppress(ProcessDied):  # killed right after its last word
                    self._answer()
                return

    def send_signal(self, number: int) -> None:
        """Send a signal and do not wait; nothing happens to a process that is gone."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL and wait until the process is gone, with its locks; idempotent."""
        self.send_signal(signal.SIGKILL)
        self.wait_until_dead()

    def wait_until_dead(self) -> None:
        """Wait for the end of the process, and forget it.

        Raises:
            AssertionError: it does not end.
        """
        process, self._process = self._process, None
        if process is None:
            return
        has_ended = process.wait(ANSWER_TIMEOUT_S)
        self._connection.close()
        if not has_ended:
            raise AssertionError(
                f"the machine's process {self.pid} did not end within {ANSWER_TIMEOUT_S:.0f} s"
            )

    def _send(self, item: Any) -> None:
        data = framed(item)
        try:
            self._connection.sendall(data)
        except TimeoutError:
            raise self._silent() from None
        except OSError as exc:
            raise self._died() from exc

    def _receive(self) -> Any:
        try:
            return receive(self._connection)
        except TimeoutError:
            raise self._silent() from None
        except (EOFError, OSError):
            raise self._died() from None

    def _answer(self) -> Any:
        is_well, value = self._receive()
        if is_well:
            return unpack(value)
        raise unpack_error(value)

    def _silent(self) -> AssertionError:
        self.kill()
        return AssertionError(
            f"the machine's process gave no answer for {ANSWER_TIMEOUT_S:.0f} s; killed"
        )

    def _died(self) -> ProcessDied:
        # Its connection may be closed before its locks are: wait for the end of all.
        self.kill()
        said = self._nursery.stderr()
        return ProcessDied(
            f"the machine's process {self.pid} is gone{said and ': ' + said}", stderr=said
        )
