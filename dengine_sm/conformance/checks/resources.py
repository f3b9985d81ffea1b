"""The check of what a machine leaves behind after fifty cycles of use (LIFE-8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from dengine_sm.conformance.processes import holdings
from dengine_sm.conformance.processes.cycles import ENTRIES, Counts, count_over_cycles
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, violates

CYCLES = 50
_EVERY = 10
_CYCLE = (
    "construct, start, apply, apply over a gap, start a second machine here and one on a "
    "foreign directory, flush, cancel a snapshot, write one where a file is and one under a "
    "wrong id, install a damaged, a stale and a sound one, reset now and then, stop twice, read"
)


def fifty_cycles_leak_nothing(trial: Trial) -> None:
    """Use a machine in fifty cycles with failing paths; nothing it holds grows with them."""
    trial.needs_maker()
    if not holdings.can_tell():
        raise CannotCheckError("there is no /proc: what a process holds cannot be counted")
    assert trial.subject.maker is not None
    temporary = trial.directory("tmp")
    entries = trial.oracle(ENTRIES).log
    environment = {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP", "SQLITE_TMPDIR")}
    with Nursery(trial.subject.maker, environment) as nursery:
        host = nursery.spawn(trial.directory("unused"))
        root = trial.directory()
        maker = trial.subject.maker.to_json()
        # The first cycles make what an engine makes once: they are counted, not judged.
        counts = host.run(count_over_cycles, maker, root, entries, CYCLES + _EVERY, _EVERY)
        _expect_no_growth(counts)
        if not trial.subject.is_transient:
            _expect_unlocked(trial, root / "data")
    trial.evidence.update(cycles=CYCLES, held={kind: len(now) for kind, now in counts[-1].items()})


def _expect_no_growth(counts: Sequence[Counts]) -> None:
    """Look for what grows with the cycles; a pool that fills up stops growing."""
    __tracebackhide__ = True
    for kind in counts[0]:
        numbers = [len(held[kind]) for held in counts]
        if all(later > earlier for earlier, later in pairwise(numbers)):
            more = Counter(counts[-1][kind]) - Counter(counts[0][kind])
            shown = ", ".join(f"{what} ({n} more)" for what, n in more.most_common(5))
            violates(
                "LIFE-8",
                expected=f"as many {kind} after {CYCLES} more cycles: {numbers[0]}",
                observed=f"{', '.join(map(str, numbers))}; {shown}",
                history=[f"{_EVERY} cycles, then {CYCLES} more, counted every {_EVERY}", _CYCLE],
            )


def _expect_unlocked(trial: Trial, directory: Path) -> None:
    """Start here what was stopped there; its process is still alive."""
    __tracebackhide__ = True
    try:
        trial.open(directory)
    except Exception as exc:
        violates(
            "LIFE-8",
            expected=f"start() after {CYCLES} cycles in another process",
            observed=f"{type(exc).__name__}: {exc}",
        )


CHECKS = (Check("LIFE-8", fifty_cycles_leak_nothing, Profile.QUICK),)
