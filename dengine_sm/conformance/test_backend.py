"""The kit's checks over an installed backend: `pytest --pyargs dengine_sm.conformance`."""

from __future__ import annotations

import pytest

from dengine_sm.config import parse_options
from dengine_sm.conformance.backend import subject_of_backend
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.suite import StateMachineTests


class TestBackend(StateMachineTests):
    """The backend that `--state-machine` names."""

    @pytest.fixture
    def conformance_subject(self, request: pytest.FixtureRequest) -> Subject:
        """Return the installed backend; its registration says what it declares."""
        name = request.config.getoption("--state-machine")
        if name is None:
            pytest.fail("say which backend: --state-machine NAME", pytrace=False)
        given = request.config.getoption("--state-machine-option")
        return subject_of_backend(name, parse_options(given))
