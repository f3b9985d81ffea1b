"""The conformance kit: prove a backend, or learn exactly how it breaks the contract.

A backend's author needs five lines:

    class TestMyMachine(StateMachineTests):
        @pytest.fixture
        def open_state_machine(self):
            return MyMachine  # called with a directory, fresh or used

Names are loaded when they are first used: the processes in which machines are killed have
no need of pytest and hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dengine_sm.late import late_names

if TYPE_CHECKING:
    from dengine_sm.conformance.application import ApplicationWorkload
    from dengine_sm.conformance.backend import subject_of_backend
    from dengine_sm.conformance.key_value import KeyValueModel, KeyValueWorkload
    from dengine_sm.conformance.profile import Profile
    from dengine_sm.conformance.results import CheckResult, ClauseResult, Report, Status
    from dengine_sm.conformance.runner import run_conformance
    from dengine_sm.conformance.subject import Subject
    from dengine_sm.conformance.suite import StateMachineTests
    from dengine_sm.conformance.workload import Model, Workload

__all__ = [
    "ApplicationWorkload",
    "CheckResult",
    "ClauseResult",
    "KeyValueModel",
    "KeyValueWorkload",
    "Model",
    "Profile",
    "Report",
    "StateMachineTests",
    "Status",
    "Subject",
    "Workload",
    "run_conformance",
    "subject_of_backend",
]

_HOMES = {
    "ApplicationWorkload": "application",
    "CheckResult": "results",
    "ClauseResult": "results",
    "KeyValueModel": "key_value",
    "KeyValueWorkload": "key_value",
    "Model": "workload",
    "Profile": "profile",
    "Report": "results",
    "StateMachineTests": "suite",
    "Status": "results",
    "Subject": "subject",
    "Workload": "workload",
    "run_conformance": "runner",
    "subject_of_backend": "backend",
}

__getattr__, __dir__ = late_names(__name__, _HOMES)
