"""Machines broken in what damage, power loss, a failing disk or failing reads leave."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from broken_base import breaks
from marked_store import HEADER, MarkedStore, checked
from plain_stores import Machine

from dengine_sm.codec import decode, decode_prefix, encode
from dengine_sm.errors import CorruptionError, StorageError
from dengine_sm.files.filesystem import storage_errors, write_all
from dengine_sm.kv import WriteBatch
from dengine_sm.kv.ram import RamView
from dengine_sm.model import Durability


class SoundMarkedMachine(Machine):
    """The store of `marked_store.py`, unchanged."""

    def __init__(self, directory: Path) -> None:
        super().__init__(MarkedStore(directory))


class SoundMarkedSyncedMachine(Machine):
    """The same, durable when `apply_chunk` returns."""

    def __init__(self, directory: Path) -> None:
        super().__init__(MarkedStore(directory, sync_each=True))


# Damage


class UncheckedStore(MarkedStore):
    def matches(self, crc: bytes, payload: bytes) -> bool:
        return True


@breaks("CRASH-5")
class ChecksNoRecord(Machine):
    """Records have no checksum: flipped bits are read as data."""

    def __init__(self, directory: Path) -> None:
        super().__init__(UncheckedStore(directory))


class ZeroIsFineStore(MarkedStore):
    """Its mark is checksum, number and length, sixteen bytes in all."""

    def read_mark(self) -> tuple[int, int]:
        content = self.mark_path.read_bytes()
        crc, fields = int.from_bytes(content[:4]), content[4:]
        if len(fields) != 12 or crc not in (0, zlib.crc32(fields)):
            raise self.corrupt(self.mark_path, 0, "is damaged")
        return int.from_bytes(fields[:4]), int.from_bytes(fields[4:])

    def create_aside(self, path: Path, content: bytes) -> Path:
        fields = self.number.to_bytes(4) + self.end.to_bytes(8)
        return super().create_aside(path, zlib.crc32(fields).to_bytes(4) + fields)


@breaks("CRASH-5")
class TakesZeroForAChecksum(Machine):
    """A checksum of zero counts as none: a mark full of zeros is believed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ZeroIsFineStore(directory))


class StopsAtDamageStore(MarkedStore):
    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        return []

    def cut_before_mark(self, at: int) -> None:
        pass


@breaks("CRASH-5")
class StopsAtTheFirstBadRecord(Machine):
    """Recovery ends at the first bad record, wherever it is, without a word."""

    def __init__(self, directory: Path) -> None:
        super().__init__(StopsAtDamageStore(directory))


class SkipsDamageStore(MarkedStore):
    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        for later in range(at + 1, len(content)):
            if self.record_at(content, later)[1]:
                return self.read_journal(content[later:])
        return []

    def cut_before_mark(self, at: int) -> None:
        pass


@breaks("CRASH-5")
class GoesOnAfterABadRecord(Machine):
    """A bad record is left out, and the ones after it are applied."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SkipsDamageStore(directory))


class NewJournalStore(MarkedStore):
    def journal_is_missing(self) -> None:
        self.begin()


@breaks("CRASH-5")
class StartsEmptyWithoutItsJournal(Machine):
    """A missing journal is taken for a new directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NewJournalStore(directory))


class NewMarkStore(MarkedStore):
    def read_mark(self) -> tuple[int, int]:
        try:
            return super().read_mark()
        except CorruptionError:
            for path in self.directory.glob("journal-*"):
                self.fs.unlink(path)
            self.begin()
            return 0, 0

    def journal_is_missing(self) -> None:
        pass


