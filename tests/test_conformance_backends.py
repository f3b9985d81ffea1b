"""The first-party backends keep the contract: the kit, by its main door."""

from __future__ import annotations

from pathlib import Path

import pytest

from dengine_sm.backends.file import FileOptions, create_file
from dengine_sm.backends.memory import create_memory
from dengine_sm.conformance import (
    Profile,
    StateMachineTests,
    Status,
    run_conformance,
    subject_of_backend,
)
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


@pytest.mark.long
def test_per_apply_keeps_the_clauses_that_durability_touches() -> None:
    clauses = ("LIFE-3", "LIFE-4", "APPLY-2", "APPLY-3", "LOG-3", "SNAP-7", "RESET-1")
    clauses += tuple(f"CRASH-{number}" for number in range(1, 9))

    report = run_conformance(
        subject_of_backend("file", {"durability": "per_apply"}),
        profile=Profile.STANDARD,
        only=clauses,
    )

    passed = {clause.clause for clause in report.clauses if clause.status is Status.PASSED}
    assert passed == set(clauses), [check.details for check in report.checks if check.details]


def create_rolling_file(directory: Path) -> StateMachine:
    """Make a machine whose log files roll and whose checkpoints run all the time."""
    return create_file(directory, FileOptions(segment_bytes=8192, checkpoint_bytes=16384))
