"""Results of a chunk: the same as a list of them, whole or in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dengine_sm import ApplyResult, Outcome
from dengine_sm.kv.results import ChunkResults


def listed(first: int, count: int, duplicates: int, rejected: set[int]) -> list[ApplyResult]:
    """What there is to be, said another way."""
    outcomes = [
        Outcome.DUPLICATE
        if position < duplicates
        else Outcome.REJECTED
        if position in rejected
        else Outcome.APPLIED
        for position in range(count)
    ]
    values = [b"v" if position == 2 and duplicates <= 2 else None for position in range(count)]
    return [
        ApplyResult(first + position, outcome, value)
        for position, (outcome, value) in enumerate(zip(outcomes, values, strict=True))
    ]


@given(
    count=st.integers(0, 6),
    duplicates=st.integers(0, 6),
    rejected=st.sets(st.integers(0, 5)),
    cut=st.slices(6),
    again=st.slices(6),
)
def test_parts_are_those_of_a_list(
    count: int, duplicates: int, rejected: set[int], cut: slice, again: slice
) -> None:
    duplicates = min(duplicates, count)
    rejected = {position for position in rejected if duplicates <= position < count}
    values = {2: b"v"} if duplicates <= 2 < count else {}
    results = ChunkResults(7, count, duplicates, rejected, values)
    expected = listed(7, count, duplicates, rejected)

    assert list(results) == expected == [results[i] for i in range(count)]
    assert results[cut] == expected[cut]
    assert results[cut][again] == expected[cut][again]
    assert len(results[cut]) == len(expected[cut])


def test_a_part_without_a_step_builds_nothing() -> None:
    part = ChunkResults(1, 1000)[10:20]

    assert isinstance(part, ChunkResults)
    assert part.first_index == 11
    with pytest.raises(IndexError, match="a chunk of 10 results"):
        part[10]
