"""A machine that follows an oracle's log, with every call it gets written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import attrs

from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.violation import Violation
from dengine_sm.contract import StateMachine
from dengine_sm.model import ApplyResult, Entry


def call_of(chunk: Sequence[Entry]) -> str:
    """Return how a history tells of an apply."""
    if not chunk:
        return "apply_chunk([])"
    if len(chunk) == 1:
        return f"apply_chunk([entry {chunk[0].index}])"
    return f"apply_chunk([entries {chunk[0].index}..{chunk[-1].index}])"


def chunk_ends(count: int, sizes: Sequence[int], *, start: int = 0) -> Iterator[int]:
    """Cut the indices `(start, count]` into chunks of these sizes, over and over.

    Yields:
        The last index of each chunk.
    """
    last = start
    for size in cycle(sizes):
        if last >= count:
            return
        last = min(count, last + size)
        yield last


@attrs.define
class Follower:
    """Delivers an oracle's log to one machine and compares what comes back."""

    oracle: Oracle
    machine: StateMachine
    applied: int = 0
    """Index of the newest entry delivered."""
    history: list[str] = attrs.field(factory=list)
    """The calls so far, oldest first."""

    def chunk_to(self, last: int, *, again: int = 0) -> list[Entry]:
        """Return the next chunk, up to index `last`, with `again` duplicates in front."""
        return self.oracle.entries(max(1, self.applied + 1 - again), last)

    async def deliver(
        self, clause: str, chunk: Sequence[Entry], what: str = ""
    ) -> Sequence[ApplyResult]:
        """Apply a chunk, whatever it is, and return its results; raising breaks the clause."""
        __tracebackhide__ = True
        self.history.append(what or call_of(chunk))
        # Asked before: what the call leaves of the chunk is not to be relied on.
        last = chunk[-1].index if len(chunk) else 0
        try:
            results = await self.machine.apply_chunk(chunk)
        except Exception as exc:
            raise Violation(
                clause,
                expected="one result per entry",
                observed=f"{self.history[-1]} raised {type(exc).__name__}: {exc}",
                history=self.history,
            ) from exc
        self.applied = max(self.applied, last)
        return results

    async def follow(self, clause: str, last: int, *, again: int = 0) -> Sequence[ApplyResult]:
        """Apply up to index `last`, with duplicates in front, and compare the results."""
        __tracebackhide__ = True
        before = self.applied
        chunk = self.chunk_to(last, again=again)
        results = await self.deliver(clause, chunk)
        self.oracle.check_results(clause, chunk, results, applied=before, history=self.history)
        return results

    async def follow_all(self, clause: str, sizes: Sequence[int], *, to: int | None = None) -> None:
        """Apply the rest of the log, or up to an index, in chunks of these sizes."""
        __tracebackhide__ = True
        count = len(self.oracle.log) if to is None else to
        for last in chunk_ends(count, sizes, start=self.applied):
            await self.follow(clause, last)

    def check(self, clause: str, what: str = "") -> None:
        """Compare the state with the model's at what was delivered."""
        __tracebackhide__ = True
        self.oracle.check_state(
            clause, self.machine, index=self.applied, what=what, history=self.history
        )

    def restart(self) -> None:
        """Stop and start the machine."""
        self.history += ["stop()", "start()"]
        self.machine.stop()
        self.machine.start()
