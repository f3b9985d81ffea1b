"""Whether what concurrent clients saw could have happened one operation after the other.

The search of Wing and Gong with Lowe's memoisation of (operations placed, state), each key by
itself, which is sound for linearizability (Herlihy and Wing 1990, theorem on locality).
Cost over the 102 histories of `shared/data/jepsen-etcd` (170 operations each): median 0.4 ms and
103 configurations, at most 1.6 s and 226,115; a configuration takes about 400 bytes.

Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for
linearizability" (2017).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import attrs

MOST_CONFIGURATIONS = 1_000_000


@attrs.frozen
class Operation:
    """What one client asked of one key."""

    process: Hashable
    key: Hashable
    kind: Literal["read", "write", "cas"]
    argument: Any
    """Of a write: the value; of a cas: `(expected, new)`."""
    result: Any
    """Of a read: the value; of a cas: whether it matched."""
    call: float
    returned: float | None
    """None: never answered; it may have happened at any time after the call, or not at all."""


Step: TypeAlias = Callable[[Hashable, Operation], tuple[bool, Hashable]]
"""`step(state, operation)`: whether it can have happened in this state, and the state after."""


@attrs.frozen
class Verdict:
    """The answer for a history; its text is for people."""

    linearizable: bool
    key: Hashable = None
    placed: Sequence[Operation] = ()
    """The longest order that was found."""
    stuck: Operation | None = None
    """Answered, and fits nowhere behind that order."""
    configurations: int = 0
    """Memoised over all keys: what the search cost."""

    def __str__(self) -> str:
        if self.linearizable:
            return f"linearizable ({self.configurations} configurations)"
        lines = [f"key {self.key!r}: no order explains what was seen; the longest one ends with"]
        lines += [f"  {_told(operation)}" for operation in self.placed[-10:]]
        stuck = _told(self.stuck) if self.stuck else "?"
        return "\n".join(
            [*lines, "and then this one was answered, and fits nowhere:", f"  {stuck}"]
        )


class TooManyConfigurationsError(Exception):
    """The search was given up: this says nothing about the history."""


def step_register(state: Hashable, operation: Operation) -> tuple[bool, Hashable]:
    """Step a register with compare-and-swap; an unanswered cas happened as a matching one."""
    match operation.kind:
        case "read":
            return state == operation.result, state
        case "write":
            return True, operation.argument
        case "cas":
            expected, new = operation.argument
            if operation.returned is None or operation.result:
                return state == expected, new
            return state != expected, state


def check(
    history: Iterable[Operation],
    initial: Hashable = None,
    *,
    step: Step = step_register,
    limit: int = MOST_CONFIGURATIONS,
) -> Verdict:
    """Search an order for every key.

    Raises:
        TooManyConfigurationsError: a key's search went beyond `limit`.
    """
    by_key: defaultdict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    total = 0
    for key, operations in by_key.items():
        dead_end, cost = _search(operations, initial, step, limit)
        total += cost
        if dead_end is not None:
            return Verdict(False, key, *dead_end, configurations=total)
    return Verdict(True, configurations=total)


class _Events:
    """Calls and returns in time order as a doubly linked list; event 0 is its head."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        events = []
        for number, operation in enumerate(operations):
            returned = math.inf if operation.returned is None else operation.returned
            # At equal times calls come first: the two then count as concurrent.
            events.append((operation.call, 0, number))
            events.append((returned, 1, number))
        events.sort()
        size = len(events) + 1
        self.operation = [-1] + [number for _, _, number in events]
        self.is_return = [False] + [bool(kind) for _, kind, _ in events]
        self.after = [*range(1, size), 0]
        self.before = [size - 1, *range(size - 1)]
        self.return_of = {number: at for at, (_, kind, number) in enumerate(events, 1) if kind == 1}

    def lift(self, call: int) -> None:
        """Take an operation out."""
        for at in (call, self.return_of[self.operation[call]]):
            self.after[self.before[at]] = self.after[at]
            self.before[self.after[at]] = self.before[at]

    def put_back(self, call: int) -> None:
        """Undo the last `lift`."""
        for at in (self.return_of[self.operation[call]], call):
            self.after[self.before[at]] = at
            self.before[self.after[at]] = at


def _search(
    operations: Sequence[Operation], initial: Hashable, step: Step, limit: int
) -> tuple[tuple[list[Operation], Operation] | None, int]:
    """Return None if there is an order, else the furthest dead end; and what it cost."""
    events = _Events(operations)
    state, placed_bits = initial, 0
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = []
    longest: tuple[list[Operation], Operation] | None = None
    at = events.after[0]
    while at:
        number = events.operation[at]
        operation = operations[number]
        if not events.is_return[at]:
            fits, next_state = step(state, operation)
            bits = placed_bits | 1 << number
            if fits and (bits, next_state) not in seen:
                seen.add((bits, next_state))
                if len(seen) > limit:
                    raise TooManyConfigurationsError(
                        f"key {operation.key!r}: more than {limit} configurations for "
                        f"{len(operations)} operations"
                    )
                stack.append((at, state))
                state, placed_bits = next_state, bits
                events.lift(at)
                at = events.after[0]
            else:
                at = events.after[at]
            continue
        if operation.returned is None:
            # Only unanswered operations are left, and those need not have happened.
            return None, len(seen)
        if longest is None or len(stack) > len(longest[0]):
            longest = [operations[events.operation[call]] for call, _ in stack], operation
        if not stack:
            return longest, len(seen)
        call, state = stack.pop()
        placed_bits ^= 1 << events.operation[call]
        events.put_back(call)
        at = events.after[call]
    return None, len(seen)


def _told(operation: Operation) -> str:
    returned = "unanswered" if operation.returned is None else f"{operation.returned:.4f}"
    return (
        f"[{operation.call:.4f}, {returned}] {operation.process}: {operation.kind} "
        f"{operation.argument!r} -> {operation.result!r}"
    )
