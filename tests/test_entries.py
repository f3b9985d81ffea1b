"""Blocks of entries: whatever a sequence of entries does, and what the columns save."""

from __future__ import annotations

import pytest

from dengine_sm import Entry, EntryBlock, LogGapError, LogId, LogOrderError
from dengine_sm.bookkeeping import check_chunk
from dengine_sm.entries import payloads_of, timestamps_of

_LIST = [
    Entry(7, 2, 100, b"a"),
    Entry(8, 2, 100, b"b"),
    Entry(9, 2, 130, b""),
    Entry(10, 2, 130, b"d"),
]


@pytest.fixture
def block() -> EntryBlock:
    block = EntryBlock.stamped(7, 2, 100, [b"a", b"b"])
    block.add(130, [b"", b"d"])
    return block


def test_iterating_indexing_and_comparing_give_the_entries(block: EntryBlock) -> None:
    assert list(block) == _LIST
    assert [block[i] for i in range(-4, 4)] == _LIST + _LIST
    assert block == _LIST
    assert block != _LIST[:3]
    assert list(reversed(block)) == _LIST[::-1]
    assert _LIST[2] in block
    assert repr(block) == f"EntryBlock({_LIST!r})"


@pytest.mark.parametrize("position", [4, -5])
def test_a_position_outside_is_an_index_error(block: EntryBlock, position: int) -> None:
    with pytest.raises(IndexError, match="a block of 4 entries"):
        block[position]


@pytest.mark.parametrize("step", [None, 1, 2, -1])
@pytest.mark.parametrize("stop", [None, 0, 2, 9, -1])
@pytest.mark.parametrize("start", [None, 0, 1, 3, 9, -2])
def test_slices_are_those_of_a_list(
    block: EntryBlock, start: int | None, stop: int | None, step: int | None
) -> None:
    part = block[start:stop:step]
    assert list(part) == _LIST[start:stop:step]
    assert isinstance(part, EntryBlock) == (step in (None, 1))


def test_a_part_does_not_grow_with_the_whole(block: EntryBlock) -> None:
    part = block[1:3]
    block.add(140, [b"e"])
    assert list(part) == _LIST[1:3]
    assert block.last_id == LogId(2, 11)


def test_from_an_index_on(block: EntryBlock) -> None:
    assert block.from_index(9) == _LIST[2:]
    assert block.from_index(7) is block


def test_columns_are_the_same_for_a_list(block: EntryBlock) -> None:
    assert payloads_of(block) == payloads_of(_LIST) == [b"a", b"b", b"", b"d"]
    assert timestamps_of(block) == timestamps_of(_LIST) == [100, 100, 130, 130]


def test_a_block_is_checked_like_a_list(block: EntryBlock) -> None:
    for chunk in (block, _LIST):
        assert check_chunk(chunk, LogId(1, 6)) == 0
        assert check_chunk(chunk, LogId(2, 8)) == 2
        assert check_chunk(chunk, LogId(3, 12)) == 4
        with pytest.raises(LogGapError, match=r"indices 6\.\.6 are missing"):
            check_chunk(chunk, LogId(1, 5))
        with pytest.raises(LogOrderError, match="lower term than 3"):
            check_chunk(chunk, LogId(3, 8))
