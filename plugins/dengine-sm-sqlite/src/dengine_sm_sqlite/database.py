"""The files of a store: their names, whose they are, how they are made and connected to.

`state.sqlite` appears by a rename, complete. POSIX drops all of a process's locks on a
file as soon as the process closes any descriptor of it; without them another process (a
`sqlite3` shell) would delete the write-ahead log under our feet. So nobody but SQLite
opens `state.sqlite` while this process has it connected: see `claim`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dengine_sm.errors import (
    CorruptionError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.files import FileSystem, names_in, storage_errors, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE = "state.sqlite"
WAL = DATABASE + "-wal"
SHM = DATABASE + "-shm"
NEW = DATABASE + ".new"
LOCK = "LOCK"
SYNCED = "SYNCED"
APPLICATION_ID = 0x64534D53
"""`dSMS`: in the file's header, `PRAGMA application_id`."""
VERSION = 1
"""Of the layout: `PRAGMA user_version`."""
PAGE_BYTES = 4096
BUSY_TIMEOUT_S = 10.0
"""Only another program that writes the file makes anybody wait."""

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_WAL_MODE = b"\2\2"
_SCHEMA = """
    CREATE TABLE data (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE internal (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE totals (id INTEGER PRIMARY KEY CHECK (id = 1),
                         keys INTEGER NOT NULL, batches INTEGER NOT NULL);
    INSERT INTO totals VALUES (1, 0, 0);
"""
# What our fixed statements can only meet in a damaged file: a table or column is gone.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_claimed: set[tuple[int, int, int]] = set()
_claiming = threading.Lock()


def storage_error(exc: sqlite3.Error, path: Path, action: str, state: str) -> StorageError:
    """Return what to raise for an error of SQLite.

    Args:
        exc: the error.
        path: the database.
        action: what was tried, after "cannot".
        state: what is left behind.
    """
    code = getattr(exc, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _DAMAGE:
        return CorruptionError(
            f"'{path}' is damaged: {exc}; cannot {action}; {state}", path=path, offset=0
        )
    name = getattr(exc, "sqlite_errorname", type(exc).__name__)
    return StorageError(f"'{path}': cannot {action}: {exc} ({name}); {state}", path=path)


@contextmanager
def sqlite_errors(path: Path, action: str, state: str) -> Iterator[None]:
    """Turn an error of SQLite in the block into a StorageError."""
    try:
        yield
    except sqlite3.Error as exc:
        raise storage_error(exc, path, action, state) from exc


def is_failed_sync(exc: BaseException) -> bool:
    """Tell whether SQLite could not sync: what is durable is unknown from here on."""
    code = getattr(exc, "sqlite_errorcode", None)
    return code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


def connect(path: Path, *, cache_bytes: int, read_only: bool) -> sqlite3.Connection:
    """Open a connection that any one thread at a time may use.

    A read-only connection closed last leaves the write-ahead log as it is: SQLite would
    copy and delete it otherwise, also after a failure, when that must not happen.
    """
    uri = path.absolute().as_uri() + ("?mode=ro" if read_only else "?mode=rw")
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
    )
    try:
        connection.execute(f"PRAGMA cache_size = -{max(1, cache_bytes >> 10)}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def inspect(directory: Path) -> bool:
    """Tell whether a directory holds a store; False for an absent or a fresh one.

    Changes nothing, not even access to `LOCK`.

    Raises:
        StorageFormatError: it is another program's, or of a newer layout (LIFE-7).
        StorageLockedError: this process has it open (LIFE-6).
        CorruptionError: files of a store are there and its database is not, or not all of it.
        StorageError: the disk refused.
    """
    names = names_in(directory)
    if DATABASE in names:
        _check_header(directory / DATABASE)
        if SHM in names and WAL not in names:
            # SQLite deletes them together, the log last.
            raise _missing(directory / WAL, f"{SHM} is there")
        return True
    left = sorted(names & {WAL, SHM, SYNCED})
    if left:
        raise _missing(directory / DATABASE, f"{', '.join(left)} is there")
    foreign = sorted(name for name in names if name != LOCK and not name.startswith(NEW))
    if foreign:
        some = ", ".join(map(repr, foreign[:3]))
        raise StorageFormatError(
            f"data directory {str(directory)!r} is not one of the backend 'sqlite': it holds "
            f"{some}; expected an empty directory or a {DATABASE}; nothing was changed",
            path=directory,
            expected=DATABASE,
            observed=some,
        )
    return False


def _missing(path: Path, why: str) -> CorruptionError:
    return CorruptionError(
        f"'{path}' is missing, and {why}; nothing was changed", path=path, offset=0
    )


def _check_header(path: Path) -> None:
    with _claiming, storage_errors(path, "read the file", "nothing was changed"):
        if _identity(path) in _claimed:
            raise StorageLockedError(
                f"'{path}' is open in this process; expected to be its only user; "
                "nothing was changed",
                path=path,
            )
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not any(head):
        raise CorruptionError(
            f"'{path}' has no header: it is empty, cut or zeroed; nothing was changed",
            path=path,
            offset=len(head) if any(head) else 0,
        )
    application = int.from_bytes(head[68:72])
    version = int.from_bytes(head[60:64])
    if not head.startswith(_MAGIC):
        observed = repr(head[:16])
    elif application != APPLICATION_ID:
        observed = f"application id {application:#x}"
    elif version != VERSION:
        observed = f"user_version {version}"
    elif head[18:20] != _WAL_MODE:
        observed = "another journal mode"
    else:
        return
    expected = f"application id {APPLICATION_ID:#x}, user_version {VERSION}, journal mode WAL"
    raise StorageFormatError(
        f"'{path}' is not a file of this backend and version: expected {expected}, "
        f"observed {observed}; nothing was changed",
        path=path,
        expected=expected,
        observed=observed,
    )


def _identity(path: Path) -> tuple[int, int, int]:
    # With the process, so that a child forked meanwhile does not inherit the claim.
    stat = path.stat()
    return os.getpid(), stat.st_dev, stat.st_ino


def claim(path: Path) -> tuple[int, int, int]:
    """Keep everybody in this process from opening a database that is about to be connected."""
    with _claiming:
        identity = _identity(path)
        _claimed.add(identity)
        return identity


def disclaim(identity: tuple[int, int, int]) -> None:
    """End a claim, after the last connection was closed."""
    with _claiming:
        _claimed.discard(identity)


def create(directory: Path, fs: FileSystem) -> None:
    """Make an empty database: complete and durable, or not there at all.

    Raises:
        StorageError: the disk refused.
    """
    aside, path = directory / NEW, directory / DATABASE
    for name in names_in(directory):
        if name.startswith(NEW):
            with suppress(OSError):
                fs.unlink(directory / name)
    with sqlite_errors(aside, "create the database", "there is none"):
        _lay_out(aside)
    with storage_errors(path, "create the database", "there is none"):
        fd = fs.open(aside, os.O_RDWR)
        try:
            fs.fsync(fd)
        finally:
            fs.close(fd)
        fs.replace(aside, path)
    sync_directory(directory, fs)


def _lay_out(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Nobody sees the file before it is synced and renamed.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        # A commit gives back the pages it has emptied. Later, for many pages at a time (a reset,
        # a smaller snapshot), `incremental_vacuum` takes time quadratic in their number.
        connection.execute("PRAGMA auto_vacuum = FULL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        # Where it cannot change the mode, SQLite says so in its answer only.
        raise StorageError(
            f"'{path}': cannot create the database: SQLite stayed in the journal mode {mode!r}, "
            "expected 'wal'; there is none",
            path=path,
        )
