"""Machines broken in what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path

from broken_base import SoundFileMachine, breaks
from plain_stores import (
    JournalStore,
    LazyStore,
    Machine,
    frame_of,
    read_frames,
    whole_of,
    write_whole,
)

from dengine_sm.backends.file_store import FileStore
from dengine_sm.codec import decode, encode
from dengine_sm.errors import LogOrderError
from dengine_sm.files.atomic import replace_file
from dengine_sm.files.filesystem import storage_errors
from dengine_sm.kv import RamStore, WriteBatch
from dengine_sm.kv.ram import build_maps
from dengine_sm.kv.rows import APPLIED
from dengine_sm.model import ApplyResult, Durability, Outcome

# CRASH-1: state and applied id part


class SplitStore(FileStore):
    """Keeps the applied id in a file of its own."""

    writes_id_first = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, segment_bytes=8192, checkpoint_bytes=16384)
        self.id_path = directory / "applied"

    def open(self) -> None:
        super().open()
        row = self.id_path.read_bytes() if self.id_path.exists() else None
        installed = self.get_internal(APPLIED)
        if installed is None or (row is not None and decode(row)[1] > decode(installed)[1]):
            # An install is whole: the state that it brings has its id in it.
            self._ram.write(WriteBatch(internal={APPLIED: row}))

    def write(self, batch: WriteBatch) -> None:
        row = batch.internal.get(APPLIED)
        rest = {key: value for key, value in batch.internal.items() if key != APPLIED}
        if self.writes_id_first:
            self.keep_id(row)
        super().write(WriteBatch(batch.data, rest))
        if not self.writes_id_first:
            self.keep_id(row)
        if row is not None:
            self._ram.write(WriteBatch(internal={APPLIED: row}))

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        super().replace_all(batches)
        self.keep_id(self.get_internal(APPLIED))

    def keep_id(self, row: bytes | None) -> None:
        if row is not None:
            replace_file(self.id_path, row)


@breaks("CRASH-1")
class WritesTheAppliedIdAfterTheData(Machine):
    """The applied id is a file of its own, replaced after the data is written."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SplitStore(directory))


@breaks("CRASH-1")
class WritesTheAppliedIdBeforeTheData(Machine):
    """The applied id is a file of its own, replaced before the data is written."""

    def __init__(self, directory: Path) -> None:
        store = SplitStore(directory)
        store.writes_id_first = True
        super().__init__(store)


class IdAtCloseStore(SplitStore):
    def keep_id(self, row: bytes | None) -> None:
        pass

    def close(self) -> None:
        if self._log is not None:
            super().keep_id(self.get_internal(APPLIED))
        super().close()


@breaks("CRASH-1")
class WritesTheAppliedIdOnlyWhenStopped(Machine):
    """The data is written at once, the applied id when the machine is stopped."""

    def __init__(self, directory: Path) -> None:
        super().__init__(IdAtCloseStore(directory))


