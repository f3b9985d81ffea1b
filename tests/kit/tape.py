"""An application that keeps every command, its machine, and how to look at one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from dengine_sm.application import ApplicationStateMachine
from dengine_sm.files import OsFileSystem
from dengine_sm.model import Entry, Outcome, SnapshotMetadata

FORMAT = "tape/1"


class Tape:
    """Keeps every command with its time; order and number matter."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        if entry.data == b"bad":
            return Outcome.REJECTED, b"bad"
        self.lines.append(b"%d %s" % (entry.timestamp_ms, entry.data))
        if entry.data == b"explode":
            raise ZeroDivisionError("boom")
        return Outcome.APPLIED, b"%d" % len(self.lines)

    def get(self, key: bytes) -> bytes | None:
        position = int(key)
        return self.lines[position] if position < len(self.lines) else None

    def query(self, request: bytes) -> bytes:
        return b"\n".join(self.lines)

    def dump(self) -> Iterable[bytes]:
        return list(self.lines)

    def load(self, records: Iterable[bytes]) -> None:
        self.lines = list(records)

    def len(self) -> int:
        return len(self.lines)


class BreakableDisk(OsFileSystem):
    """The real disk until a call is told to fail."""

    def __init__(self) -> None:
        self.failing: set[str] = set()

    def _check(self, call: str) -> None:
        if call in self.failing:
            raise OSError(28, os.strerror(28))

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        self._check("write")
        return super().write(fd, data)

    def fdatasync(self, fd: int) -> None:
        self._check("fdatasync")
        super().fdatasync(fd)

    def replace(self, source: Path, target: Path) -> None:
        self._check("replace")
        super().replace(source, target)


def entries(first: int, count: int, term: int = 1, data: bytes = b"x") -> list[Entry]:
    return [Entry(i, term, 1000 + i, data + b"%d" % i) for i in range(first, first + count)]


def make(directory: Path, **options: object) -> ApplicationStateMachine:
    return ApplicationStateMachine(Tape, directory, format=FORMAT, **options)  # type: ignore[arg-type]


def seen(machine: ApplicationStateMachine) -> tuple[object, ...]:
    """Return all that a machine shows of its state."""
    last_applied = machine.last_applied()
    terms = [machine.entry_term(index) for index in range(last_applied.index + 2)]
    return machine.query(b""), machine.len(), last_applied, terms, machine.snapshot_metadata()


def reopened(directory: Path, aside: Path) -> tuple[object, ...]:
    """Return what a machine shows that starts on a copy: the files as a kill leaves them."""
    shutil.copytree(directory, aside)
    machine = make(aside)
    machine.start()
    try:
        return seen(machine)
    finally:
        machine.stop()


async def snapshot(machine: ApplicationStateMachine, directory: Path) -> SnapshotMetadata:
    last_included = machine.last_applied()
    checksum = await machine.generate_snapshot_data(directory, last_included)
    metadata = machine.snapshot_metadata()
    assert metadata == SnapshotMetadata(last_included, checksum, FORMAT)
    return metadata
