"""The results of a chunk, built only when somebody looks.

A follower or a replay looks at none of them, and an `ApplyResult` costs as much as
decoding its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import repeat
from types import MappingProxyType

from dengine_sm.lazy_sequence import LazySequence
from dengine_sm.model import ApplyResult, Outcome


class ChunkResults(LazySequence[ApplyResult]):
    """One result per entry: duplicates first, then applied ones but for the rejected.

    Args:
        first_index: index of the chunk's first entry.
        count: number of entries.
        duplicates: how many entries at the front are duplicates.
        rejected: positions in the chunk that were rejected.
        values: position to value, for the results that have one.
    """

    __slots__ = ("_count", "_duplicates", "_rejected", "_values", "first_index")

    def __init__(
        self,
        first_index: int,
        count: int,
        duplicates: int = 0,
        rejected: set[int] | frozenset[int] = frozenset(),
        values: Mapping[int, bytes] = MappingProxyType({}),
    ) -> None:
        self.first_index = first_index
        self._count = count
        self._duplicates = duplicates
        self._rejected = rejected
        self._values = values

    def __len__(self) -> int:
        return self._count

    def _item(self, position: int) -> ApplyResult:
        if position < self._duplicates:
            outcome = Outcome.DUPLICATE
        elif position in self._rejected:
            outcome = Outcome.REJECTED
        else:
            outcome = Outcome.APPLIED
        return ApplyResult(self.first_index + position, outcome, self._values.get(position))

    def _part(self, start: int, stop: int) -> ChunkResults:
        positions = range(start, stop)
        return ChunkResults(
            self.first_index + start,
            len(positions),
            min(max(0, self._duplicates - start), len(positions)),
            {position - start for position in self._rejected if position in positions},
            {at - start: value for at, value in self._values.items() if at in positions},
        )

    def _whole(self) -> str:
        return f"a chunk of {self._count} results"

    def __iter__(self) -> Iterator[ApplyResult]:
        # Sequence's own goes through __getitem__, which costs three times as much.
        first = self.first_index
        special = self._rejected | self._values.keys()
        if not (self._duplicates or special):
            return map(ApplyResult, range(first, first + self._count), repeat(Outcome.APPLIED))
        return self._mixed(special)

    def _mixed(self, special: AbstractSet[int]) -> Iterator[ApplyResult]:
        for position in range(self._count):
            if position >= self._duplicates and position not in special:
                yield ApplyResult(self.first_index + position, Outcome.APPLIED)
            else:
                yield self._item(position)
