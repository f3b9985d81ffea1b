"""The seam between the store and a Python binding of RocksDB.

A binding opens a database with three column families: the default one for the user's keys,
`internal` for the machine's rows, `store` for the store's own. It lets exceptions of its library
through; `database_error` tells what they mean. Nothing is called after `close`, or while it
runs: the engine above sees to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Protocol

import attrs

from dengine_sm import CorruptionError, StorageError, StorageLockedError
from dengine_sm.kv import WriteBatch
from dengine_sm_rocksdb.options import RocksDBOptions
from dengine_sm_rocksdb.recovery import Tail

INTERNAL_FAMILY = "internal"

Rows = Iterator[tuple[bytes, bytes]]
Get = Callable[[bytes], bytes | None]


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

    def rows(self, start: bytes, stop: bytes | None, *, internal: bool) -> Rows:
        """Iterate over a range; may just end early at a damaged block, see `check_end`."""
        ...

    def check_end(self, start: bytes, stop: bytes | None, *, internal: bool) -> bool:
        """Tell whether nothing is left in a range; raise if that cannot be known."""
        ...


class Pinned(Reader, Protocol):
    """One state of a database."""

    def close(self) -> None:
        """Let it go."""
        ...


class Database(Reader, Protocol):
    """An open database."""

    def write(self, batch: WriteBatch, own_row: bytes, *, sync: bool) -> None:
        """Write a batch, and before its changes the row `chunk` of the store, as one."""
        ...

    def sync(self) -> None:
        """Make all that was written durable, entries of new files included."""
        ...

    def pin(self, no_writes: Lock) -> Pinned:
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
