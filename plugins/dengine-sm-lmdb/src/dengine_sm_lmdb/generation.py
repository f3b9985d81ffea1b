"""One LMDB environment on disk, and what makes its last synced state outlive a power loss.

On disk: `data.mdb` and `lock.mdb`, LMDB's own; `ROOT`, a checked file that says how to
open the first.

LMDB keeps two roots, in the first two pages of its file, and commits overwrite them by
turns. Synced commits are safe. Unsynced ones are not: two of them, and no root on the
disk need be whole, nor the pages that it leads to. So, while commits are not synced,
`ROOT` holds a copy of both pages as they were at the last sync, and a read transaction
of that time keeps LMDB from using its pages again. An environment that was not closed
is opened after putting the copy back: it is then as it was at the last sync.

Source: mdb.c, `mdb_env_write_meta` and `mdb_find_oldest`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from dengine_sm.codec import decode_prefix, encode
from dengine_sm.errors import CorruptionError
from dengine_sm.files import (
    make_directories,
    read_checked_file,
    sync_directory,
    write_checked_file,
)
from dengine_sm_lmdb.engine import (
    DATA,
    LOCK,
    Environment,
    Transaction,
    open_environment,
    open_tables,
    storage_errors,
)
from dengine_sm_lmdb.rows import Space

ROOT = "ROOT"
_IN_FILE = b"in file"
"""LMDB's own roots are in force, and the file is as long as they say."""
_SYNCED_COMMITS = b"synced commits"
"""The same, but a kill may have come before the end of the file was filled up."""
_COPIED = b"copied"
"""The copied pages that follow are in force."""
_UNSYNCED = "what was not synced before may be lost at the next start"


@attrs.frozen
class Settings:
    """How to open an environment; see `LMDBOptions`."""

    map_size: int
    max_readers: int
    readahead: bool
    sync_every_commit: bool


