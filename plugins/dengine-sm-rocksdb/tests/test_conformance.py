"""The backend keeps the contract: the kit, by its main door, and its variants by name."""

from __future__ import annotations

import importlib.util

import pytest
from dengine_sm_rocksdb import create_rocksdb

from dengine_sm.conformance import Profile, StateMachineTests, run_conformance, subject_of_backend


class TestRocksDB(StateMachineTests):
    @pytest.fixture
    def open_state_machine(self):
        return create_rocksdb


PER_APPLY = ("LIFE-3", "APPLY-3", "LOG-3", "CRASH-2", "CRASH-8")
OTHER_BINDING = ("LIFE-2", "LIFE-6", "APPLY-2", "CRASH-1", "CRASH-5", "SNAP-1", "SNAP-7", "READ-1")


@pytest.mark.parametrize(
    ("options", "clauses"),
    [
        ({"durability": "per_apply"}, PER_APPLY),
        ({"write_buffer_bytes": 65536, "block_cache_bytes": 0}, ("CRASH-1", "CRASH-5", "READ-1")),
        ({"binding": "python-rocksdb"}, OTHER_BINDING),
    ],
)
def test_variants_keep_the_contract(options: dict[str, object], clauses: tuple[str, ...]) -> None:
    if "binding" in options and importlib.util.find_spec("aimrocks") is None:
        pytest.skip("aimrocks has no wheels above Python 3.12, and python-rocksdb does not build")
    report = run_conformance(
        subject_of_backend("rocksdb", options), profile=Profile.QUICK, only=clauses
    )

    bad = [check for check in report.checks if check.status.value not in ("passed", "skipped")]
    assert bad == []
    assert {clause.clause for clause in report.clauses if clause.status.value == "passed"} >= set(
        clauses
    )
