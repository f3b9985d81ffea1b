"""A forked child must leave its parent's databases alone.

The child has the handles but none of RocksDB's threads: closing one would wait for them without
end, and write to files that the parent writes to. So in a child the handles are forgotten,
by a reference that is never given back.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol


class Forgettable(Protocol):
    """Somebody with native handles."""

    def forget(self) -> None:
        """Give the handles up without closing them."""
        ...


_open: weakref.WeakSet[Any] = weakref.WeakSet()
_is_registered = False


def forget_in_children(owner: Forgettable) -> None:
    """Call `owner.forget` in every child that is forked while the owner lives."""
    global _is_registered
    if not _is_registered:
        os.register_at_fork(after_in_child=_forget)
        _is_registered = True
    _open.add(owner)


def _forget() -> None:
    for owner in tuple(_open):
        owner.forget()
    _open.clear()


def never_free(handle: object) -> None:
    """Keep an object, and what it refers to, until the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))