class FileForEachBatchStore(RamStore):
    """Rewrites one file, in place, with every batch."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "state"

    def open(self) -> None:
        super().open()
        content = self.path.read_bytes() if self.path.exists() else b""
        self.swap(*build_maps(read_frames(content)[0]))

    def flush(self) -> None:
        whole = whole_of(self)
        with storage_errors(self.path, "write the state", "it may be lost"):
            self.save(
                frame_of(WriteBatch(whole.data)), frame_of(WriteBatch(internal=whole.internal))
            )

    def save(self, data: bytes, internal: bytes) -> None:
        with self.path.open("wb", buffering=0) as file:
            write_whole(file.fileno(), data + internal)
            os.fsync(file.fileno())

    def close(self) -> None:
        if self._data is not None:
            self.flush()
        super().close()

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        super().replace_all(batches)
        self.flush()


class TwoWritesStore(FileForEachBatchStore):
    """Writes the bookkeeping over the old one first, then the data over the old data."""

    def open(self) -> None:
        RamStore.open(self)
        frames = [self.path.with_name(name) for name in ("data", "internal")]
        contents = [path.read_bytes() if path.exists() else b"" for path in frames]
        self.swap(*build_maps(b for content in contents for b in read_frames(content)[0]))

    def write(self, batch: WriteBatch) -> None:
        super().write(batch)
        self.flush()

    def save(self, data: bytes, internal: bytes) -> None:
        replace_file(self.path.with_name("internal"), internal)
        replace_file(self.path.with_name("data"), data)


@breaks("CRASH-1")
class ReplacesTwoFilesOneAfterTheOther(Machine):
    """Every apply replaces bookkeeping and data, each atomically, not both."""

    def __init__(self, directory: Path) -> None:
        super().__init__(TwoWritesStore(directory))


class SessionsAtCloseStore(FileStore):
    """Writes the rows of sessions when it is closed."""

    def open(self) -> None:
        super().open()
        self.late: dict[bytes, bytes | None] = {}

    def write(self, batch: WriteBatch) -> None:
        late = {key: row for key, row in batch.internal.items() if key[:2] in (b"s/", b"u/")}
        rest = {key: row for key, row in batch.internal.items() if key not in late}
        super().write(WriteBatch(batch.data, rest))
        self._ram.write(WriteBatch(internal=dict(late)))
        self.late |= late

    def close(self) -> None:
        if self.late:
            super().write(WriteBatch(internal=self.late))
            self.late = {}
        super().close()


@breaks("CRASH-1")
class WritesSessionsOnlyWhenStopped(Machine):
    """The data is written at once, what sessions have executed when the machine is stopped."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SessionsAtCloseStore(directory))


# CRASH-2: what was promised durable is lost


@breaks("CRASH-2", durability=Durability.PER_APPLY)
class KeepsAppliesInMemoryUntilFlushed(Machine):
    """Declared PER_APPLY, but writes nothing before a flush."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LazyStore(directory))


@breaks("CRASH-2")
class FlushAsyncReturnsAtOnce(Machine):
    """`flush_async` begins a flush and does not wait for it."""

    SLOW_DISK_S = 0.02  # one in memory could be faster than the kill

    def __init__(self, directory: Path) -> None:
        super().__init__(LazyStore(directory))
        self.tasks: set[asyncio.Task] = set()

    async def flush_async(self) -> None:
        self.tasks.add(asyncio.ensure_future(asyncio.to_thread(self._flush_slowly)))

    def _flush_slowly(self) -> None:
        time.sleep(self.SLOW_DISK_S)
        self.flush()


@breaks("CRASH-2")
class SavesHardStateWithoutTheData(Machine):
    """`save_hard_state` does not write what is still in memory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LazyStore(directory))

    def save_hard_state(self) -> None:
        self._require_running()


@breaks("CRASH-2")
class PersistsTheAppliedIdInMemory(Machine):
    """`persist_last_applied` does no more than `update_last_applied`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LazyStore(directory))

    def persist_last_applied(self, last_applied) -> None:
        self.update_last_applied(last_applied)


@breaks("CRASH-2")
class RewritesItsStateInPlace(Machine):
    """A flush truncates the one state file, then writes it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(FileForEachBatchStore(directory))


# CRASH-3: not the end of a chunk


@breaks("CRASH-3")
class WritesARecordForEachEntry(SoundFileMachine):
    """A chunk is as many records in the log as it has entries."""

    async def apply_chunk(self, chunk):
        results = []
        for entry in chunk:
            results += await super().apply_chunk([entry])
        return results


@breaks("CRASH-3")
class WritesInPiecesOfFour(SoundFileMachine):
    """A chunk is written in pieces of four entries."""

    async def apply_chunk(self, chunk):
        results = []
        for at in range(0, len(chunk), 4):
            results += await super().apply_chunk(chunk[at : at + 4])
        return results


# CRASH-4: recovering, killed, is not done again


