"""The quick profile over options that change how the disk is written."""

from __future__ import annotations

from dengine_sm.conformance import Profile, Status, run_conformance, subject_of_backend

_FINE = (Status.PASSED, Status.NOT_BOUND, Status.SKIPPED)
"""Skipped is what needs `strace`, where there is none."""


def test_synced_commits_in_a_map_that_grows_pass_the_kit():
    options = {"durability": "per_apply", "map_size": 1 << 20}

    report = run_conformance(subject_of_backend("lmdb", options), profile=Profile.QUICK)

    assert report.is_complete
    assert [check for check in report.checks if check.status not in _FINE] == []
