"""A `KeyValueStore` in an LMDB environment.

On disk: what `DataDirectory` lays out, each generation a directory of LMDB; see
`dengine_sm_lmdb.generation`. In an environment, four tables: see `dengine_sm_lmdb.rows`.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs

from dengine_sm import Durability
from dengine_sm.errors import NotRunningError, StorageError
from dengine_sm.files import DataDirectory
from dengine_sm.kv import WriteBatch
from dengine_sm_lmdb import rows
from dengine_sm_lmdb.engine import (
    EngineError,
    MapFullError,
    Transaction,
    storage_error,
    storage_errors,
)
from dengine_sm_lmdb.generation import Generation, Settings, make_directory
from dengine_sm_lmdb.options import LMDBOptions
from dengine_sm_lmdb.reading import Reader, SharedView, View, closed_begin

FORMAT = "dengine-sm-lmdb"
_SYNC_BEHIND_BYTES = 64 << 20
"""Growth of the file since the last sync that starts one in the background: until a sync,
no page of the last synced state is used again."""

T = TypeVar("T")

_open_stores: weakref.WeakSet[LMDBStore] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    def leave_to_parent() -> None:
        for store in list(_open_stores):
            store.leave_to_parent()

    os.register_at_fork(after_in_child=leave_to_parent)


class LMDBStore(Reader):
    """See the module's docstring.

    Args:
        directory: owned by this store; made by `open`.
        options: of the backend.
    """

    def __init__(self, directory: Path, options: LMDBOptions | None = None) -> None:
        options = options or LMDBOptions()
        self.directory = directory
        self.writes_block = options.durability is Durability.PER_APPLY
        self._settings = Settings(
            options.map_size, options.max_readers, options.readahead, self.writes_block
        )
        self._data_directory = DataDirectory(directory, format=FORMAT)
        self._generation: Generation | None = None
        self._live: tuple[Callable[..., Transaction], Any] = (closed_begin, None)
        """What `get` needs of the generation: one attribute, so that the two belong together."""
        self._older: set[Generation] = set()
        """Replaced, and still read by views."""
        # Taken in this order. Committing: nobody else commits, replaces or closes.
        self._flushing = threading.RLock()
        self._committing = threading.RLock()
        self._viewing = threading.RLock()
        self._syncing: threading.Thread | None = None
        self._broken: str | None = None
        """Why nothing is written or synced any more."""
        self._has_lost_sync = self._is_in_doubt = False
        self._last_view: View | None = None
        """Through which all is read when LMDB begins no transaction any more."""

    # Opening and closing

    def open(self) -> None:
        """Lock the directory, go back to the last synced state; a no-op while open."""
        if self._generation is not None:
            return
        self._data_directory.open()
        try:
            if self._data_directory.is_empty:
                self._build(self._new_generation)
                self._data_directory.switch()
            generation = Generation(self._data_directory.current, self._settings)
        except BaseException:
            self._data_directory.close()
            raise
        self._broken = None
        self._has_lost_sync = self._is_in_doubt = False
        _watch_forks()
        _open_stores.add(self)
        self._use(generation)

    def close(self) -> None:
        """Make everything durable, close everything, open views too; idempotent."""
        self._join_syncing()
        with self._flushing, self._committing:
            generation = self._generation
            if generation is None:
                return
            try:
                if not self._has_lost_sync:
                    with self._noting_failures():
                        generation.finish()
            finally:
                with self._viewing:
                    self._use(None)
                    older, self._older = self._older, set()
                for each in (generation, *older):
                    each.close()
                self._data_directory.close()

    def leave_to_parent(self) -> None:
        """Be closed in a forked child, and leave what is open to the parent."""
        # Locks are not asked: who held them is not in this process.
        for generation in (self._generation, *self._older):
            if generation is not None:
                generation.leave_to_parent()
        self._older = set()
        self._use(None)

    def _use(self, generation: Generation | None) -> None:
        self._generation = generation
        self._last_view = None
        if generation is None:
            self._live = (closed_begin, None)
        else:
            self._live = (generation.begin, generation.data.short)

    def _open_generation(self) -> Generation:
        if self._generation is None:
            raise NotRunningError("the LMDB store is closed; nothing was read or changed")
        return self._generation

    def _sound_generation(self) -> Generation:
        generation = self._open_generation()
        if self._broken is not None:
            raise StorageError(
                f"{str(self.directory)!r}: an earlier failure ({self._broken}) left it in doubt "
                "what is on the disk; expected to be closed and opened again; nothing was changed",
                path=self.directory,
            )
        return generation

    # Reading

    def get(self, key: bytes) -> bytes | None:
        """Return the user's value, or None when the key is absent."""
        if 0 < len(key) <= rows.SHORT_BYTES:
            begin, table = self._live
            try:
                return begin(table).get(key)
            except EngineError:
                # The long way tells what it means.
                pass
        return super().get(key)

    def _read(self, work: Callable[[Transaction, Generation], T]) -> T:
        while True:
            generation = self._open_generation()
            try:
                with generation.begin() as txn:
                    return work(txn, generation)
            except EngineError as exc:
                # Closed or replaced under the read: by whom, is known when they are done.
                with self._committing:
                    last_view = self._last_view
                    if self._generation is generation and last_view is None:
                        raise storage_error(exc, generation.path, "nothing was read") from exc
            if last_view is not None:
                return last_view._read(work)

    def view(self) -> View | SharedView:
        """Pin the current state."""
        with self._viewing:
            generation = self._open_generation()
            view: View | SharedView
            if self._last_view is not None:
                view = SharedView(self._last_view, lambda: self._view_closed(generation))
            else:
                with storage_errors(generation.path, "nothing was read"):
                    view = View(generation, generation.begin(), self._view_closed)
            generation.views += 1
            return view

    def _view_closed(self, generation: Generation) -> None:
        with self._viewing:
            generation.views -= 1
            if generation.views or generation not in self._older:
                return
            self._older.remove(generation)
        generation.close()

    # Writing

    def write(self, batch: WriteBatch) -> None:
        """Commit a batch in one transaction; with a larger map, if this one is full."""
        while True:
            with self._committing:
                generation = self._sound_generation()
                try:
                    self._commit_or_look_after(generation, batch)
                    break
                except MapFullError:
                    pass
            self._grow()
        if not self.writes_block and generation.unsynced_growth() >= _SYNC_BEHIND_BYTES:
            self._sync_behind()

    def _commit_or_look_after(self, generation: Generation, batch: WriteBatch) -> None:
        """Commit; if it fails, see to it that what was there before can be read on."""
        before: Transaction | None = None
        try:
            with storage_errors(generation.path, "nothing of the batch was written"):
                generation.before_commit()
                before = generation.begin()
                _commit(generation, batch)
        except StorageError as exc:
            # Where commits are synced, maybe it was the sync that failed.
            has_failed = self.writes_block
            try:
                generation.begin()
            except EngineError:
                # LMDB has given up: it begins no transaction any more.
                has_failed = True
                if before is not None:
                    self._last_view = View(generation, before, lambda _: None)
            if has_failed:
                self._broken, self._has_lost_sync = str(exc), True
            raise

    def flush(self) -> None:
        """Make everything committed durable."""
        with self._flushing:
            generation = self._sound_generation()
            with self._noting_failures():
                generation.sync(self._committing)

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        """After a failed sync, nothing is synced until a restart."""
        try:
            yield
        except StorageError as exc:
            self._broken, self._has_lost_sync = str(exc), True
            raise

    def _sync_behind(self) -> None:
        if self._syncing is None or not self._syncing.is_alive():
            self._syncing = threading.Thread(target=self._sync_quietly, name="dengine-sm-lmdb-sync")
            self._syncing.start()

    def _sync_quietly(self) -> None:
        # A failure is kept: the next write or flush tells of it.
        with suppress(StorageError, NotRunningError):
            self.flush()

    def _join_syncing(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.join()

    # Growing

    def _grow(self) -> None:
        """Map at least twice as much: the same environment, or a copy while views need it."""
        with self._flushing, self._committing:
            old = self._sound_generation()
            size = old.map_size
            larger = attrs.evolve(self._settings, map_size=2 * size)
            with self._noting_failures():
                old.finish()
            with self._viewing:
                if not old.views:
                    self._reopen(old, larger)
            if self._generation is old:
                self._move(old, larger)
            if self._open_generation().map_size <= size:
                raise StorageError(
                    f"{str(self.directory)!r}: the map of {size} bytes is full, and the address "
                    "space has no room for a larger one; nothing of the batch was written",
                    path=self.directory,
                )

    def _reopen(self, old: Generation, settings: Settings) -> None:
        """Close and open an environment that is finished and that no view needs."""
        old.close()
        try:
            generation = Generation(old.path, settings)
        except StorageError as exc:
            self._broken = str(exc)
            raise
        self._use(generation)

    def _move(self, old: Generation, settings: Settings) -> None:
        """Go on in a copy, and leave the old environment to the views that read it."""

        def copied(path: Path) -> Generation:
            old.copy_to(path)
            return self._new_generation(path)

        self._build(copied)
        self._switch(old, settings)

    # Replacing

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        """Write the new state beside the old one, then switch."""
        self._open_generation()
        if self._is_in_doubt:
            # What is on the disk may already be the one that would be written over.
            self._sound_generation()
        self._build(lambda path: self._filled(path, batches))
        with self._flushing, self._committing:
            self._switch(self._open_generation(), self._settings)
            # What went wrong with the old files is of no account any more.
            self._broken, self._has_lost_sync = None, False

    def _build(self, make: Callable[[Path], Generation]) -> None:
        """Make the next generation, durably, by what makes it in an empty directory."""
        path = self._data_directory.next
        try:
            make_directory(path)
            generation = make(path)
            try:
                generation.seal()
            finally:
                generation.close()
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def _new_generation(self, path: Path) -> Generation:
        return Generation(path, attrs.evolve(self._settings, sync_every_commit=False), create=True)

    def _filled(self, path: Path, batches: Iterable[WriteBatch]) -> Generation:
        """Return an environment that holds the sum of the batches."""
        generation = self._new_generation(path)
        try:
            for batch in batches:
                generation = _commit_growing(generation, batch)
        except BaseException:
            generation.close()
            raise
        return generation

    def _switch(self, old: Generation, settings: Settings) -> None:
        """Put the next generation in force, and let go of the old one."""
        generation = Generation(self._data_directory.next, settings)
        try:
            self._data_directory.switch()
        except StorageError as exc:
            generation.close()
            self._broken, self._is_in_doubt = str(exc), True
            raise
        with self._viewing:
            self._use(generation)
            if old.views:
                self._older.add(old)
        if old not in self._older:
            old.close()
        # Its files are gone from here on; their space comes back when no view maps them.
        self._data_directory.remove_old()


def _commit(generation: Generation, batch: WriteBatch) -> None:
    with generation.begin(write=True) as txn:
        rows.change(txn, generation.data, batch.data)
        rows.change(txn, generation.internal, batch.internal)


def _commit_growing(generation: Generation, batch: WriteBatch) -> Generation:
    """Commit to a generation that nobody reads; return it, or the one in its place."""
    while True:
        try:
            with storage_errors(generation.path, "the old state is unchanged"):
                _commit(generation, batch)
            return generation
        except MapFullError as exc:
            size = generation.map_size
            generation.seal()
            generation.close()
            settings = attrs.evolve(generation.settings, map_size=2 * size)
            generation = Generation(generation.path, settings)
            if generation.map_size <= size:
                generation.close()
                raise storage_error(exc, generation.path, "the old state is unchanged") from exc
