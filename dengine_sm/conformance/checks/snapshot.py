"""The table of all snapshot checks, SNAP-1 to SNAP-13."""

from __future__ import annotations

from dengine_sm.conformance.checks import (
    snapshot_beside,
    snapshot_crash,
    snapshot_damage,
    snapshot_failure,
    snapshot_install,
    snapshot_memory,
    snapshot_metadata,
    snapshot_portable,
    snapshot_tail,
    snapshot_write,
)
from dengine_sm.conformance.trial import Check

CHECKS: tuple[Check, ...] = (
    *snapshot_write.CHECKS,
    *snapshot_beside.CHECKS,
    *snapshot_damage.CHECKS,
    *snapshot_install.CHECKS,
    *snapshot_crash.CHECKS,
    *snapshot_tail.CHECKS,
    *snapshot_metadata.CHECKS,
    *snapshot_portable.CHECKS,
    *snapshot_failure.CHECKS,
    *snapshot_memory.CHECKS,
)
