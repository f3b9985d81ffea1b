"""Checks of apply and determinism pass machines that differ from ours and are right."""

from __future__ import annotations

import pytest
from broken_base import subject_of
from sound_apply import AppliesInAThreadOfItsOwn, IsExcused, ReadsOneKeyAtATime, SerialisesCalls

from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import run_check
from dengine_sm.model import Durability

CASES = (
    (SerialisesCalls, Durability.TRANSIENT, "calls_on_one_loop_never_interleave"),
    (AppliesInAThreadOfItsOwn, Durability.PER_APPLY, "calls_on_one_loop_never_interleave"),
    (AppliesInAThreadOfItsOwn, Durability.PER_APPLY, "calls_in_two_threads_never_interleave"),
    (AppliesInAThreadOfItsOwn, Durability.PER_APPLY, "any_sequence_is_a_chunk"),
    (AppliesInAThreadOfItsOwn, Durability.PER_APPLY, "io_failure_poisons_until_a_restart"),
    (ReadsOneKeyAtATime, Durability.TRANSIENT, "observers_never_see_them_apart"),
    (IsExcused, Durability.PER_APPLY, "applying_looks_at_the_log_alone"),
    (IsExcused, Durability.PER_APPLY, "installing_looks_at_the_snapshot_alone"),
)


@pytest.mark.parametrize(
    ("make", "durability", "check_name"), CASES, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_kit_passes_a_sound_machine(make, durability, check_name):
    (check,) = [c for c in checks_for(Profile.STANDARD) if c.function.__name__ == check_name]

    result = run_check(check, subject_of(make, durability=durability), profile=Profile.STANDARD)

    assert result.status is Status.PASSED, result.details or result.reason
