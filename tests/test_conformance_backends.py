"""The first-party backends keep the contract: the kit, by its main door."""

from __future__ import annotations

from pathlib import Path

import pytest

from dengine_sm.backends.file import FileOptions, create_file
from dengine_sm.backends.memory import create_memory
from dengine_sm.conformance import StateMachineTests
from dengine_sm.contract import StateMachine
from dengine_sm.model import Durability


class TestMemory(StateMachineTests):
    durability = Durability.TRANSIENT
    keeps_state_in_memory = True

    @pytest.fixture
    def open_state_machine(self):
        return create_memory


class TestFile(StateMachineTests):
    keeps_state_in_memory = True

    @pytest.fixture
    def open_state_machine(self):
        return create_rolling_file


class TestFilePerApply(StateMachineTests):
    durability = Durability.PER_APPLY
    keeps_state_in_memory = True

    @pytest.fixture
    def open_state_machine(self):
        return create_synced_file


def create_rolling_file(directory: Path) -> StateMachine:
    """Make a machine whose log files roll and whose checkpoints run all the time."""
    return create_file(directory, FileOptions(segment_bytes=8192, checkpoint_bytes=16384))


def create_synced_file(directory: Path) -> StateMachine:
    return create_file(directory, FileOptions(durability=Durability.PER_APPLY))
