"""Every deliberately broken machine: at least one for each clause of the contract."""

from __future__ import annotations

import broken_apply
import broken_crash
import broken_damage
import broken_delivery
import broken_determinism
import broken_disk
import broken_example
import broken_history
import broken_life
import broken_locks
import broken_native
import broken_place
import broken_power
import broken_read
import broken_reading
import broken_reset
import broken_snapshot
import broken_snapshot_after
import broken_snapshot_install
import broken_snapshot_traces
from broken_base import Broken, broken_in

BROKEN: tuple[Broken, ...] = tuple(
    broken
    for module in (
        broken_reset,
        broken_place,
        broken_read,
        broken_locks,
        broken_life,
        broken_crash,
        broken_disk,
        broken_damage,
        broken_power,
        broken_native,
        broken_reading,
        broken_example,
        broken_history,
        broken_apply,
        broken_delivery,
        broken_determinism,
        broken_snapshot,
        broken_snapshot_after,
        broken_snapshot_install,
        broken_snapshot_traces,
    )
    for broken in broken_in(module)
)