class Generation:
    """An open environment; opened and closed by one thread, read by any.

    Args:
        path: its directory, which exists.
        settings: how to open it.
        create: whether it is to be made, or is to be there.
    """

    def __init__(self, path: Path, settings: Settings, *, create: bool = False) -> None:
        self.path = path
        self.settings = settings
        self.views = 0
        """Read views that need it; counted by the store."""
        self.is_closed = False
        self._pin: Transaction | None = None
        self._is_marked = False
        self._fd = -1
        state, pages = (_IN_FILE, b"") if create else self._read_root()
        if pages:
            self._put_back(pages)
        self.env: Environment = open_environment(
            path,
            map_size=settings.map_size,
            max_readers=settings.max_readers,
            readahead=settings.readahead,
            sync=settings.sync_every_commit,
        )
        try:
            with storage_errors(path, "nothing was changed"):
                self._prepare(state, create=create)
        except BaseException:
            self.close()
            raise
        self.begin: Callable[..., Transaction] = self.env.begin
        self._synced_pages = self.env.info()["last_pgno"]

    @property
    def map_size(self) -> int:
        """Bytes of the map in force."""
        return self.env.info()["map_size"]

    def _prepare(self, state: bytes, *, create: bool) -> None:
        self.env.reader_check()
        self._fd = os.open(self.path / DATA, os.O_RDWR | os.O_CLOEXEC)
        self._page_bytes = self.env.stat()["psize"]
        if create:
            write_checked_file(self.path / ROOT, encode([_IN_FILE, b""]))
        elif state == _SYNCED_COMMITS:
            missing = self._fill_up()
            self.env.sync(True)
            self._open_tables(create=False)
            if missing:
                self._prove_whole()
        else:
            self._check_length()
        self._open_tables(create=create)

    def _open_tables(self, *, create: bool) -> None:
        tables = open_tables(self.env, create=create)
        self.data = Space(*tables[:2])
        self.internal = Space(*tables[2:])

    # Roots

    def _read_root(self) -> tuple[bytes, bytes]:
        data, root = self.path / DATA, self.path / ROOT
        for path in (data, root):
            if not path.is_file() or not path.stat().st_size:
                raise CorruptionError(
                    f"{str(path)!r} is missing or empty; nothing was changed", path=path, offset=0
                )
        content = read_checked_file(root)
        # A killed process may have renamed it in, and not synced its entry.
        sync_directory(self.path)
        match decode_prefix(content):
            case [bytes(state), bytes(pages)] if state in (_IN_FILE, _SYNCED_COMMITS, _COPIED):
                return state, pages
        raise CorruptionError(
            f"{str(root)!r} says nothing that this version knows; nothing was changed",
            path=root,
            offset=0,
        )

    def _put_back(self, pages: bytes) -> None:
        """Put the copied roots back; done twice, it is done once."""
        with storage_errors(self.path, "the next start goes back to the last synced state again"):
            # It may name a later commit, and a tool that has it open would keep it so.
            (self.path / LOCK).unlink(missing_ok=True)
            fd = os.open(self.path / DATA, os.O_RDWR | os.O_CLOEXEC)
            try:
                _write_at(fd, pages, 0)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _needed_bytes(self) -> int:
        pages: int = self.env.info()["last_pgno"] + 1
        return pages * self._page_bytes

    def _check_length(self) -> None:
        needed, observed = self._needed_bytes(), os.fstat(self._fd).st_size
        if observed < needed:
            path = self.path / DATA
            raise CorruptionError(
                f"{str(path)!r} ends after {observed} bytes, expected {needed}; nothing was read",
                path=path,
                offset=observed,
            )

    def _fill_up(self) -> bool:
        """Make the file as long as its root says; tell whether it was not.

        LMDB does not write a last page that it took and gave back in one commit. Reading
        beyond the end of a mapped file would kill the process.
        """
        needed = self._needed_bytes()
        if os.fstat(self._fd).st_size >= needed:
            return False
        _write_at(self._fd, b"\0", needed - 1)
        return True

    def _prove_whole(self) -> None:
        """Visit every page of the trees: one that was cut off is no page, and raises."""
        with self.env.begin() as txn:
            for space in (self.data, self.internal):
                for table in (space.short, space.long):
                    deque(txn.cursor(table).iternext(values=True), maxlen=0)

    def before_commit(self) -> None:
        """Make sure that the synced state is not lost by commits to come; once is enough.

        Raises:
            StorageError: it is not sure; nothing was changed.
        """
        if self._is_marked:
            return
        if self.settings.sync_every_commit:
            write_checked_file(self.path / ROOT, encode([_SYNCED_COMMITS, b""]))
        else:
            with storage_errors(self.path, "nothing was changed"):
                self._keep(*self._capture())
        self._is_marked = True

    def unsynced_growth(self) -> int:
        """Return the bytes by which the file grew since the last sync."""
        pages: int = self.env.info()["last_pgno"] - self._synced_pages
        return pages * self._page_bytes

    def sync(self, committing: AbstractContextManager[object]) -> None:
        """Make what is committed durable.

        Args:
            committing: held by whoever commits; taken for a moment.

        Raises:
            StorageError: it failed; what is durable is unknown.
        """
        with storage_errors(self.path, _UNSYNCED):
            self._sync(committing)

    def _sync(self, committing: AbstractContextManager[object]) -> None:
        if self._pin is None:
            return
        with committing:
            if self._pin.id() == self.env.info()["last_txnid"]:
                return
            self._fill_up()
            pin, pages = self._capture()
            synced_pages = self.env.info()["last_pgno"]
        try:
            self.env.sync(True)
            self._keep(pin, pages)
        except BaseException:
            pin.abort()
            raise
        self._synced_pages = synced_pages

    def _capture(self) -> tuple[Transaction, bytes]:
        """Pin the newest state and copy its roots; no commit may be under way."""
        return self.env.begin(), os.pread(self._fd, 2 * self._page_bytes, 0)

    def _keep(self, pin: Transaction, pages: bytes) -> None:
        write_checked_file(self.path / ROOT, encode([_COPIED, pages]))
        old, self._pin = self._pin, pin
        if old is not None:
            old.abort()

    def finish(self) -> None:
        """Make all durable, and say that the file is in order; no commit may follow.

        Raises:
            StorageError: it failed; what is durable is unknown.
        """
        if self._is_marked:
            with storage_errors(self.path, _UNSYNCED):
                self._fill_up()
                self.env.sync(True)
            write_checked_file(self.path / ROOT, encode([_IN_FILE, b""]))
            self._is_marked = False
            if self._pin is not None:
                self._pin.abort()
                self._pin = None

    def close(self) -> None:
        """Close the environment with all that reads it; idempotent, does not sync."""
        self.is_closed = True
        self._pin = None
        self.env.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def leave_to_parent(self) -> None:
        """Never touch the environment again, in a process forked off from its owner.

        Closing it, or only collecting it, would free the reader slots of the parent.
        """
        self.is_closed = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.env))

    # Making

    def seal(self) -> None:
        """Make a new environment durable, with the entries of its directory."""
        with storage_errors(self.path, "the old state is unchanged"):
            self._fill_up()
            self.env.sync(True)
        sync_directory(self.path)

    def copy_to(self, path: Path) -> None:
        """Write a compact copy of the newest state."""
        with storage_errors(path, "nothing was changed"):
            self.env.copy(str(path), compact=True)


def make_directory(path: Path) -> None:
    """Make an empty directory, whatever was there.

    Raises:
        StorageError: the disk refused.
    """
    shutil.rmtree(path, ignore_errors=True)
    make_directories(path)


def _write_at(fd: int, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written
