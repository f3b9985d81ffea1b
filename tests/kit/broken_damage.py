"""Machines broken in what damaged and torn files leave."""

from __future__ import annotations

import shutil
import zlib
from contextlib import suppress
from pathlib import Path

from broken_base import SoundFileMachine, breaks
from marked_store import HEADER, MarkedStore
from plain_stores import Machine

from dengine_sm.codec import decode_prefix, encode
from dengine_sm.errors import CorruptionError
from dengine_sm.kv import WriteBatch


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


@breaks("CRASH-5")
class BeginsAnewWhenItsLogIsGone(SoundFileMachine):
    """A directory whose log is empty counts as a new one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory

    def start(self) -> None:
        log = self.directory / "log"
        if self.directory.exists() and not (log.is_dir() and any(log.iterdir())):
            for path in self.directory.glob("MANIFEST"):
                path.unlink()
            shutil.rmtree(log, ignore_errors=True)
            for path in self.directory.glob("checkpoint-*"):
                shutil.rmtree(path)
        super().start()
