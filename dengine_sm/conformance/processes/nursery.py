"""The other side of `incubator.py` and `remote.py`: processes that fork nurseries and machines.

A nursery imports the factory and never opens a machine itself, so that every machine begins
with an engine that has neither threads nor locks. An incubator forks nurseries and knows no
factory. To each come the sockets that its children are to serve.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import importlib
import inspect
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dengine_sm.conformance.maker import Maker, OpenStateMachine
from dengine_sm.conformance.power import skip_syncs
from dengine_sm.conformance.processes.calls import calls_so_far, kill_at_call
from dengine_sm.conformance.processes.wire import (
    READY,
    SERVE,
    framed,
    pack,
    pack_error,
    receive,
    send,
    unpack,
)
from dengine_sm.conformance.tripwire import (
    arm_tripwires,
    disarm_tripwires,
    set_tripwires,
    shift_clock,
)

_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61


def incubate(modules: Sequence[str]) -> None:
    """Import modules, then fork a nursery for every socket that comes over stdin."""
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # no child needs to look through all that
    with socket.socket(fileno=sys.stdin.fileno()) as control:
        _fork_for_each(control, _hatch)


def _fork_for_each(control: socket.socket, live: Callable[[socket.socket], None]) -> None:
    """Fork a process for every socket that comes, until the other side hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, len(SERVE), 1)
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            connection.set_inheritable(False)
            _fork(connection, live)


def _fork(connection: socket.socket, live: Callable[[socket.socket], None]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        traceback.print_exc()  # the kit sees the connection closed
        return
    if pid == 0:
        _live_and_exit(connection, live, parent)


def _live_and_exit(
    connection: socket.socket, live: Callable[[socket.socket], None], parent: int
) -> NoReturn:
    """Serve the kit until it hangs up, then die without a word, as in a crash."""
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # One that hangs or was stopped would outlive a kit that is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == parent:
            live(connection)
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _hatch(connection: socket.socket) -> None:
    """Become like the kit's process, import the factory, and fork machines."""
    send(connection, ["pid", os.getpid()])
    maker, path, directory, environment, output = receive(connection)
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, sys.stdout.fileno())  # one that prints must not wait for a reader
    os.dup2(written, sys.stderr.fileno())
    os.close(written)
    if directory:
        os.chdir(directory)
    os.environb.clear()
    os.environb.update(environment)
    sys.path[:] = [os.fsdecode(place) for place in path]
    importlib.invalidate_caches()
    factory = Maker.from_json(maker).resolve()
    connection.sendall(READY)
    _fork_for_each(connection, partial(_serve_machine, factory))


def _serve_machine(factory: OpenStateMachine, connection: socket.socket) -> None:
    os.setsid()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Where ptrace is limited to ancestors, strace is only a cousin.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    Servant(connection, factory).serve()


class Servant:
    """Carries out requests on the machine of this process."""

    def __init__(self, connection: socket.socket, factory: OpenStateMachine) -> None:
        self._connection = connection
        self._factory = factory
        self._machine: Any = None
        self._runner = asyncio.Runner()
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def serve(self) -> None:
        """Answer every request `[kind, name, args, kwargs]` with `[True, value]` or an error."""
        send(self._connection, ["pid", os.getpid()])
        while True:
            kind, name, args, kwargs = receive(self._connection)
            try:
                handler: Callable[..., Any] = getattr(self, f"_do_{kind}")
                value = handler(name, *unpack(args), **unpack(kwargs))
                answer = framed([True, pack(value)])
            except BaseException as exc:  # a native library's panic is no Exception
                answer = framed([False, pack_error(exc, traceback.format_exc())])
            self._connection.sendall(answer)

    def _do_construct(self, _name: str, directory: Path, methods: Sequence[str]) -> list[str]:
        self._machine = self._factory(directory)
        return [method for method in methods if callable(getattr(self._machine, method, None))]

    def _do_call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        outcome = getattr(self._machine, name)(*args, **kwargs)
        if inspect.iscoroutine(outcome):
            return self._runner.run(_awaited(outcome))
        return outcome

    def _do_run(self, name: str, *args: Any) -> Any:
        """Call a function `module:name` of the kit with the machine and the arguments."""
        module, _, function = name.partition(":")
        outcome = getattr(importlib.import_module(module), function)(self._machine, *args)
        if inspect.iscoroutine(outcome):
            return self._runner.run(_awaited(outcome))
        return outcome

    def _do_call_in_thread(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a sync method in a thread of its own."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(getattr(self._machine, name), *args, **kwargs).result()

    def _do_begin(self, task: str, name: str, *args: Any) -> None:
        """Begin an async method, up to its first suspension."""

        async def begin() -> None:
            self._tasks[task] = asyncio.ensure_future(getattr(self._machine, name)(*args))
            await asyncio.sleep(0)

        self._runner.run(begin())

    def _do_finish(self, task: str) -> Any:
        """Wait for what was begun."""

        async def finish() -> Any:
            return await self._tasks.pop(task)

        return self._runner.run(finish())

    def _do_script(self, _name: str, steps: Sequence[Sequence[Any]]) -> None:
        """Call methods one after the other; tell of each before and after.

        A step `[method, args, may_fail]`; the first error that may not be ends the script.
        """
        for number, (name, args, may_fail) in enumerate(steps):
            send(self._connection, ["begin", number])
            try:
                told = framed(["end", number, pack(self._do_call(name, *args))])
            except BaseException as exc:
                send(self._connection, ["error", number, pack_error(exc, traceback.format_exc())])
                if not may_fail:
                    break
            else:
                self._connection.sendall(told)
        send(self._connection, ["done", len(steps)])

    def _do_prepare(self, name: str, *args: Any) -> Any:
        """Change this process before the machine starts; see the functions below."""
        return PREPARATIONS[name](*args)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def one_thread_only() -> None:
    """Run what is handed to threads at once, in the calling thread.

    With one thread the n-th system call is the same call in every run, so that a sweep
    over n meets each exactly once. It is one of the orders that threads could take.
    """

    def submit(
        _self: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)
        return future

    def start(self: threading.Thread) -> None:
        self._started.set()  # type: ignore[attr-defined]  # what is_alive and join look at
        with contextlib.suppress(SystemExit):
            self.run()
        self._finished_inline = True  # type: ignore[attr-defined]  # ours

    threading.Thread.start = start  # type: ignore[method-assign]  # in this process only
    threading.Thread.join = lambda self, timeout=None: None  # type: ignore[method-assign]
    threading.Thread.is_alive = lambda self: False  # type: ignore[method-assign]
    concurrent.futures.ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]


def limit_file_size(size_bytes: int) -> None:
    """Let no file grow beyond a size: writes then fail with EFBIG, as on a full disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, most))


def lift_file_size_limit() -> None:
    """Undo `limit_file_size`."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def obey_permissions() -> None:
    """Give up root's right to write where no permission says so; others have none."""
    version_3 = 0x20080522
    header = (ctypes.c_uint32 * 2)(version_3, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, no_capabilities)


def limit_address_space(size_bytes: int) -> None:
    """Let the process grow by so much at most; more is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size_bytes, most))


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PREPARATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        one_thread_only,
        limit_file_size,
        lift_file_size_limit,
        obey_permissions,
        limit_address_space,
        peak_memory_bytes,
        kill_at_call,
        calls_so_far,
        set_tripwires,
        arm_tripwires,
        disarm_tripwires,
        shift_clock,
        skip_syncs,
    )
}
