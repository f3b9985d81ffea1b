"""A disk that is full, read-only or failing, for whoever writes through `dengine_sm.files`."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from dengine_sm.conformance.power import ForgetfulFileSystem
from dengine_sm.errors import StorageError

WRITES = frozenset({"write", "pwrite"})
SYNCS = frozenset({"fsync", "sync_directory"})
GROWING = WRITES | {"create", "mkdir"}
"""Calls that need space."""
CHANGING = GROWING | {"open", "overwrite", "truncate", "replace", "unlink"}
"""Calls that need the permission to write; an `overwrite` is within the file's size."""


@attrs.frozen
class Fault:
    """Which calls fail, and how."""

    text: str
    calls: frozenset[str]
    error: int = errno.EIO
    is_lasting: bool = False
    """All of them from then on; else one."""
    is_short: bool = False
    """The first one takes half of what is to be written, and raises nothing."""


FAULTS = (
    Fault("one call finds no space", GROWING, errno.ENOSPC),
    Fault("there is no space from then on", GROWING, errno.ENOSPC, is_lasting=True),
    Fault("one call meets an I/O error", CHANGING | SYNCS),
    Fault("every call meets an I/O error from then on", CHANGING | SYNCS, is_lasting=True),
    Fault("one sync meets an I/O error", SYNCS),
    Fault("every sync meets an I/O error from then on", SYNCS, is_lasting=True),
    Fault("one write is short", WRITES, is_short=True),
    Fault(
        "one write is short and there is no space from then on",
        WRITES,
        errno.ENOSPC,
        is_lasting=True,
        is_short=True,
    ),
)

NO_PERMISSION = tuple(
    Fault(f"{os.strerror(error).lower()}", CHANGING, error, is_lasting=True)
    for error in (errno.EROFS, errno.EACCES)
)


class FaultyFileSystem(ForgetfulFileSystem):
    """Lets a chosen call fail, below its root, and records like any forgetful one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[str] = []
        """Every call so far that was to change something."""
        self.struck: list[str] = []
        """Every call that the fault has met."""
        self._fault: Fault | None = None
        self._calls_left = 0

    def arm(self, fault: Fault, at: int) -> None:
        """Let the `at`-th of the fault's calls from now on fail, from 1."""
        self._fault, self._calls_left = fault, at

    def disarm(self) -> None:
        """Let the cause be gone."""
        self._fault = None

    def _before(self, call: str, path: str, size: int = 0) -> int:
        self.calls.append(call)
        fault = self._fault
        if fault is None or call not in fault.calls:
            return size
        self._calls_left -= 1
        if self._calls_left > 0 or (self._calls_left < 0 and not fault.is_lasting):
            return size
        self.struck.append(f"{call} {path or '.'!r}")
        if fault.is_short and self._calls_left == 0:
            return size // 2
        raise OSError(fault.error, os.strerror(fault.error), path)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Let threads of a machine die of a failing disk without a word to stderr."""
    earlier = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError | StorageError):
            earlier(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = earlier