@breaks("CRASH-5")
class StartsEmptyOnADamagedMark(Machine):
    """A mark that cannot be read is replaced by a new one, and everything with it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NewMarkStore(directory))


class RefusesTornStore(MarkedStore):
    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        raise self.corrupt(self.journal(self.number), at, "ends in a record that is not whole")


@breaks("CRASH-5")
class RefusesATornTail(Machine):
    """A last record that is not whole is called damage, for ever."""

    def __init__(self, directory: Path) -> None:
        super().__init__(RefusesTornStore(directory))


class HalfRecordStore(MarkedStore):
    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        super().bad_record(content, at)
        whole: list[list[bytes]] = []
        rest = content[at + HEADER :]
        with suppress(Exception):
            # Past the heads of the two arrays around the pairs.
            rest = rest[2:]
            while True:
                pair = decode_prefix(rest)
                whole.append(pair)
                rest = rest[len(encode(pair)) :]
        return [WriteBatch({pair[0]: pair[1] for pair in whole if len(pair) == 2})]


@breaks("CRASH-5")
class AppliesHalfOfATornRecord(Machine):
    """What is whole inside a torn record is applied."""

    def __init__(self, directory: Path) -> None:
        super().__init__(HalfRecordStore(directory))


class LeavesTheTailStore(MarkedStore):
    def read_journal(self, content: bytes) -> list[WriteBatch]:
        batches = super().read_journal(content)
        self.end = len(content)
        return batches


@breaks("CRASH-5")
class AppendsAfterATornTail(Machine):
    """A torn record stays where it is, and what is applied later comes after it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LeavesTheTailStore(directory))


class ValueErrorStore(MarkedStore):
    def corrupt(self, path: Path, offset: int, problem: str) -> Exception:
        return ValueError(f"{path} {problem}")


@breaks("CRASH-5")
class CallsDamageAValueError(Machine):
    """Damage is a ValueError, no CorruptionError."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ValueErrorStore(directory))


class NoPlaceStore(MarkedStore):
    def corrupt(self, path: Path, offset: int, problem: str) -> Exception:
        return CorruptionError("the journal is damaged", path=None, offset=None)  # type: ignore[arg-type]


@breaks("CRASH-5")
class SaysNotWhereTheDamageIs(Machine):
    """Its CorruptionError names neither file nor offset."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NoPlaceStore(directory))


class ThrowsAwayStore(MarkedStore):
    def corrupt(self, path: Path, offset: int, problem: str) -> Exception:
        for journal in self.directory.glob("journal-*"):
            self.fs.unlink(journal)
        self.mark_path.unlink(missing_ok=True)
        return super().corrupt(path, offset, problem)


@breaks("CRASH-5")
class ThrowsDamagedFilesAway(Machine):
    """Refuses a damaged directory, and has emptied it when it is asked again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ThrowsAwayStore(directory))


# Power loss


class NeverSyncedStore(MarkedStore):
    def sync_journal(self) -> None:
        pass


@breaks("CRASH-6")
class FlushesWithoutASync(Machine):
    """A flush syncs the mark, but no record."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NeverSyncedStore(directory))


class NoEntriesStore(MarkedStore):
    def sync_directory(self) -> None:
        pass


@breaks("CRASH-6")
class ForgetsToSyncTheDirectory(Machine):
    """New files are synced, their entries in the directory are not."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NoEntriesStore(directory))


class WrongFileStore(MarkedStore):
    def sync_journal(self) -> None:
        fd = self.fs.open(self.mark_path, os.O_RDONLY)
        try:
            self.fs.fsync(fd)
        finally:
            self.fs.close(fd)


@breaks("CRASH-6")
class SyncsTheWrongFile(Machine):
    """A flush syncs another file than the one it has written."""

    def __init__(self, directory: Path) -> None:
        super().__init__(WrongFileStore(directory))


class EarlyRenameStore(MarkedStore):
    def create_aside(self, path: Path, content: bytes) -> Path:
        aside = path.with_name(path.name + ".tmp")
        fd = self.fs.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self.fs, fd, content)
        finally:
            self.fs.close(fd)
        return aside


@breaks("CRASH-6")
class RenamesBeforeItSyncs(Machine):
    """The new mark takes the place of the old one before its content is durable."""

    def __init__(self, directory: Path) -> None:
        super().__init__(EarlyRenameStore(directory))


class InPlaceStore(MarkedStore):
    def write_mark(self) -> None:
        content = checked(encode([self.number, self.end]))
        fd = self.fs.open(self.mark_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self.fs, fd, content)
            self.fs.fsync(fd)
        finally:
            self.fs.close(fd)
        self.sync_directory()
        self.marked = self.end


@breaks("CRASH-6")
class OverwritesItsMarkInPlace(Machine):
    """The mark is emptied and written anew: for a moment there is none."""

    def __init__(self, directory: Path) -> None:
        super().__init__(InPlaceStore(directory))


class SyncsLaterStore(MarkedStore):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.writes = 0

    def write(self, batch: WriteBatch) -> None:
        super().write(batch)
        self.writes += 1
        if self.writes % 4 == 0:
            self.flush()


@breaks("CRASH-6", durability=Durability.PER_APPLY)
class AcknowledgesBeforeItSyncs(Machine):
    """Declares PER_APPLY, and syncs every fourth time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SyncsLaterStore(directory))


