"""The ledger against the contract: commands, a way to look, and the kit does the rest.

Run it: `python -m pytest examples/test_ledger.py`
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from ledger import Ledger, create, encode

from dengine_sm.conformance import ApplicationWorkload, StateMachineTests

ACCOUNTS = st.sampled_from(["bank", "alice", "bob", "carol"])

COMMANDS = st.one_of(
    st.builds(lambda name: {"op": "open", "account": name, "overdraft": name == "bank"}, ACCOUNTS),
    st.fixed_dictionaries(
        {
            "op": st.just("transfer"),
            "id": st.integers(0, 40).map("t{}".format),
            "from": ACCOUNTS,
            "to": ACCOUNTS,
            "amount": st.sampled_from([1, 5, 100, 10**15, 0]),
        }
    ),
).map(encode)

GARBAGE = st.sampled_from([b"", b"no JSON", b"{}", b"[1, 2]", encode({"op": "open"})])


def look(machine: Any) -> bytes:
    """Return all accounts and transfers, from a machine or from a bare ledger."""
    return bytes(machine.query(b'{"op": "audit"}'))


class TestLedger(StateMachineTests):
    """The kit's checks, over the ledger."""

    workload = ApplicationWorkload(
        name="ledger/1",
        application_factory=Ledger,
        strategy=st.one_of(COMMANDS, COMMANDS, COMMANDS, COMMANDS, GARBAGE),
        look=look,
        look_is_atomic=True,
    )
    keeps_state_in_memory = True

    @pytest.fixture
    def open_state_machine(self) -> Any:
        """Return the factory: a directory in, a machine out."""
        return create
