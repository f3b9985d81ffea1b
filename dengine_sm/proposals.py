"""Who waits for which log index, and the results that came before they asked.

A log may hand an entry to the follower before `append` returns to the proposer. Results
are therefore kept for as long as an append is under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import attrs

from dengine_sm.log.contract import LogIdRange
from dengine_sm.model import ApplyResult


class Waiter(Protocol):
    """Somebody who waits for the results of consecutive entries."""

    def deliver(self, position: int, results: Sequence[ApplyResult]) -> None:
        """Take results for the entries from `position` of the range on."""
        ...

    def fail(self, error: BaseException) -> None:
        """Take an error instead of what is missing."""
        ...


@attrs.frozen
class Singles:
    """One future per command."""

    futures: list[asyncio.Future[ApplyResult]]

    def deliver(self, position: int, results: Sequence[ApplyResult]) -> None:
        """Resolve the futures from a position on."""
        futures = self.futures
        for result in results:
            future = futures[position]
            if not future.done():
                future.set_result(result)
            position += 1

    def fail(self, error: BaseException) -> None:
        """Fail the futures that are not resolved."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


@attrs.define
class Block:
    """One future for all commands of a range."""

    count: int
    future: asyncio.Future[Sequence[ApplyResult]]
    results: list[ApplyResult] = attrs.field(factory=list)

    def deliver(self, position: int, results: Sequence[ApplyResult]) -> None:
        """Collect results; resolve the future with the last."""
        if len(results) < self.count:
            self.results += results
            results = self.results
        # All in one piece is the usual case, and then nothing is copied or built.
        if len(results) == self.count and not self.future.done():
            self.future.set_result(results)

    def fail(self, error: BaseException) -> None:
        """Fail the future."""
        if not self.future.done():
            self.future.set_exception(error)


@attrs.define
class _Range:
    first: int
    """First index that is still without a result."""
    last: int
    waiter: Waiter
    origin: int
    """Index of the range's first entry."""


class ProposalTracker:
    """Matches committed ranges with applied results; used by one event loop."""

    def __init__(self) -> None:
        self._appends = 0
        self._ranges: deque[_Range] = deque()
        self._early: deque[tuple[int, Sequence[ApplyResult]]] = deque()

    def begin_append(self) -> None:
        """Note that an append is under way."""
        self._appends += 1

    def end_append(self, ids: LogIdRange | None = None, waiter: Waiter | None = None) -> None:
        """Note that an append ended; with ids, its waiter gets their results."""
        if ids is not None and waiter is not None:
            entry = _Range(ids.first_index, ids.last_index, waiter, ids.first_index)
            for first, results in self._early:
                if not self._offer(entry, first, results):
                    break
            if entry.first <= entry.last:
                self._ranges.append(entry)
        self._appends -= 1
        if not self._appends:
            self._early.clear()

    def applied(self, first_index: int, results: Sequence[ApplyResult]) -> None:
        """Give results of consecutive entries to those who wait for them."""
        done = 0
        for entry in self._ranges:
            self._offer(entry, first_index, results)
            done += entry.first > entry.last
        if done:
            self._ranges = deque(entry for entry in self._ranges if entry.first <= entry.last)
        if self._appends:
            self._early.append((first_index, results))

    @staticmethod
    def _offer(entry: _Range, first_index: int, results: Sequence[ApplyResult]) -> bool:
        """Deliver the overlap; False when the results begin behind the range."""
        if first_index > entry.last:
            return False
        end = min(entry.last + 1, first_index + len(results))
        if first_index <= entry.first < end:
            low = entry.first - first_index
            whole = low == 0 and end - first_index == len(results)
            part = results if whole else results[low : end - first_index]
            position = entry.first - entry.origin
            entry.first = end
            entry.waiter.deliver(position, part)
        return True

    def fail(self, error: BaseException) -> None:
        """Give an error to everybody who waits."""
        for entry in self._ranges:
            entry.waiter.fail(error)
        self._ranges.clear()
        self._early.clear()
