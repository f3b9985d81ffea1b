"""A double-entry ledger: a state machine of its own, not key-value, run on a node.

Commands are JSON objects: `open` makes an account, `transfer` moves money between two.
Only accounts opened with `"overdraft": true` may go below zero, so the sum over all
accounts is always 0. A transfer carries an id; sent twice, it is booked once.

Run it: `python examples/ledger.py`
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from dengine_sm import (
    Backend,
    Durability,
    Entry,
    NodeBuilder,
    NodeConfig,
    Outcome,
    StateMachine,
    hookimpl,
)
from dengine_sm.application import ApplicationStateMachine
from dengine_sm.config import NodeSection

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
MAX_AMOUNT = 10**15
FORMAT = "ledger/1"


def encode(command: dict[str, Any]) -> bytes:
    """Encode a command or an answer; keys sorted, so that equal ones are equal bytes."""
    return json.dumps(command, sort_keys=True, separators=(",", ":")).encode()


def is_name(value: object) -> TypeGuard[str]:
    """Tell whether a value is fit for an account name or a transfer id."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


class Ledger:
    """Accounts and the transfers booked between them."""

    def __init__(self) -> None:
        self.balances: dict[str, int] = {}
        self.overdraft: dict[str, bool] = {}
        self.booked: dict[str, tuple[str, str, int, int]] = {}

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        """Carry out one command; anything malformed is REJECTED."""
        try:
            command = json.loads(entry.data)
        except (ValueError, RecursionError):
            return Outcome.REJECTED, b"not JSON"
        match command:
            case {"op": "open", "account": name, **rest} if rest.keys() <= {"overdraft"}:
                return self._open(name, rest.get("overdraft", False))
            case {"op": "transfer", "id": key, "from": debit, "to": credit, "amount": amount}:
                if len(command) == 5:
                    return self._transfer(key, debit, credit, amount, entry.timestamp_ms)
        return Outcome.REJECTED, b"unknown command"

    def _open(self, name: object, overdraft: object) -> tuple[Outcome, bytes | None]:
        if not is_name(name) or not isinstance(overdraft, bool):
            return Outcome.REJECTED, b"malformed account"
        if name in self.balances:
            return Outcome.REJECTED, b"account exists"
        self.balances[name] = 0
        self.overdraft[name] = overdraft
        return Outcome.APPLIED, None

    def _transfer(
        self, key: object, debit: object, credit: object, amount: object, now_ms: int
    ) -> tuple[Outcome, bytes | None]:
        if not is_name(key) or not is_name(debit) or not is_name(credit) or debit == credit:
            return Outcome.REJECTED, b"malformed transfer"
        if type(amount) is bool or not isinstance(amount, int) or not 1 <= amount <= MAX_AMOUNT:
            return Outcome.REJECTED, b"malformed amount"
        if key in self.booked:
            same = self.booked[key][:3] == (debit, credit, amount)
            return (Outcome.APPLIED, b"booked before") if same else (Outcome.REJECTED, b"id in use")
        if debit not in self.balances or credit not in self.balances:
            return Outcome.REJECTED, b"no such account"
        if self.balances[debit] < amount and not self.overdraft[debit]:
            return Outcome.REJECTED, b"overdraft"
        self.balances[debit] -= amount
        self.balances[credit] += amount
        self.booked[key] = (debit, credit, amount, now_ms)
        return Outcome.APPLIED, b"%d" % self.balances[debit]

    def get(self, key: bytes) -> bytes | None:
        """Return an account's balance in decimal digits."""
        balance = self.balances.get(key.decode("ascii", "replace"))
        return None if balance is None else b"%d" % balance

    def query(self, request: bytes) -> bytes:
        """Answer the requests `balances`, `statement` of an account, and `audit` of it all."""
        match json.loads(request):
            case {"op": "balances"}:
                return encode(self.balances)
            case {"op": "statement", "account": name}:
                lines = {k: t for k, t in self.booked.items() if name in t[:2]}
                return encode(lines)
            case {"op": "audit"}:
                return encode({"balances": self.balances, "booked": self.booked})
        raise ValueError(f"unknown query {request!r}")

    def dump(self) -> Iterable[bytes]:
        """Return the state as records; what it lists is copied now, not later."""
        accounts = [["account", n, b, self.overdraft[n]] for n, b in sorted(self.balances.items())]
        transfers = [["transfer", key, *t] for key, t in sorted(self.booked.items())]
        return (json.dumps(row).encode() for row in [*accounts, *transfers])

    def load(self, records: Iterable[bytes]) -> None:
        """Replace the state by dumped records."""
        for table in (self.balances, self.overdraft, self.booked):
            table.clear()
        for record in records:
            match json.loads(record):
                case ["account", name, balance, overdraft]:
                    self.balances[name], self.overdraft[name] = balance, overdraft
                case ["transfer", key, debit, credit, amount, now_ms]:
                    self.booked[key] = (debit, credit, amount, now_ms)

    def len(self) -> int:
        """Return the number of accounts."""
        return len(self.balances)


def create(data_dir: Path, options: object = None) -> StateMachine:
    """Make a ledger machine; `start` opens the directory."""
    return ApplicationStateMachine(Ledger, data_dir, format=FORMAT)


BACKEND = Backend("ledger", create, durability=Durability.ON_FLUSH, summary="double-entry ledger")


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Register the ledger; an entry point in group `dengine_sm` would name this module."""
    return [BACKEND]


async def run(data_dir: Path) -> dict[str, int]:
    """Book a few transfers on a node and return the balances."""
    machine = create(data_dir / "ledger")
    config = NodeConfig(node=NodeSection(data_dir=data_dir / "node"))
    builder = NodeBuilder(config)
    async with builder.state_machine(machine).commit_log("embedded").build() as node:
        await node.propose(encode({"op": "open", "account": "bank", "overdraft": True}))
        await node.propose_many(
            [encode({"op": "open", "account": name}) for name in ("alice", "bob")]
        )
        transfers = [
            {"id": "t1", "from": "bank", "to": "alice", "amount": 100},
            {"id": "t2", "from": "alice", "to": "bob", "amount": 30},
            {"id": "t2", "from": "alice", "to": "bob", "amount": 30},
            {"id": "t3", "from": "bob", "to": "alice", "amount": 500},
        ]
        for transfer in transfers:
            result = await node.propose(encode({"op": "transfer", **transfer}))
            print(f"{transfer['id']}: {result.outcome.value} {result.value!r}")
        balances: dict[str, int] = json.loads(await node.query(b'{"op": "balances"}'))
    return balances


def main() -> None:
    """Run the example in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        for account, balance in asyncio.run(run(Path(directory))).items():
            print(f"{account:8}{balance:8}")


if __name__ == "__main__":
    main()
