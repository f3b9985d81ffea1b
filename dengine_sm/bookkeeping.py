"""A machine's place in the log: reusable parts for every state machine.

`check_chunk` tells duplicates from new entries and refuses gaps; `TermHistory` answers
`entry_term`; `check_advance` guards `update_last_applied` and `persist_last_applied`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import attrs

from dengine_sm.entries import EntryBlock
from dengine_sm.errors import LogGapError, LogOrderError
from dengine_sm.model import Entry, LogId

UNKNOWN_TERM = 0


def check_chunk(chunk: Sequence[Entry], last_applied: LogId) -> int:
    """Return the position in the chunk of the first entry that is not a duplicate.

    `len(chunk)` when all are (APPLY-5).

    Raises:
        LogGapError: an index is missing before or inside the chunk (APPLY-6).
        LogOrderError: a new entry's term is below the one before it (APPLY-6).
    """
    if not chunk:
        return 0
    first = chunk[0].index
    if isinstance(chunk, EntryBlock):
        # It cannot have a gap.
        terms = {chunk.term}
    else:
        indices = [entry.index for entry in chunk]
        if indices != list(range(first, first + len(indices))):
            _refuse_inner_gap(indices)
        terms = {entry.term for entry in chunk}
    if first > last_applied.index + 1:
        missing = f"{last_applied.index + 1}..{first - 1}"
        raise LogGapError(
            f"entry {chunk[0].log_id} does not follow last_applied {last_applied}: "
            f"indices {missing} are missing; nothing was applied",
            expected_index=last_applied.index + 1,
            observed_index=first,
        )
    start = min(len(chunk), last_applied.index + 1 - first)
    if terms != {last_applied.term}:
        _check_terms(chunk, start, last_applied)
    return start


def _refuse_inner_gap(indices: list[int]) -> None:
    for before, index in pairwise(indices):
        if index != before + 1:
            raise LogGapError(
                f"chunk has index {index} right after {before}: expected {before + 1}; "
                "nothing was applied",
                expected_index=before + 1,
                observed_index=index,
            )


def _check_terms(chunk: Sequence[Entry], start: int, last_applied: LogId) -> None:
    term = last_applied.term
    for position in range(start, len(chunk)):
        entry = chunk[position]
        if entry.term < term:
            raise LogOrderError(
                f"entry {entry.log_id} has a lower term than {term}, the one before it "
                f"(last_applied {last_applied}); nothing was applied",
                last_applied=last_applied,
                observed=entry.log_id,
            )
        term = entry.term


def check_advance(last_applied: LogId, target: LogId) -> bool:
    """Tell whether an advance to `target` moves the applied id; False when equal.

    Raises:
        LogOrderError: index or term would go back (LOG-1).
    """
    if target == last_applied:
        return False
    if target.index <= last_applied.index or target.term < last_applied.term:
        raise LogOrderError(
            f"last_applied {last_applied} cannot move to {target}: expected a higher index "
            "and no lower term; nothing changed",
            last_applied=last_applied,
            observed=target,
        )
    return True


@attrs.define
class TermHistory:
    """Which term each applied entry has, as runs of equal terms (LOG-2).

    One run per change of term, so it stays small however long the log is.
    """

    _firsts: list[int] = attrs.field(factory=list)
    _terms: list[int] = attrs.field(factory=list)

    @classmethod
    def starting_at(cls, last_included: LogId) -> TermHistory:
        """Return the history after an install: it knows `last_included` only."""
        if last_included == LogId.ZERO:
            return cls()
        return cls([last_included.index], [last_included.term])

    def copy(self) -> TermHistory:
        """Return an independent copy."""
        return TermHistory(list(self._firsts), list(self._terms))

    @property
    def last_term(self) -> int:
        """Term of the newest run; 0 when nothing is known."""
        return self._terms[-1] if self._terms else UNKNOWN_TERM

    def extend(self, entries: Sequence[Entry], start: int = 0) -> bool:
        """Record the new entries of a checked chunk; tell whether a run was added."""
        known = len(self._terms)
        # Terms never fall inside a checked chunk, so equal ends mean one term throughout.
        if start < len(entries) and entries[-1].term != self.last_term:
            if entries[start].term == entries[-1].term:
                self._add(entries[start].index, entries[start].term)
            else:
                for position in range(start, len(entries)):
                    entry = entries[position]
                    if entry.term != self.last_term:
                        self._add(entry.index, entry.term)
        return len(self._terms) != known

    def skip_to(self, last_applied: LogId, target: LogId) -> bool:
        """Record an advance past entries that were not seen; tell whether runs were added."""
        if target.term == self.last_term:
            return False
        if target.index > last_applied.index + 1:
            self._add(last_applied.index + 1, UNKNOWN_TERM)
        self._add(target.index, target.term)
        return True

    def _add(self, index: int, term: int) -> None:
        self._firsts.append(index)
        self._terms.append(term)

    def term_of(self, index: int, last_applied: LogId) -> int | None:
        """Return the term at an index, or None outside what is known."""
        if index > last_applied.index:
            return None
        run = bisect_right(self._firsts, index) - 1
        if run < 0 or self._terms[run] == UNKNOWN_TERM:
            return None
        return self._terms[run]

    def pack(self) -> list[list[int]]:
        """Return `[[first index, term], ...]` for the codec."""
        return [[first, term] for first, term in zip(self._firsts, self._terms, strict=True)]

    @classmethod
    def unpack(cls, item: Any) -> TermHistory:
        """Return the history that `pack` gave.

        Raises:
            ValueError: the item is anything else.
        """
        try:
            firsts = [int(first) for first, _ in item]
            terms = [int(term) for _, term in item]
        except (TypeError, ValueError) as exc:
            raise ValueError(f"term history: expected pairs, observed {item!r}") from exc
        return cls(firsts, terms)
