"""The contract, proven for the default options; `test_sqlite_variants.py` has the others."""

from __future__ import annotations

import pytest
from dengine_sm_sqlite import create_sqlite

from dengine_sm.conformance import StateMachineTests


class TestSQLite(StateMachineTests):
    detects_damage = False

    @pytest.fixture
    def open_state_machine(self):
        return create_sqlite
