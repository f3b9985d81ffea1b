"""The kit catches every broken machine, and blames the clause that it breaks."""

from __future__ import annotations

import shutil

import pytest
from broken import BROKEN
from broken_base import Broken, subject

from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.clauses import clauses
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import run_check
from dengine_sm.conformance.trial import Check


def attempts(clause: str) -> list[tuple[Check, Profile]]:
    """Return a clause's checks, those of the quick profile first as it runs them."""
    checks = checks_for(Profile.STANDARD, [clause])
    quick = [(check, Profile.QUICK) for check in checks if check.profile is Profile.QUICK]
    return quick + [(check, Profile.STANDARD) for check in checks]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_the_kit_blames_the_clause_that_is_broken(broken: Broken):
    if broken.needs_strace and shutil.which("strace") is None:
        pytest.skip("strace is not installed, and only strace shows what the machine does")
    results = []
    for check, profile in attempts(broken.found_by or broken.clause):
        result = run_check(check, subject(broken), profile=profile, hang_s=20)
        results.append(result)
        if result.status is Status.FAILED:
            break

    failed = [result for result in results if result.status is Status.FAILED]
    assert failed, [(r.check, r.status.value, r.reason) for r in results]
    assert broken.clause == failed[0].violated, failed[0].details
    assert clauses()[broken.clause].sentence in failed[0].details or "busy" in failed[0].reason


def test_every_clause_has_a_broken_machine():
    assert set(clauses()) - {broken.clause for broken in BROKEN} == set()


def test_every_clause_has_a_check():
    assert set(clauses()) - {check.clause for check in checks_for(Profile.DEEP)} == set()


def test_names_are_unique():
    names = [check.name for check in checks_for(Profile.DEEP)]
    assert len(names) == len(set(names))
    assert len(BROKEN) == len({broken.name for broken in BROKEN})
