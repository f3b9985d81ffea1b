"""What a process holds: descriptors, threads, children."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from pathlib import Path

_PROC = Path("/proc")


def can_tell() -> bool:
    """Whether this system lets a process look at itself."""
    return (_PROC / "self" / "fd").is_dir() and (_PROC / "self" / "task").is_dir()


def descriptors() -> Counter[str]:
    """Return what the open descriptors of this process lead to."""
    found: Counter[str] = Counter()
    with os.scandir(_PROC / "self" / "fd") as items:
        for item in items:
            with contextlib.suppress(OSError):
                found[_without_number(str(Path(item.path).readlink()))] += 1
    # The scan's own.
    found.subtract([f"{_PROC}/{os.getpid()}/fd"])
    return +found


def _without_number(target: str) -> str:
    """Name a pipe or socket by its kind: `socket:[4711]` is another one each time."""
    kind, separator, _ = target.partition(":[")
    return kind if separator else target


def threads() -> dict[int, str]:
    """Return the threads of this process, those of native libraries included, by their id."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = {}
    for task in (_PROC / "self" / "task").iterdir():
        with contextlib.suppress(OSError):
            native = (task / "comm").read_text().strip()
            found[int(task.name)] = python.get(int(task.name)) or f"{native} (native)"
    return found


def children() -> list[str]:
    """Return the names of this process's children, dead ones nobody waited for too."""
    found = []
    for stat in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, rest = stat.read_text().rpartition(")")
            if int(rest.split()[1]) == os.getpid():
                found.append(head.partition("(")[2])
    return found
