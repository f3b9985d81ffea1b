"""Sequences whose items are made only when somebody looks at them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """Equal to any sequence of equal items. A slice without a step makes no item either."""

    __slots__ = ()

    @abstractmethod
    def _item(self, position: int) -> T:
        """Return the item at a position that is inside."""

    @abstractmethod
    def _part(self, start: int, stop: int) -> Sequence[T]:
        """Return the items of some positions, not made either."""

    @abstractmethod
    def _whole(self) -> str:
        """Return what this is, such as `a chunk of 3 results`."""

    @overload
    def __getitem__(self, position: int) -> T: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[T]: ...

    def __getitem__(self, position: int | slice) -> T | Sequence[T]:
        length = len(self)
        if isinstance(position, slice):
            start, stop, step = position.indices(length)
            return self._part(start, stop) if step == 1 else list(self)[position]
        if position < 0:
            position += length
        if not 0 <= position < length:
            raise IndexError(f"position {position} of {self._whole()}")
        return self._item(position)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # compares by content with mutable lists

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"
