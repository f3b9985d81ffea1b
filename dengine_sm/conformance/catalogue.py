"""Every check of the kit, in the contract's order."""

from __future__ import annotations

from collections.abc import Collection

from dengine_sm.conformance.checks import (
    apply,
    apply_failures,
    apply_observers,
    apply_order,
    apply_overlap,
    basic,
    crash,
    crash_errors,
    crash_sweep,
    damage,
    determinism,
    disk_faults,
    expiry,
    history,
    life,
    life_directory,
    life_stopped,
    place,
    power_loss,
    read,
    read_bytes,
    read_concurrent,
    read_failures,
    read_install,
    read_scan,
    reset,
    resources,
    sessions,
    snapshot,
)
from dengine_sm.conformance.clauses import clauses
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check

_TABLES: tuple[tuple[Check, ...], ...] = (
    basic.CHECKS,
    apply.CHECKS,
    apply_order.CHECKS,
    apply_observers.CHECKS,
    apply_overlap.CHECKS,
    apply_failures.CHECKS,
    determinism.CHECKS,
    expiry.CHECKS,
    sessions.CHECKS,
    crash.CHECKS,
    crash_errors.CHECKS,
    crash_sweep.CHECKS,
    snapshot.CHECKS,
    damage.CHECKS,
    disk_faults.CHECKS,
    power_loss.CHECKS,
    read_failures.CHECKS,
    history.CHECKS,
    read.CHECKS,
    read_bytes.CHECKS,
    read_concurrent.CHECKS,
    read_install.CHECKS,
    read_scan.CHECKS,
    life.CHECKS,
    life_directory.CHECKS,
    life_stopped.CHECKS,
    place.CHECKS,
    reset.CHECKS,
    resources.CHECKS,
)


def all_checks() -> tuple[Check, ...]:
    """Return every check, those of one clause together, in the contract's order."""
    order = list(clauses())
    found = [check for table in _TABLES for check in table]
    return tuple(sorted(found, key=lambda check: order.index(check.clause)))


def checks_for(profile: Profile, only: Collection[str] = ()) -> tuple[Check, ...]:
    """Return the checks that a profile runs, of some clauses or, with none given, of all.

    Raises:
        ValueError: `only` names something that is no clause.
    """
    unknown = sorted(set(only) - set(clauses()))
    if unknown:
        raise ValueError(
            f"clause: expected an id such as 'APPLY-2', observed {', '.join(map(repr, unknown))}"
        )
    return tuple(
        check
        for check in all_checks()
        if check.profile <= profile and (not only or check.clause in only)
    )