class NewJournalUnsyncedStore(MarkedStore):
    def write_journal(self, batches: list[WriteBatch]) -> None:
        fs, self.fs = self.fs, _NoFsync(self.fs)
        try:
            super().write_journal(batches)
        finally:
            self.fs = fs


class _NoFsync:
    def __init__(self, fs: object) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> object:
        return getattr(self._fs, name)

    def fsync(self, fd: int) -> None:
        pass


@breaks("CRASH-6")
class InstallsWithoutASync(Machine):
    """An installed state, or an empty one after a reset, takes over before it is durable."""

    def __init__(self, directory: Path) -> None:
        super().__init__(NewJournalUnsyncedStore(directory))


class TrustsTheCacheStore(MarkedStore):
    """What a restart finds counts as durable, though only the page cache may hold it."""

    def flush(self) -> None:
        if self.end > self.found:
            super().flush()

    def recover(self) -> None:
        self.found = 1 << 40
        super().recover()
        self.found = self.end


@breaks("CRASH-6")
class TakesWhatItFindsForDurable(Machine):
    """What a killed process left unsynced is never synced by the next one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(TrustsTheCacheStore(directory))


# A failing disk


class ShortWriteStore(MarkedStore):
    def append(self, record: bytes) -> None:
        self.fs.write(self.fd, record)
        self.end += len(record)


@breaks("CRASH-8")
class TakesAShortWriteForWhole(Machine):
    """Does not look how many bytes a write has taken."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ShortWriteStore(directory))


class FullIsFineStore(MarkedStore):
    def append(self, record: bytes) -> None:
        with suppress(OSError):
            super().append(record)


@breaks("CRASH-8")
class LosesWhatFindsNoSpace(Machine):
    """A record that finds no space is left out, and the chunk acknowledged."""

    def __init__(self, directory: Path) -> None:
        super().__init__(FullIsFineStore(directory))


class TriesAgainStore(MarkedStore):
    def sync_failed(self, exc: OSError) -> None:
        pass


@breaks("CRASH-8")
class SyncsOnceMoreAndBelievesIt(Machine):
    """A flush that follows a failed one syncs again, and returns."""

    def __init__(self, directory: Path) -> None:
        super().__init__(TriesAgainStore(directory))

    def flush(self) -> None:
        self._require_running()
        self._store.flush()


class LeavesHalfStore(MarkedStore):
    def take_back(self, end: int) -> None:
        pass

    def bad_record(self, content: bytes, at: int) -> list[WriteBatch]:
        later = any(self.record_at(content, later)[1] for later in range(at + 1, len(content)))
        if later:
            raise self.corrupt(self.journal(self.number), at, "holds a damaged record")
        self.torn = len(content)
        return []

    def read_journal(self, content: bytes) -> list[WriteBatch]:
        self.torn = 0
        batches = super().read_journal(content)
        self.end = max(self.end, self.torn)
        return batches


@breaks("CRASH-8")
class LeavesHalfARecordBehind(Machine):
    """What a failed write has left stays in the journal, in front of what comes later."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LeavesHalfStore(directory))


class BareErrorStore(MarkedStore):
    def open(self) -> None:
        try:
            super().open()
        except StorageError as exc:
            raise exc.__cause__ or exc from None


@breaks("CRASH-8")
class LetsPermissionErrorsThrough(Machine):
    """A directory that may not be written is an OSError, no StorageError."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BareErrorStore(directory))


# Failing reads


