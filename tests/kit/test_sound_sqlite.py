"""The kit finds nothing wrong with a sound machine over another engine."""

from __future__ import annotations

import pytest
from broken_base import subject_of
from sound_sqlite import SoundSQLiteMachine

from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import run_check
from dengine_sm.conformance.trial import Check

SUBJECT = subject_of(SoundSQLiteMachine, keeps_state_in_memory=False, detects_damage=False)
CHECKS = [
    check for check in checks_for(Profile.STANDARD) if check.clause.startswith(("SNAP-", "READ-"))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_sound_machine_over_sqlite_passes(check: Check):
    result = run_check(check, SUBJECT, profile=check.profile)

    sound = (Status.PASSED, Status.NOT_BOUND)
    assert result.status in sound, result.details or result.reason
