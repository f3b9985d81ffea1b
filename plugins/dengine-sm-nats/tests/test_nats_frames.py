"""Messages of the stream: what was written is read, and nothing else is."""

from __future__ import annotations

import google_crc32c
import pytest
from dengine_sm_nats.frames import (
    MAGIC,
    Barrier,
    Commands,
    Digest,
    Mark,
    UnreadableMessageError,
    decode_frame,
    encode_frame,
)
from hypothesis import given
from hypothesis import strategies as st

from dengine_sm import StorageFormatError
from dengine_sm.codec import encode

NUMBERS = st.integers(0, 2**63)
SENDERS = st.binary(min_size=8, max_size=8)
FRAMES = st.one_of(
    st.builds(Commands, SENDERS, NUMBERS, NUMBERS, st.lists(st.binary(max_size=300), min_size=1)),
    st.builds(Barrier, SENDERS, NUMBERS),
    st.builds(Mark, SENDERS, NUMBERS, NUMBERS),
    st.builds(Digest, st.text(), st.binary(), NUMBERS, NUMBERS, st.text(), st.binary()),
)
SAMPLES = [
    Commands(b"12345678", 7, 1_700_000_000_000, [b"", b"\x84\x01AkAv\xf6", b"x" * 40]),
    Barrier(b"12345678", 300),
    Mark(b"12345678", 7, 70_000),
    Digest("n0", b"i" * 16, 1, 4711, "kv-portable/1", b"c" * 32),
]


def sealed(fields: object) -> bytes:
    """Return a message with a sound CRC, whatever is in it."""
    body = encode(fields)
    return MAGIC + google_crc32c.value(body).to_bytes(4, "big") + body


@given(FRAMES)
def test_a_frame_comes_back_as_it_was(frame):
    assert frame == decode_frame(encode_frame(frame))


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
def test_a_message_that_was_cut_anywhere_is_unreadable(frame):
    message = encode_frame(frame)

    for length in range(len(message)):
        with pytest.raises(UnreadableMessageError):
            decode_frame(message[:length])


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
def test_a_message_with_any_bit_flipped_is_unreadable(frame):
    message = encode_frame(frame)

    for position in range(len(message)):
        for bit in range(8):
            flipped = bytearray(message)
            flipped[position] ^= 1 << bit
            with pytest.raises(UnreadableMessageError) as caught:
                decode_frame(bytes(flipped))
            assert (position >= len(MAGIC)) == caught.value.is_ours


@given(FRAMES, st.binary(min_size=1, max_size=20))
def test_bytes_after_a_message_make_it_unreadable(frame, more):
    with pytest.raises(UnreadableMessageError):
        decode_frame(encode_frame(frame) + more)


@pytest.mark.parametrize("fields", [[2, 1, b"", 1, [b"c"]], [2], [99, "new"], ["1", 1]])
def test_a_sound_message_of_a_newer_version_stops_the_node(fields):
    with pytest.raises(StorageFormatError, match="expected 1; a newer dengine-sm-nats wrote it"):
        decode_frame(sealed(fields))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [1],
        {},
        "text",
        [1, 1, b"s", 1, []],
        [1, 1, b"s", 1, [b"c", "text"]],
        [1, 1, "s", 1, [b"c"]],
        [1, 2, b"s", 1, 2],
        [1, 9, b"s", 1],
        [1, 4, b"n", b"i", 1, 1, "f", b"c"],
    ],
    ids=repr,
)
def test_a_sound_message_of_this_version_with_other_fields_is_unreadable(fields):
    with pytest.raises(UnreadableMessageError, match="not those of any kind") as caught:
        decode_frame(sealed(fields))
    assert caught.value.is_ours


@given(st.binary())
def test_what_somebody_else_wrote_is_not_ours(message):
    if not message.startswith(MAGIC):
        with pytest.raises(UnreadableMessageError, match="begins with") as caught:
            decode_frame(message)
        assert not caught.value.is_ours


def test_a_sound_message_that_is_no_cbor_is_unreadable():
    body = b"\xff"
    with pytest.raises(UnreadableMessageError):
        decode_frame(MAGIC + google_crc32c.value(body).to_bytes(4, "big") + body)
