"""The kit's quick profile over the installed backend with other options."""

from __future__ import annotations

from dengine_sm.conformance import Profile, Status, run_conformance, subject_of_backend


def test_a_machine_that_syncs_and_checkpoints_all_the_time_keeps_the_contract():
    options = {"durability": "per_apply", "checkpoint_bytes": 1 << 16, "cache_bytes": 1 << 18}

    report = run_conformance(subject_of_backend("sqlite", options), profile=Profile.QUICK)

    broken = [result for result in report.checks if result.status is Status.FAILED]
    assert not broken, "\n\n".join(result.details or "" for result in broken)
