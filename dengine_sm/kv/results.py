"""The results of a chunk, built only when somebody looks.

A follower or a replay looks at none of them, and an `ApplyResult` costs as much as
decoding its command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    def __getitem__(self, position: slice) -> list[ApplyResult]: ...

    def __getitem__(self, position: int | slice) -> ApplyResult | list[ApplyResult]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(self._count))]
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

    def __iter__(self) -> Iterator[ApplyResult]:
        # Sequence's own goes through __getitem__, which costs three times as much.
        first, duplicates = self.first_index, self._duplicates
        special = self._rejected | self._values.keys()
        applied = Outcome.APPLIED
        for position in range(self._count):
            if position >= duplicates and position not in special:
                yield ApplyResult(first + position, applied)
            else:
                yield self[position]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # compares by content with mutable lists

    def __repr__(self) -> str:
        return f"ChunkResults({list(self)!r})"
