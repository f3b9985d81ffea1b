"""The clauses that other options touch, by the quick profile over the installed backend."""

from __future__ import annotations

from dengine_sm.conformance import Profile, Status, run_conformance, subject_of_backend

PER_APPLY = ("LIFE-3", "APPLY-3", "LOG-3", "CRASH-2", "CRASH-8")
NEED_STRACE = {"CRASH-6", "CRASH-8"}
CHECKPOINTS = ("CRASH-1", "CRASH-3", "CRASH-6", "SNAP-1", "SNAP-3", "SNAP-7", "READ-1")


def test_a_machine_that_syncs_and_checkpoints_all_the_time_keeps_the_contract():
    options = {"durability": "per_apply", "checkpoint_bytes": 1 << 16, "cache_bytes": 1 << 18}

    report = run_conformance(
        subject_of_backend("sqlite", options),
        profile=Profile.QUICK,
        only=(*PER_APPLY, *CHECKPOINTS),
    )

    tried = {result.clause for result in report.checks if result.status is Status.PASSED}
    assert tried >= {*PER_APPLY, *CHECKPOINTS} - NEED_STRACE
    broken = [result for result in report.checks if result.status is Status.FAILED]
    assert not broken, "\n\n".join(result.details or "" for result in broken)
