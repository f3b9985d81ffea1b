"""The conformance kit over the backend, as any author would run it."""

from __future__ import annotations

import pytest
from dengine_sm_lmdb import create_lmdb

from dengine_sm.conformance import StateMachineTests


class TestLMDB(StateMachineTests):
    detects_damage = False

    @pytest.fixture
    def open_state_machine(self):
        return create_lmdb
