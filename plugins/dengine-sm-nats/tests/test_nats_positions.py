"""Positions: what was counted, thinned out, kept on disk and refused."""

from __future__ import annotations

import re

import pytest
from dengine_sm_nats.positions import Position, Positions, load_positions, unpack_position
from hypothesis import given
from hypothesis import strategies as st

from dengine_sm import CorruptionError, StorageFormatError
from dengine_sm.codec import encode
from dengine_sm.files import write_checked_file

STEPS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=60)


def positions_after(steps: list[tuple[int, int]]) -> list[Position]:
    """Return positions as a reader makes them: sequences rise, indices never fall."""
    made, sequence, index = [Position(0, 0, 0)], 0, 0
    for messages, commands in steps:
        sequence, index = sequence + messages, index + commands
        made.append(Position(sequence, index, 1000 + sequence))
    return made


def test_thinning_keeps_the_first_and_the_newest():
    positions = Positions("s", [Position(0, 0, 0)])

    for number in range(1, 10_001):
        positions.add(Position(number, number * 3, number))
        assert Position(number, number * 3, number) == positions.newest
        assert Position(0, 0, 0) == positions.at_or_before_index(0)

    assert len(positions.pack()) < 30_000
    for index in range(0, 30_001, 500):
        found = positions.at_or_before_index(index)
        assert found is not None and found.index <= index and found.index == found.sequence * 3


@given(STEPS, st.integers(0, 600))
def test_the_last_position_at_or_before_an_index_is_found(steps, index):
    made = positions_after(steps)
    positions = Positions("s", list(reversed(made)))

    expected = [position for position in made if position.index <= index][-1]

    assert expected == positions.at_or_before_index(index)


def test_there_is_none_before_the_first():
    positions = Positions("s", [Position(9, 50, 1)])

    assert positions.at_or_before_index(49) is None


@given(STEPS, st.integers(0, 600))
def test_the_first_position_from_a_sequence_on_is_found(steps, sequence):
    made = positions_after(steps)

    expected = next((one for one in made if one.sequence >= sequence), None)

    assert expected == Positions("s", made).at_or_after_sequence(sequence)


@given(STEPS, st.integers(0, 600))
def test_forgetting_keeps_where_reading_can_go_on_and_at_least_one(steps, sequence):
    made = positions_after(steps)
    positions = Positions("s", list(made))

    positions.forget_before(sequence)

    kept = [one for one in made if one.sequence + 1 >= sequence] or made[-1:]
    assert kept[0] == positions.at_or_before_index(kept[0].index) or len(kept) > 1
    assert kept[-1] == positions.newest


def test_the_same_position_is_kept_once():
    positions = Positions("s", [Position(0, 0, 0)])

    before = positions.pack()
    positions.add(Position(0, 0, 0))

    assert before == positions.pack()


def test_positions_come_back_from_their_file(tmp_path):
    positions = Positions("stream", positions_after([(1, 2), (3, 0), (5, 8)]))
    write_checked_file(tmp_path / "POSITIONS", positions.pack())

    loaded = load_positions(tmp_path / "POSITIONS")

    assert loaded is not None
    assert ("stream", positions.pack()) == (loaded.stream_id, loaded.pack())


def test_a_missing_file_is_none(tmp_path):
    assert load_positions(tmp_path / "POSITIONS") is None


def test_every_damaged_byte_of_the_file_is_found_and_its_path_named(tmp_path):
    path = tmp_path / "POSITIONS"
    write_checked_file(path, Positions("stream", [Position(3, 4, 5, 2)]).pack())
    content = path.read_bytes()

    for position in range(len(content)):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        with pytest.raises(CorruptionError, match=re.escape(str(path))):
            load_positions(path)


@pytest.mark.parametrize(
    "payload",
    [
        encode(["dengine-sm-nats-positions", 2, "s", [[0, 0, 0, 0]]]),
        encode(["something else", 1, "s", [[0, 0, 0, 0]]]),
        encode(["dengine-sm-nats-positions", 1, "s", []]),
    ],
)
def test_another_kind_of_file_is_refused_with_its_path(tmp_path, payload):
    path = tmp_path / "POSITIONS"
    write_checked_file(path, payload)

    with pytest.raises(StorageFormatError, match=re.escape(str(path))):
        load_positions(path)


@pytest.mark.parametrize("item", [[1, 2, 3], [1, 2, 3, -1], ["1", 2, 3, 4], None, [1, 2, 3, 4, 5]])
def test_what_is_no_position_is_refused(tmp_path, item):
    with pytest.raises(ValueError, match="expected 4 numbers"):
        unpack_position(item)

    path = tmp_path / "POSITIONS"
    write_checked_file(path, encode(["dengine-sm-nats-positions", 1, "s", [item]]))
    with pytest.raises(CorruptionError, match=re.escape(str(path))):
        load_positions(path)
