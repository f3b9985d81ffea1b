"""Machines over an engine that writes its files itself, broken in what a power loss leaves."""

from __future__ import annotations

import os
from pathlib import Path

from broken_base import LIMITS, breaks
from sound_sqlite import DATABASE, SQLiteStore

from dengine_sm.kv import KeyValueStateMachine
from dengine_sm.model import Durability

NATIVE = {"keeps_state_in_memory": False, "detects_damage": False, "needs_strace": True}


class UnsyncedStore(SQLiteStore):
    def _sync(self) -> None:
        pass


@breaks("CRASH-6", **NATIVE)
class FlushesAnEngineWithoutASync(KeyValueStateMachine):
    """A flush does nothing: the engine has it all in the page cache."""

    def __init__(self, directory: Path) -> None:
        super().__init__(UnsyncedStore(directory), limits=LIMITS)


class OneFileStore(SQLiteStore):
    def _sync(self) -> None:
        fd = os.open(self.directory / DATABASE, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@breaks("CRASH-6", **NATIVE)
class SyncsTheDatabaseWithoutItsLog(KeyValueStateMachine):
    """A flush syncs the database file; the newest chunks are in the engine's log."""

    def __init__(self, directory: Path) -> None:
        super().__init__(OneFileStore(directory), limits=LIMITS)


@breaks("CRASH-6", durability=Durability.PER_APPLY, **NATIVE)
class PromisesMoreThanTheEngineSyncs(KeyValueStateMachine):
    """Declares PER_APPLY; the engine syncs when it is flushed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(SQLiteStore(directory), limits=LIMITS)
