"""The results of a chunk, built only when somebody looks.

A follower or a replay looks at none of them, and an `ApplyResult` costs as much as
decoding its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import repeat
from types import MappingProxyType
from typing import overload

from dengine_sm.model import ApplyResult, Outcome


class ChunkResults(Sequence[ApplyResult]):
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

    @overload
    def __getitem__(self, position: int) -> ApplyResult: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[ApplyResult]: ...

    def __getitem__(self, position: int | slice) -> ApplyResult | Sequence[ApplyResult]:
        if isinstance(position, slice):
            start, stop, step = position.indices(self._count)
            return self._part(start, stop) if step == 1 else list(self)[position]
        if position < 0:
            position += self._count
        if not 0 <= position < self._count:
            raise IndexError(f"position {position} of a chunk of {self._count} results")
        if position < self._duplicates:
            outcome = Outcome.DUPLICATE
        elif position in self._rejected:
            outcome = Outcome.REJECTED
        else:
            outcome = Outcome.APPLIED
        return ApplyResult(self.first_index + position, outcome, self._values.get(position))

    def _part(self, start: int, stop: int) -> ChunkResults:
        """Return the results of some positions, not built either."""
        positions = range(start, stop)
        return ChunkResults(
            self.first_index + start,
            len(positions),
            min(max(0, self._duplicates - start), len(positions)),
            {position - start for position in self._rejected if position in positions},
            {at - start: value for at, value in self._values.items() if at in positions},
        )

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
                yield self[position]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # compares by content with mutable lists

    def __repr__(self) -> str:
        return f"ChunkResults({list(self)!r})"
