"""Hand-made reports with every status, for the tests of what is made from reports."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs

from dengine_sm.conformance.clauses import clauses
from dengine_sm.conformance.results import CheckResult, Report, Status
from dengine_sm.conformance.runner import clause_results

HOSTILE = '<script>document.title = "hacked"</script> & \x1b[31m \x00 \ud800 ]]>'
"""What an engine's error text may hold."""

_CALLS = ("openat", "pwrite64", "fdatasync", "rename", "fsync", "ftruncate")
_STEPS = ("start", "apply_chunk", "flush", "persist_last_applied", "stop")


def sweep(points: int = 120, *, violated: bool = True) -> list[list[Any]]:
    """Return the points of a crash sweep."""
    rows: list[list[Any]] = []
    for k in range(1, points + 1):
        mixed = k * 2654435761 & 0xFFFFFFFF
        call = _CALLS[(mixed >> 8) % len(_CALLS)]
        outcome = ("recovered to the last chunk", "recovered to the flush before", "not reached")[
            (mixed >> 16) % 3
        ]
        if violated and k == points * 2 // 3:
            outcome = "violated CRASH-1"
        rows.append([k, call, f"{k % 4:08}.log", _STEPS[(mixed >> 4) % 5], outcome])
    return rows


def check(clause: str, status: Status, **fields: Any) -> CheckResult:
    """Return a result of an invented check."""
    if status is Status.FAILED:
        fields = {"violated": clause, **fields}
    name = f"{clause.lower().replace('-', '_')}_{fields.pop('name', 'holds')}"
    return CheckResult(name, clause, status, fields.pop("time_s", 0.123), **fields)


def failed(clause: str = "APPLY-4", **fields: Any) -> CheckResult:
    """Return a failed check, with all that a failure tells."""
    told = {
        "violated": clause,
        "reason": f"{clause}: expected b'1'; observed b'2'",
        "expected": "state: (b'1', None)",
        "observed": f"state: (b'2', None) {HOSTILE}",
        "history": ("start()", "apply_chunk(entries 1..3)", HOSTILE),
        "details": f"Traceback (most recent call last):\n  ...\n{HOSTILE}",
    }
    return check(clause, Status.FAILED, **{**told, **fields})


def report(*results: CheckResult, unchecked: Collection[str] = (), **fields: Any) -> Report:
    """Return a report: the given checks, and a passed one for every other clause."""
    looked_at = {result.clause for result in results} | set(unchecked)
    checks = [
        *results,
        *(
            check(clause, Status.PASSED, evidence={"histories": 60, "kills": 12})
            for clause in clauses()
            if clause not in looked_at
        ),
    ]
    checks.sort(key=lambda result: list(clauses()).index(result.clause))
    whole = Report(
        backend="acme",
        version="2.3.0",
        distribution="acme-sm",
        options={"durability": "per_apply", "text": "two words", "sync": True},
        durability="per_apply",
        workload="kv/1",
        contract_version=1,
        kit_version="0.1.0",
        python="3.11.9",
        machine="Linux 6.1.0 x86_64, 2 cores",
        profile="standard",
        seed=7,
        started_at="2026-11-24T15:04:05+00:00",
        time_s=83.4,
        is_complete=True,
        clauses=clause_results(checks, ()),
        checks=tuple(checks),
        abilities=("get_multi", "scan_prefix"),
    )
    return attrs.evolve(whole, **fields)


def mixed_report(**fields: Any) -> Report:
    """Return a report with every status, sweeps and hostile texts."""
    return report(*_one_of_each(), unchecked=["LIFE-8"], **fields)


def _one_of_each() -> tuple[CheckResult, ...]:
    transient = "the machine has no scan_prefix: it is no SupportsScanPrefix"
    return (
        failed(),
        check(
            "CRASH-1",
            Status.FAILED,
            violated="CRASH-3",
            reason="CRASH-3: expected a chunk boundary; observed index 41",
            expected="a chunk boundary: index 40 or 45",
            observed="last_applied LogId(term=3, index=41)",
            history=("apply_chunk(entries 36..40)", "apply_chunk(entries 41..45)", "kill"),
            evidence={"kills": 120, "timeline": sweep()},
            time_s=41.7,
        ),
        check(
            "CRASH-2",
            Status.PASSED,
            evidence={"points": 900, "timeline": sweep(900, violated=False)},
        ),
        check("CRASH-8", Status.SKIPPED, reason="strace is not installed"),
        check("READ-2", Status.NOT_BOUND, reason=transient),
        check("SNAP-13", Status.NOT_BOUND, reason="the machine keeps its state in memory"),
        check(
            "READ-5",
            Status.KNOWN_FAILURE,
            violated="READ-5",
            reason="acme/sm#12: a failed read answers None",
            expected="StorageError",
            observed="None",
        ),
        check("DET-2", Status.FAILED, violated="DET-2", reason="raised ValueError: x"),
    )
