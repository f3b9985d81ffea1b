"""Notices clocks, randomness, environment and network while a machine applies (DET-2).

Meant for a process of its own: what is patched stays patched. Nothing is raised, since a
machine could swallow it; calls are written down with the line that made them. Reads by
the interpreter itself (imports, logging, asyncio, thread pools) are nobody's fault.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import os
import random
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

_STDLIB = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")
)
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
"""Directories inside the standard library that are not of it."""
_KIT = str(Path(__file__).parent) + os.sep
_MACHINERY = ("asyncio", "concurrent", "threading.py", "queue.py", "selectors.py", "tempfile.py")
"""Parts of the standard library that look at clock and randomness for their own sake."""
_ANYWHERE = ("importlib", "logging", "warnings.py", "traceback.py", "linecache.py")
"""Parts below which everything is excused: a formatter may well print the time."""
_ENTROPY_FILES = frozenset({"/dev/random", "/dev/urandom"})

_CLOCKS = (
    "time",
    "time_ns",
    "monotonic",
    "monotonic_ns",
    "perf_counter",
    "perf_counter_ns",
    "process_time",
    "process_time_ns",
    "thread_time",
    "thread_time_ns",
    "clock_gettime",
    "clock_gettime_ns",
)
_CLOCKS_WITHOUT_ARGUMENT = {"localtime": 0, "gmtime": 0, "ctime": 0, "asctime": 0, "strftime": 1}
"""Functions of `time` that look at the clock when called with no more arguments than this."""


class _Watch:
    """What is armed and what was found; one in a process."""

    def __init__(self) -> None:
        self.thread: int | None = None
        """The thread that applies; None while nothing is watched."""
        self.worker = threading.local()
        """`.is_watched` is set in a thread that the event loop was given work for."""
        self.found: dict[tuple[str, str, int, str], None] = {}

    def notice(self, what: str) -> None:
        """Write down who called, if that is the machine's doing."""
        is_here = self.thread == threading.get_ident() or getattr(self.worker, "is_watched", False)
        if self.thread is None or not is_here:
            return
        frame = _culprit(sys._getframe(1))
        if frame is not None:
            code = frame.f_code
            self.found[what, code.co_filename, frame.f_lineno, code.co_qualname] = None


_watch = _Watch()


