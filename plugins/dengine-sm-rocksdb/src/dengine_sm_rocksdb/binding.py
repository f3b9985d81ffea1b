"""The seam between the store and a Python binding of RocksDB.

A binding opens a database with three column families: the default one for the user's keys,
`internal` for the machine's rows, `store` for the store's own. It lets exceptions of its library
through; `database_error` tells what they mean. Nothing is called after `close`, or while it
runs: the engine above sees to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol

import attrs

from dengine_sm import CorruptionError, StorageError, StorageLockedError
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.options import RocksDBOptions
from dengine_sm_rocksdb.recovery import Tail

INTERNAL_FAMILY = "internal"

Page = list[tuple[bytes, bytes]]
Get = Callable[[bytes], bytes | None]


class Cursor(Protocol):
    """A native iterator: it sees the state of the moment in which it was made."""

    def page(self, start: bytes, stop: bytes | None, size: int) -> Page:
        """Return the first entries of a range, `size` at most, in key order.

        Fewer than `size` are all there are: a damaged block raises.
        """
        ...


class Reader(Protocol):
    """Reads of a database, or of a state of it that is pinned."""

    @property
    def get(self) -> Get:
        """The read of a user's key: the binding's own method where it can be."""
        ...

    @property
    def get_internal(self) -> Get:
        """The read of a row of the machine."""
        ...

    @property
    def get_own(self) -> Get:
        """The read of a row of the store."""
        ...

    def get_multi(self, keys: list[bytes]) -> list[bytes | None]:
        """Read several of the user's keys."""
        ...

    def cursor(self, *, internal: bool) -> Cursor:
        """Return a cursor over the machine's rows or the user's keys, for one scan."""
        ...


@attrs.frozen
class Pin:
    """What pins a state: cursors, and the row of the store."""

    data: Cursor
    internal: Cursor
    own_row: bytes | None


class Database(Reader, Protocol):
    """An open database."""

    def write(self, batch: WriteBatch, own_row: bytes, *, sync: bool) -> None:
        """Write a batch, and before its changes the row `chunk` of the store, as one."""
        ...

    def sync(self) -> None:
        """Make all that was written durable, entries of new files included."""
        ...

    def pin(self, no_writes: Lock) -> Pin:
        """Pin the present state; who holds the lock can be sure that nobody writes."""
        ...

    def statistics(self) -> str:
        """Return what the engine tells about itself."""
        ...

    def finish(self) -> None:
        """Make durable a database that was opened as `bulk`."""
        ...

    def close(self) -> None:
        """Close it; what was not synced may be lost."""
        ...


@attrs.frozen
class Opening:
    """How to open a database."""

    path: Path
    options: RocksDBOptions
    is_new: bool = False
    """Create it, instead of expecting it."""
    tail: Tail | None = None
    """The newest whole record of its WALs."""


class OpenDatabase(Protocol):
    """A binding: opens databases."""

    def __call__(self, opening: Opening) -> Database:
        """Open a database."""
        ...


_PLACE = re.compile(r"(/[^:]*?/(?:\d+\.(?:sst|log|blob)|MANIFEST-\d+|CURRENT))\b")
_OFFSET = re.compile(r"\boffset (\d+)")
_DAMAGE = (
    "corrupt",
    "no such file",
    "not found",
    "does not exist",
    "not opened",
    "bad table magic",
)


def database_error(exc: BaseException, directory: Path, action: str, state: str) -> StorageError:
    """Return the error that an exception of RocksDB stands for.

    Args:
        exc: raised by a binding; its text is RocksDB's own.
        directory: of the database.
        action: what was tried, after "cannot".
        state: what is left behind.
    """
    if isinstance(exc, StorageError):
        return exc
    # The frames of a traceback would keep native handles, and with them the database open.
    exc.__traceback__ = None
    # python-rocksdb raises with bytes.
    raw = exc.args[0] if exc.args else None
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(exc)
    lower = text.lower()
    place = _PLACE.search(text)
    path = Path(place[1]) if place and Path(place[1]).is_relative_to(directory) else directory
    if "lock hold by current process" in lower or "resource temporarily unavailable" in lower:
        return StorageLockedError(f"'{directory}': cannot {action}: {text}; {state}", path=path)
    if any(word in lower for word in _DAMAGE):
        offset = _OFFSET.search(text)
        return CorruptionError(
            f"'{path}': cannot {action}: {text}; {state}",
            path=path,
            offset=int(offset[1]) if offset else 0,
        )
    return StorageError(f"'{directory}': cannot {action}: {text}; {state}", path=path)
