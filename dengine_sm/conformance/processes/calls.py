"""Lets a process kill itself at its n-th call out of Python: a crash point without a tracer.

What a machine writes in Python it writes by such calls, so a sweep over them is exact; a
native engine is met at the edges of its own calls, and inside them by signals and strace.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

_FILE_CALLS = frozenset(
    {
        *("open", "write", "writelines", "pwrite", "writev", "pwritev", "flush", "__exit__"),
        *("fsync", "fdatasync", "sync", "truncate", "ftruncate", "posix_fallocate"),
        *("rename", "replace", "remove", "unlink", "rmdir", "mkdir", "link", "symlink"),
        *("sendfile", "copy_file_range"),
    }
)
_FILE_MODULES = frozenset({"posix", "io", "_io", "mmap"})
_ENGINES_OF_PYTHON = frozenset({"sqlite3", "_sqlite3", "dbm", "_dbm", "_gdbm"})
_KITS_OWN = frozenset({"_cbor2", "cbor2", "attr", "attrs"})


class _Counter:
    def __init__(self) -> None:
        self.calls = 0
        self.kill_at = 0
        self.is_set = False


_counter = _Counter()


def kill_at_call(number: int) -> None:
    """Die, as by SIGKILL, before the n-th such call from now on; 0 only counts them."""
    _counter.calls, _counter.kill_at = 0, number
    if not _counter.is_set:
        _counter.is_set = True
        threading.setprofile(_on_event)
        sys.setprofile(_on_event)


def calls_so_far() -> int:
    """Return how many calls `kill_at_call` has counted."""
    return _counter.calls


def _on_event(_frame: Any, event: str, function: Any) -> None:
    if event == "c_call" and _leads_out(function):
        _counter.calls += 1
        if _counter.calls == _counter.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _leads_out(function: Any) -> bool:
    """Tell whether a built-in function may change a file."""
    module = (
        getattr(function, "__module__", None)
        or type(getattr(function, "__self__", None)).__module__
        or ""
    )
    if module in _FILE_MODULES:
        return function.__name__ in _FILE_CALLS
    top = module.partition(".")[0]
    if top in _ENGINES_OF_PYTHON:
        return True
    return top not in sys.stdlib_module_names and top not in _KITS_OWN