def _culprit(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of the machine or its libraries; None for nobody's."""
    found: FrameType | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        part = _stdlib_part(name)
        if part is None:
            if name.startswith(_KIT) and not name.endswith("tripwire.py"):
                break
            if found is None and not name.startswith(("<", _KIT)):
                found = frame
        elif part.startswith(_ANYWHERE) or (found is None and part.startswith(_MACHINERY)):
            return None
        frame = frame.f_back
    return found


@functools.cache
def _stdlib_part(name: str) -> str | None:
    """Return the path of a file inside the standard library; None for any other."""
    if name.startswith("<frozen "):
        return name.removeprefix("<frozen ")
    real = os.path.realpath(name)
    if any(name in real for name in _INSTALLED):
        return None
    for root in _STDLIB:
        if real.startswith(root):
            return real.removeprefix(root)
    return None


def set_tripwires() -> None:
    """Patch this process: from here on `arm_tripwires` works."""
    for name in _CLOCKS:
        _wrap(time, name, f"time.{name}()")
    for name, most in _CLOCKS_WITHOUT_ARGUMENT.items():
        _wrap(time, name, f"time.{name}()", at_most=most)
    _wrap(asyncio.BaseEventLoop, "time", "the event loop's time()")
    _replace(datetime.datetime, _watched_class(datetime.datetime, ("now", "utcnow", "today")))
    _replace(datetime.date, _watched_class(datetime.date, ("today",)))
    _watch_random()
    _wrap(os, "urandom", "os.urandom()")
    _wrap(os, "getrandom", "os.getrandom()")
    _wrap(uuid, "uuid1", "uuid.uuid1()")
    _watch_environment()
    _watch_workers()
    sys.addaudithook(_audit)


def arm_tripwires() -> None:
    """Watch the calling thread, and what its event loop hands to others."""
    _watch.found.clear()
    _watch.thread = threading.get_ident()


def disarm_tripwires() -> list[list[Any]]:
    """Stop watching; return what was called, `[what, file, line, function]` each."""
    _watch.thread = None
    return [list(call) for call in _watch.found]


def _wrap(owner: Any, name: str, what: str, *, at_most: int | None = None) -> None:
    """Replace a function, wherever a module has it, by one that is noticed.

    Args:
        owner: module or class that has it.
        name: its name there.
        what: how a finding calls it.
        at_most: calls with more arguments than this are innocent.
    """
    original = getattr(owner, name, None)
    if original is None:
        return

    @functools.wraps(original)
    def noticed(*args: Any, **kwargs: Any) -> Any:
        if at_most is None or len(args) <= at_most:
            _watch.notice(what)
        return original(*args, **kwargs)

    setattr(owner, name, noticed)
    _replace(original, noticed)


def _replace(original: Any, replacement: Any) -> None:
    """Put a replacement into every module that imported the original by name."""
    for module_name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", None)
        if module_name == __name__ or not isinstance(names, dict):
            continue
        for name, value in list(names.items()):
            if value is original:
                names[name] = replacement


def _watched_class(real: Any, clocks: tuple[str, ...]) -> Any:
    """Return a class that makes and recognises objects of the real one."""

    class Transparent(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return real(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, real)

    def watched(name: str) -> Any:
        def clock(*args: Any, **kwargs: Any) -> Any:
            _watch.notice(f"{real.__name__}.{name}()")
            return getattr(real, name)(*args, **kwargs)

        return staticmethod(clock)

    methods = {name: watched(name) for name in clocks}
    return Transparent(real.__name__, (real,), {"__module__": real.__module__, **methods})


def _watch_random() -> None:
    """Notice numbers of generators that were not seeded with a value."""
    unseeded = "_dengine_sm_unseeded"
    seed = random.Random.seed
    shared = random.random.__self__  # type: ignore[attr-defined]  # the module's own generator

    def seed_and_remember(self: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
        if a is None:
            _watch.notice("an unseeded random.Random()")
        setattr(self, unseeded, a is None)
        seed(self, a, *args, **kwargs)

    random.Random.seed = seed_and_remember  # type: ignore[method-assign]  # in this process only
    for name in ("random", "getrandbits"):
        original = getattr(random.Random, name)

        def draw(self: Any, *args: Any, name: str = name, original: Any = original) -> Any:
            if getattr(self, unseeded, self is shared):
                _watch.notice(f"random.{name}()")
            return original(self, *args)

        setattr(random.Random, name, draw)
        bound = getattr(random, name)
        _replace(bound, getattr(shared, name))


def _watch_environment() -> None:
    environ = type(os.environ)
    for name in ("__getitem__", "__iter__", "__contains__", "get"):
        original = getattr(environ, name)

        def read(self: Any, *args: Any, original: Any = original) -> Any:
            _watch.notice("os.environ")
            return original(self, *args)

        setattr(environ, name, read)


def _watch_workers() -> None:
    """Count work that an apply hands to threads through the event loop, and waits for, as its."""
    original = asyncio.BaseEventLoop.run_in_executor

    def run_in_executor(
        self: Any, executor: Any, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        if _watch.thread != threading.get_ident():
            return original(self, executor, function, *args)

        def watched() -> Any:
            _watch.worker.is_watched = True
            try:
                return function(*args)
            finally:
                _watch.worker.is_watched = False

        return original(self, executor, watched)

    asyncio.BaseEventLoop.run_in_executor = run_in_executor  # type: ignore[assignment,method-assign]


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watch.thread is None:
        return
    if event.startswith("socket.") and event != "socket.close":
        _watch.notice(event)
    elif event == "open" and args[0] in _ENTROPY_FILES:
        _watch.notice(f"open({args[0]!r})")


def shift_clock(offset_s: int, step_s: int) -> None:
    """Let every clock differ by an offset, and the wall clock jump at every look.

    Args:
        offset_s: added to all clocks.
        step_s: the wall clock goes on by so much, besides, each time it is read.
    """
    looks = 0
    real = {name: getattr(time, name) for name in _CLOCKS if hasattr(time, name)}

    def shifted(name: str, unit: int) -> Callable[..., Any]:
        is_wall = name in ("time", "time_ns")

        def clock(*args: Any) -> Any:
            nonlocal looks
            looks += is_wall
            return real[name](*args) + (offset_s + is_wall * looks * step_s) * unit

        return functools.wraps(real[name])(clock)

    wall = real["time"]
    for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
        clock = shifted(name, 10**9 if name.endswith("_ns") else 1)
        setattr(time, name, clock)
        _replace(real[name], clock)
    _shift_dates(lambda: float(time.time()) - wall())


def _shift_dates(offset_s: Callable[[], float]) -> None:
    for real, names in (
        (datetime.datetime, ("now", "utcnow", "today")),
        (datetime.date, ("today",)),
    ):
        watched = _watched_class(real, ())
        for name in names:

            def shifted(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
                moment = getattr(real, name)(*args, **kwargs)
                return moment + datetime.timedelta(seconds=offset_s())

            setattr(watched, name, staticmethod(shifted))
        _replace(real, watched)
