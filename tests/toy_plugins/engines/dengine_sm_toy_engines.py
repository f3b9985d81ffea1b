"""Backends to copy from and to: another engine, custom machines, and one that lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dengine_sm import Backend, Entry, Limits, Outcome, StateMachine, hookimpl

VICTIM = b"victim"


def create_sqlite(data_dir: Path, options: Any) -> StateMachine:
    """Return a sound key-value machine over SQLite; `tests/kit` must be on the path."""
    from sound_sqlite import SoundSQLiteMachine

    return SoundSQLiteMachine(data_dir)


class Sum:
    """The sum of all commands, each a number."""

    def __init__(self) -> None:
        self.total = 0

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        """Add a number."""
        if not entry.data.isdigit():
            return Outcome.REJECTED, None
        self.total += int(entry.data)
        return Outcome.APPLIED, None

    def get(self, key: bytes) -> bytes | None:
        """Return the sum under every key."""
        return b"%d" % self.total

    def dump(self) -> Iterable[bytes]:
        """Return the sum."""
        return [b"%d" % self.total]

    def load(self, records: Iterable[bytes]) -> None:
        """Take the sum over."""
        (record,) = records
        self.total = int(record)

    def len(self) -> int:
        return int(self.total != 0)


def create_sum(data_dir: Path, options: Any) -> StateMachine:
    """Return a machine whose snapshots are not portable."""
    from dengine_sm.application import ApplicationStateMachine

    return ApplicationStateMachine(Sum, data_dir, format="toy-sum/1")


def create_liar(data_dir: Path, options: Any) -> StateMachine:
    """Return a machine that installs a whole state in memory, and on disk all but one key."""
    from dengine_sm.backends.file_store import FileStore
    from dengine_sm.kv import KeyValueStateMachine, WriteBatch

    class Liar(FileStore):
        def replace_all(self, batches: Iterable[WriteBatch]) -> None:
            lost: dict[bytes, bytes | None] = {}

            def without_victim() -> Iterable[WriteBatch]:
                for batch in batches:
                    if VICTIM in batch.data:
                        lost[VICTIM] = batch.data.pop(VICTIM)
                    yield batch

            super().replace_all(without_victim())
            self._ram.write(WriteBatch(lost))

    return KeyValueStateMachine(Liar(data_dir))


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Offer them."""
    return [
        Backend("toy-sqlite", create_sqlite, limits=Limits(1024, 64 * 1024)),
        Backend("toy-sum", create_sum),
        Backend("toy-liar", create_liar, limits=Limits()),
    ]
