"""The quick profile over options that change how the disk is written."""

from __future__ import annotations

from dengine_sm.conformance import Profile, Status, run_conformance, subject_of_backend

_PAST_THE_LAYER = "the backend writes part of its files past dengine_sm.files"


def test_synced_commits_in_a_map_that_grows_pass_the_kit():
    options = {"durability": "per_apply", "map_size": 1 << 20}

    report = run_conformance(subject_of_backend("lmdb", options), profile=Profile.QUICK)

    assert report.is_complete
    wrong = [c for c in report.checks if c.status not in (Status.PASSED, Status.NOT_BOUND)]
    assert [c for c in wrong if not c.reason.startswith(_PAST_THE_LAYER)] == []
