"""Deterministic CBOR: what is written, what is refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dengine_sm import LogId, SnapshotMetadata
from dengine_sm.codec import (
    decode,
    decode_sequence,
    encode,
    pack_log_id,
    pack_snapshot_metadata,
    unpack_log_id,
    unpack_snapshot_metadata,
)
from dengine_sm.kv import (
    CompareAndSwap,
    Delete,
    InSession,
    OpenSession,
    Put,
    decode_command,
    encode_command,
)

VALUES = st.recursive(
    st.none() | st.integers(0, 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5),
)


@given(VALUES)
def test_round_trip_and_one_encoding_only(value):
    data = encode(value)
    assert decode(data) == value
    for wrong in (data + b"\x00", data[:-1]):
        with pytest.raises(ValueError, match=r"CBOR|encoding"):
            decode(wrong)


@pytest.mark.parametrize("data", [b"\x18\x01", b"\x5f\x41a\xff", b"\x1b" + bytes(8), b"\x9f\xff"])
def test_other_encodings_of_a_value_are_refused(data):
    with pytest.raises(ValueError, match=r"CBOR|encoding"):
        decode(data)


@given(st.lists(VALUES, max_size=6), st.data())
def test_a_sequence_cut_inside_an_item_is_refused(items, data):
    parts = [encode(item) for item in items]
    whole = b"".join(parts)
    assert list(decode_sequence(io.BytesIO(whole))) == items
    ends = {sum(map(len, parts[:n])) for n in range(len(parts) + 1)}
    cut = data.draw(st.integers(0, len(whole)))
    if cut in ends:
        assert len(list(decode_sequence(io.BytesIO(whole[:cut])))) <= len(items)
    else:
        with pytest.raises(ValueError, match="sequence"):
            list(decode_sequence(io.BytesIO(whole[:cut])))


def test_values_of_the_model():
    metadata = SnapshotMetadata(LogId(3, 9), b"\x01" * 32, "kv-portable/1")
    assert unpack_log_id(decode(encode(pack_log_id(LogId(3, 9))))) == LogId(3, 9)
    assert unpack_snapshot_metadata(decode(encode(pack_snapshot_metadata(metadata)))) == metadata
    for wrong in ([], [1], [1, -1], ["1", 2], [1, 2, 3], None):
        with pytest.raises(ValueError, match="log id"):
            unpack_log_id(wrong)
    with pytest.raises(ValueError, match="all zero"):
        SnapshotMetadata(LogId(1, 1), bytes(32), "x")


@given(st.binary(max_size=30))
def test_no_bytes_make_command_decoding_fail_otherwise(data):
    try:
        command = decode_command(data)
    except ValueError:
        return
    assert command is None or encode_command(command) == data


@pytest.mark.parametrize(
    "command",
    [
        Put(b"", b""),
        Put(b"k" * 300, b"v" * 70_000, 2**63),
        Delete(b"\xff"),
        CompareAndSwap(b"k", None, b""),
        CompareAndSwap(b"k", b"", None),
        OpenSession(),
        InSession(1, 2**64 - 1, Put(b"k", b"", 7)),
        InSession(2**64 - 1, 1, Delete(b"k")),
        InSession(300, 2, CompareAndSwap(b"k", None, b"")),
    ],
)
def test_commands_round_trip_and_reject_any_other_form(command):
    data = encode_command(command)
    assert decode_command(data) == command
    for wrong in (data + b"\x00", data[:-1], b"\x9f" + data[1:] + b"\xff", b"\xd9\xd9\xf7" + data):
        with pytest.raises(ValueError, match="kv/1"):
            decode_command(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        *(Put("k", b""), Put(b"k", None), Put(b"", b"", 1.5), Delete(3), 7),
        *(InSession(b"1", 1, Delete(b"")), InSession(1, True, Delete(b""))),
        *(InSession(1, 1, Delete("k")), InSession(1, 1, OpenSession()), InSession(1, 1, None)),
    ],
)  # type: ignore[arg-type]
def test_commands_of_wrong_types_are_refused(wrong):
    with pytest.raises(TypeError, match="expected"):
        encode_command(wrong)


@pytest.mark.parametrize("session_id, sequence", [(0, 1), (1, 0), (-1, 1), (2**64, 1), (1, 2**64)])
def test_sessions_out_of_range_are_refused(session_id, sequence):
    command = InSession(session_id, sequence, Delete(b"k"))

    with pytest.raises(ValueError, match=r"expected 1 to 2\*\*64 - 1"):
        encode_command(command)
    with pytest.raises(ValueError, match="kv/1"):
        decode_command(encode([5, session_id, sequence, [2, b"k"]]))


@pytest.mark.parametrize(
    "fields",
    [
        [4, 1],
        [5, 1, 1],
        [5, 1, 1, [4]],
        [5, 1, 1, [5, 1, 1, [2, b"k"]]],
        [5, 1, 1, [2, b"k"], None],
        [5, True, 1, [2, b"k"]],
        [5, 1, 1, encode([2, b"k"])],
        [5, 1, 1, None],
        [5, 1, 1, [1, b"k", b"v", True]],
        [6],
    ],
    ids=repr,
)
def test_other_fields_are_no_session_command(fields):
    with pytest.raises(ValueError, match="kv/1"):
        decode_command(encode(fields))
