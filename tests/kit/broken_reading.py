"""Machines broken in what reads say while the storage fails."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from broken_base import breaks
from marked_store import MarkedStore
from plain_stores import Machine

from dengine_sm.codec import decode, encode
from dengine_sm.errors import StorageError
from dengine_sm.files.filesystem import storage_errors, write_all
from dengine_sm.kv import WriteBatch
from dengine_sm.kv.ram import RamView


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
