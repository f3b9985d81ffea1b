"""Stores that show on a page how they keep a state: what the broken machines are made of."""

from __future__ import annotations

import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from broken_base import LIMITS

from dengine_sm.backends.file_store import FileStore
from dengine_sm.codec import decode, encode
from dengine_sm.files import DirectoryLock, make_directories
from dengine_sm.files.atomic import replace_file
from dengine_sm.files.filesystem import storage_errors
from dengine_sm.kv import KeyValueStateMachine, RamStore, WriteBatch
from dengine_sm.kv.ram import build_maps


class Machine(KeyValueStateMachine):
    """A machine over one of the stores below."""

    def __init__(self, store) -> None:
        super().__init__(store, limits=LIMITS)


class JournalStore(RamStore):
    """A sound store: its state in memory, and in one file the batches that lead to it.

    A batch is length, checksum and CBOR; what comes after the last whole one is cut off.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.path = directory / "journal"
        self.lock_file = DirectoryLock(directory)
        self.fd = -1

    def open(self) -> None:
        if self.fd >= 0:
            return
        make_directories(self.directory)
        self.lock_file.acquire()
        try:
            with storage_errors(self.path, "open the journal", "nothing was read"):
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                batches, end = read_frames(self.path.read_bytes())
                self.recover(batches, end)
        except BaseException:
            self.release()
            raise

    def recover(self, batches: list[WriteBatch], end: int) -> None:
        os.ftruncate(self.fd, end)
        super().open()
        self.swap(*build_maps(batches))

    def close(self) -> None:
        try:
            if self.fd >= 0:
                self.flush()
        finally:
            self.release()

    def release(self) -> None:
        super().close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.lock_file.release()

    def write(self, batch: WriteBatch) -> None:
        self.append(frame_of(batch))
        super().write(batch)

    def append(self, frame: bytes) -> None:
        end = os.fstat(self.fd).st_size
        with storage_errors(self.path, "append", "the journal is as before"):
            try:
                write_whole(self.fd, frame)
            except OSError:
                os.ftruncate(self.fd, end)
                raise

    def flush(self) -> None:
        with storage_errors(self.path, "sync", "what is durable is unknown"):
            os.fsync(self.fd)

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        data, internal = build_maps(batches)
        whole = WriteBatch(dict(data.only), dict(internal.only))
        replace_file(self.path, frame_of(whole))
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
        self.swap(data, internal)


def whole_of(store: RamStore) -> WriteBatch:
    """Return the state as one batch."""
    view = store.view()
    try:
        return WriteBatch(
            {key: value for block in view.blocks(512) for key, value in block.items()},
            {key: value for block in view.internal_blocks(512) for key, value in block.items()},
        )
    finally:
        view.close()


def write_whole(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def frame_of(batch: WriteBatch) -> bytes:
    payload = encode([list(batch.data.items()), list(batch.internal.items())])
    return len(payload).to_bytes(4) + zlib.crc32(payload).to_bytes(4) + payload


def read_frames(content: bytes) -> tuple[list[WriteBatch], int]:
    """Return the batches of a journal and where the last whole one ends."""
    batches, at = [], 0
    while len(content) >= at + 8:
        size = int.from_bytes(content[at : at + 4])
        payload = content[at + 8 : at + 8 + size]
        if len(payload) < size or zlib.crc32(payload).to_bytes(4) != content[at + 4 : at + 8]:
            break
        data, internal = decode(payload)
        batches.append(WriteBatch(dict(map(tuple, data)), dict(map(tuple, internal))))
        at += 8 + size
    return batches, at


class SoundJournalMachine(Machine):
    """The store above, unchanged."""

    def __init__(self, directory: Path) -> None:
        super().__init__(JournalStore(directory))


class LazyStore(FileStore):
    """Keeps batches in memory until it is flushed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, segment_bytes=8192, checkpoint_bytes=16384)
        self.pending: list[WriteBatch] = []

    def write(self, batch: WriteBatch) -> None:
        self.pending.append(batch)
        self._ram.write(batch)

    def flush(self) -> None:
        pending, self.pending = self.pending, []
        for batch in pending:
            super().write(batch)
        super().flush()

    def close(self) -> None:
        if self._log is not None:
            self.flush()
        super().close()

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        self.flush()
        super().replace_all(batches)


class ThreadedStore(JournalStore):
    """Leaves every write to a thread of its own."""

    def open(self) -> None:
        super().open()
        self.orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.worker = threading.Thread(target=self.work, daemon=True)
        self.worker.start()

    def work(self) -> None:
        while (order := self.orders.get()) is not None:
            order()

    def write(self, batch: WriteBatch) -> None:
        written: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def order() -> None:
            try:
                JournalStore.write(self, batch)
            except BaseException as exc:
                written.put(exc)
            else:
                written.put(None)

        self.orders.put(order)
        exc = written.get()
        if exc is not None:
            raise exc

    def close(self) -> None:
        self.orders.put(None)
        self.worker.join()
        super().close()


class ThreadedMachine(Machine):
    """The store above: it would wait for ever if threads were run at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ThreadedStore(directory))