class ValueFileStore(MarkedStore):
    """Keeps the user's values in a file of their own, and only places of them in memory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.values = directory / "values"

    def recover(self) -> None:
        with suppress(FileExistsError):
            self.fs.close(self.fs.open(self.values, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        super().recover()

    def write(self, batch: WriteBatch) -> None:
        super().write(self.placed(batch))

    def replace_all(self, batches) -> None:
        super().replace_all(map(self.placed, list(batches)))

    def placed(self, batch: WriteBatch) -> WriteBatch:
        """Append the values of a batch to their file, durably; return their places."""
        with storage_errors(self.values, "write", "nothing was written"):
            fd = self.fs.open(self.values, os.O_WRONLY | os.O_APPEND)
            try:
                at = os.fstat(fd).st_size
                data: dict[bytes, bytes | None] = {}
                for key, value in batch.data.items():
                    if value is None:
                        data[key] = None
                        continue
                    write_all(self.fs, fd, zlib.crc32(value).to_bytes(4) + value)
                    data[key] = encode([at, len(value)])
                    at += 4 + len(value)
                self.fs.fsync(fd)
            finally:
                self.fs.close(fd)
        return WriteBatch(data, batch.internal)

    def value_at(self, place: bytes | None) -> bytes | None:
        if place is None:
            return None
        offset, length = decode(place)
        with storage_errors(self.values, "read", "nothing was read"):
            stored = self.read_bytes(offset, 4 + length)
        return self.checked(stored, length, offset)

    def read_bytes(self, offset: int, size: int) -> bytes:
        fd = self.fs.open(self.values, os.O_RDONLY)
        try:
            return self.fs.pread(fd, size, offset)
        finally:
            self.fs.close(fd)

    def checked(self, stored: bytes, length: int, offset: int) -> bytes | None:
        value = stored[4:]
        if len(value) != length or zlib.crc32(value).to_bytes(4) != stored[:4]:
            raise self.corrupt(self.values, offset, "holds a damaged value")
        return value

    def get(self, key: bytes) -> bytes | None:
        return self.value_at(super().get(key))

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.value_at(place) for place in super().get_multi(keys)]

    def view(self) -> RamView:
        view = super().view()
        scan, get, get_multi = view.scan, view.get, view.get_multi

        def scan_values(start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            for key, place in scan(start, stop):
                yield key, self.value_at(place)  # type: ignore[misc]  # it has a place

        view.scan = scan_values
        view.get = lambda key: self.value_at(get(key))
        view.get_multi = lambda keys: [self.value_at(place) for place in get_multi(keys)]
        return view


class SoundDiskMachine(Machine):
    """The store above: its values are read from disk each time."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ValueFileStore(directory))


class AbsentIfUnreadableStore(ValueFileStore):
    def value_at(self, place: bytes | None) -> bytes | None:
        try:
            return super().value_at(place)
        except StorageError:
            return None


@breaks("READ-5", keeps_state_in_memory=False)
class CallsUnreadableAbsent(Machine):
    """A value that cannot be read is None, as if there were none."""

    def __init__(self, directory: Path) -> None:
        super().__init__(AbsentIfUnreadableStore(directory))


class AbsentOnErrorStore(ValueFileStore):
    def get(self, key: bytes) -> bytes | None:
        try:
            return super().get(key)
        except StorageError as exc:
            if isinstance(exc.__cause__, OSError):
                return None
            raise


@breaks("READ-5", keeps_state_in_memory=False)
class CallsAnIOErrorAbsent(Machine):
    """An I/O error in `get` is None; damaged bytes are noticed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(AbsentOnErrorStore(directory))


class WhatIsLeftStore(ValueFileStore):
    def checked(self, stored: bytes, length: int, offset: int) -> bytes | None:
        return stored[4:]


@breaks("READ-5", keeps_state_in_memory=False)
class ReturnsWhatIsLeftOfAValue(Machine):
    """A value whose end is cut off is returned without it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(WhatIsLeftStore(directory))


class BareReadErrorStore(ValueFileStore):
    def value_at(self, place: bytes | None) -> bytes | None:
        if place is None:
            return None
        offset, length = decode(place)
        return self.checked(self.read_bytes(offset, 4 + length), length, offset)


@breaks("READ-5", keeps_state_in_memory=False)
class LetsReadErrorsThrough(Machine):
    """A value that cannot be read is an OSError, no StorageError."""

    def __init__(self, directory: Path) -> None:
        super().__init__(BareReadErrorStore(directory))


class ShorterScanStore(ValueFileStore):
    def view(self) -> RamView:
        view = super().view()
        scan = view.scan

        def scan_readable(start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
            with suppress(StorageError):
                yield from scan(start, stop)

        view.scan = scan_readable
        return view


@breaks("READ-5", keeps_state_in_memory=False)
class EndsAScanAtAnError(Machine):
    """A scan that meets an error ends there, as if there were no more."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ShorterScanStore(directory))