class CompactingStore(JournalStore):
    """Recovers by folding the journal into a state file."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.state = directory / "state"

    def recover(self, batches: list[WriteBatch], end: int) -> None:
        before = read_frames(self.state.read_bytes())[0] if self.state.exists() else []
        super().recover([*before, *batches], end)
        if batches:
            self.fold(frame_of(whole_of(self)))

    def fold(self, frame: bytes) -> None:
        raise NotImplementedError

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        # Every key that is not new is deleted, as the state file goes on below.
        data, internal = build_maps(batches)
        old = whole_of(self)
        gone = WriteBatch(dict.fromkeys(old.data), dict.fromkeys(old.internal))
        self.write(WriteBatch({**gone.data, **data.only}, {**gone.internal, **internal.only}))
        self.flush()


class FoldsInPlaceStore(CompactingStore):
    def fold(self, frame: bytes) -> None:
        with self.state.open("wb", buffering=0) as file:
            write_whole(file.fileno(), frame)
        os.ftruncate(self.fd, 0)


@breaks("CRASH-4")
class FoldsTheJournalInPlaceWhileRecovering(Machine):
    """A start rewrites the state file in place before it empties the journal."""

    def __init__(self, directory: Path) -> None:
        super().__init__(FoldsInPlaceStore(directory))


class EmptiesTheJournalFirstStore(CompactingStore):
    def fold(self, frame: bytes) -> None:
        os.ftruncate(self.fd, 0)
        replace_file(self.state, frame)


@breaks("CRASH-4")
class EmptiesTheJournalBeforeItIsFolded(Machine):
    """A start empties the journal, then writes the state file that has it all."""

    def __init__(self, directory: Path) -> None:
        super().__init__(EmptiesTheJournalFirstStore(directory))


class CountingStore(JournalStore):
    """Counts keys aside: a start adds the journal's to those of the state file."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.counted = directory / "count"
        self.keys = 0

    def count(self) -> int:
        return self.keys

    def write(self, batch: WriteBatch) -> None:
        super().write(batch)
        self.keys = super().count()

    def swap(self, data, internal) -> None:
        super().swap(data, internal)
        self.keys = super().count()

    def recover(self, batches: list[WriteBatch], end: int) -> None:
        super().recover(batches, end)
        known, seen = (
            map(int, self.counted.read_text().split()) if self.counted.exists() else (0, 0)
        )
        grown = super().count() - seen
        self.keys = known + grown
        replace_file(self.counted, b"%d %d" % (self.keys, seen))
        replace_file(self.counted, b"%d %d" % (self.keys, super().count()))


@breaks("CRASH-4")
class AddsToACountWhileRecovering(Machine):
    """A start adds to a stored count, and only then notes that it has."""

    def __init__(self, directory: Path) -> None:
        super().__init__(CountingStore(directory))


# CRASH-7: a replay leads elsewhere


@breaks("CRASH-7")
class ForgetsWhatItAppliedBeforeARestart(SoundFileMachine):
    """Entries from before the restart are no duplicates: they are applied again."""

    def start(self) -> None:
        super().start()
        self.is_fresh = True

    async def apply_chunk(self, chunk):
        if self.is_fresh and chunk and chunk[0].index <= self.last_applied().index:
            before = [max(0, chunk[0].term), chunk[0].index - 1, self._clock_ms, self._timed_keys]
            self._store._ram.write(WriteBatch(internal={APPLIED: encode(before)}))
        self.is_fresh = False
        return await super().apply_chunk(chunk)


@breaks("CRASH-7")
class RefusesEntriesFromBeforeARestart(SoundFileMachine):
    """Entries from before the restart are an error, not duplicates."""

    def start(self) -> None:
        super().start()
        self.first_new = self.last_applied().index + 1

    async def apply_chunk(self, chunk):
        if chunk and chunk[0].index < self.first_new:
            raise LogOrderError("an entry from before the start; nothing was applied")
        return await super().apply_chunk(chunk)


@breaks("CRASH-7")
class DropsNewEntriesBehindOldOnes(SoundFileMachine):
    """A chunk that begins before the restart is taken for all duplicates."""

    def start(self) -> None:
        super().start()
        self.first_new = self.last_applied().index + 1

    async def apply_chunk(self, chunk):
        if chunk and chunk[0].index < self.first_new:
            return [ApplyResult(entry.index, Outcome.DUPLICATE) for entry in chunk]
        return await super().apply_chunk(chunk)
