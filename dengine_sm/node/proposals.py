"""Who waits for which log index, and the results that came before they asked.

A log may hand an entry to the follower before `append` returns to the proposer. Results
are therefore kept for as long as an append is under way that began before them.
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


@attrs.define(eq=False)
class _Append:
    """An append under way."""

    behind: int
    """Highest index applied when it began; whatever it appends has a higher one."""
    ended: bool = False


class ProposalTracker:
    """Matches committed ranges with applied results; used by one event loop."""

    def __init__(self) -> None:
        self._begun: deque[_Append] = deque()
        self._applied = 0
        self._skipped_to = 0
        self._skip_error: BaseException | None = None
        self._ranges: deque[_Range] = deque()
        self._early: deque[tuple[int, Sequence[ApplyResult]]] = deque()

    def begin_append(self) -> _Append:
        """Note that an append is under way; what it appends lies behind all applied by now."""
        append = _Append(self._applied)
        self._begun.append(append)
        return append

    def end_append(
        self, append: _Append, ids: LogIdRange | None = None, waiter: Waiter | None = None
    ) -> None:
        """Note that an append ended; with ids, its waiter gets their results."""
        if ids is not None and waiter is not None:
            entry = _Range(ids.first_index, ids.last_index, waiter, ids.first_index)
            for first, results in self._early:
                if not self._offer(entry, first, results):
                    break
            if entry.first <= self._skipped_to and self._skip_error is not None:
                waiter.fail(self._skip_error)
            elif entry.first <= entry.last:
                self._ranges.append(entry)
        append.ended = True
        self._forget_early()

    def _forget_early(self) -> None:
        """Drop the results that no append under way can ask for."""
        while self._begun and self._begun[0].ended:
            self._begun.popleft()
        if not self._begun:
            self._early.clear()
            return
        needed = self._begun[0].behind
        while self._early and self._early[0][0] + len(self._early[0][1]) - 1 <= needed:
            self._early.popleft()

    def applied(self, first_index: int, results: Sequence[ApplyResult]) -> None:
        """Give results of consecutive entries to those who wait for them."""
        done = 0
        for entry in self._ranges:
            self._offer(entry, first_index, results)
            done += entry.first > entry.last
        if done:
            self._ranges = deque(entry for entry in self._ranges if entry.first <= entry.last)
        self._applied = first_index + len(results) - 1
        if self._begun:
            self._early.append((first_index, results))

    def skipped(self, index: int, error: BaseException) -> None:
        """Note that entries up to an index were applied by an install: there are no results."""
        self._applied = max(self._applied, index)
        self._skipped_to, self._skip_error = index, error
        for entry in self._ranges:
            if entry.first <= index:
                entry.waiter.fail(error)
        self._ranges = deque(entry for entry in self._ranges if entry.first > index)

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
