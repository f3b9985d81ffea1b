"""The clauses that options touch which change how the disk is written, by the quick profile."""

from __future__ import annotations

from dengine_sm.conformance import Profile, Status, run_conformance, subject_of_backend

PER_APPLY = ("LIFE-3", "APPLY-3", "LOG-3", "CRASH-2", "CRASH-8")
GROWING_MAP = ("CRASH-1", "CRASH-3", "CRASH-6", "SNAP-1", "SNAP-3", "SNAP-7", "READ-1")
_FINE = (Status.PASSED, Status.NOT_BOUND, Status.SKIPPED)
"""Skipped is what needs `strace`, where there is none."""


def test_synced_commits_in_a_map_that_grows_pass_the_kit():
    options = {"durability": "per_apply", "map_size": 1 << 20}

    wanted = {*PER_APPLY, *GROWING_MAP}
    report = run_conformance(
        subject_of_backend("lmdb", options), profile=Profile.QUICK, only=tuple(wanted)
    )

    assert wanted == {
        clause.clause for clause in report.clauses if clause.status is not Status.NOT_BOUND
    }
    assert [check for check in report.checks if check.status not in _FINE] == []
