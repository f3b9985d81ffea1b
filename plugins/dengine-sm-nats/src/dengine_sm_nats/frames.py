"""What stands in one message of the stream.

A message is `DSML`, the CRC32C of the rest (4 bytes, big endian), and a CBOR array that
begins with the codec version and the kind:

    [1, 1, sender, number, sent_ms, [command, ...]]   commands
    [1, 2, sender, number]                            a read barrier
    [1, 3, sender, number, after]                     a place for snapshots
    [1, 4, node, sender, term, index, format, checksum]  what a node holds at an index

`sender` is drawn anew at every start of a node; `number` counts its messages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import attrs
import google_crc32c

from dengine_sm.codec import DecodeFailure, decode_prefix, encode
from dengine_sm.errors import StorageFormatError

MAGIC = b"DSML"
VERSION = 1
OVERHEAD_BYTES = 128
"""Room for everything in a message of one command beside the command."""
PER_COMMAND_BYTES = 5
"""Most bytes that the encoding adds to a command, which is shorter than 4 GiB."""

_CHECKSUM = struct.Struct(">I")
_BODY_AT = len(MAGIC) + _CHECKSUM.size
_COMMANDS, _BARRIER, _MARK, _DIGEST = 1, 2, 3, 4


@attrs.frozen
class Commands:
    """Commands that one `append` was given."""

    sender: bytes
    number: int
    sent_ms: int
    """When it was sent first, by the stream's clock as the sender knew it.

    One that arrives much later counts as rejected: the servers may have forgotten that they
    had it before.
    """
    payloads: Sequence[bytes]


@attrs.frozen
class Barrier:
    """Shows its sender that everything before it has arrived."""

    sender: bytes
    number: int


@attrs.frozen
class Mark:
    """Every node takes a snapshot of the state at this place.

    Nodes find at the same moment that a snapshot is due; of their marks only the first
    counts, since the others name a mark that is no longer the last one.
    """

    sender: bytes
    number: int
    after: int
    """Sequence of the last mark that counted, as the sender knew it."""


@attrs.frozen
class Digest:
    """The checksum of a node's snapshot."""

    node: str
    identity: bytes
    """Of the node's data directory: one that was wiped is another node."""
    term: int
    index: int
    format: str
    checksum: bytes


Frame: TypeAlias = Commands | Barrier | Mark | Digest


class UnreadableMessageError(Exception):
    """The message is none of ours, or damaged; `is_ours` says which is likely."""

    def __init__(self, why: str, *, is_ours: bool) -> None:
        super().__init__(why)
        self.is_ours = is_ours


def added_bytes(payloads: Sequence[bytes]) -> int:
    """Return how many bytes the encoding adds to commands (RFC 8949 §3)."""
    sizes = map(len, payloads)
    return sum(1 if n < 24 else 2 if n < 1 << 8 else 3 if n < 1 << 16 else 5 for n in sizes)


def encode_frame(frame: Frame) -> bytes:
    """Return the message that holds a frame."""
    match frame:
        case Commands(sender, number, sent_ms, payloads):
            fields = [VERSION, _COMMANDS, sender, number, sent_ms, list(payloads)]
        case Barrier(sender, number):
            fields = [VERSION, _BARRIER, sender, number]
        case Mark(sender, number, after):
            fields = [VERSION, _MARK, sender, number, after]
        case Digest():
            fields = [VERSION, _DIGEST, *attrs.astuple(frame)]
    body = encode(fields)
    return b"".join((MAGIC, _CHECKSUM.pack(google_crc32c.value(body)), body))


def decode_frame(message: bytes) -> Frame:
    """Return the frame of a message.

    Raises:
        UnreadableMessageError: somebody else's message, or a damaged one of ours.
        StorageFormatError: sound, but of a newer version: this node must not go on, since
            newer ones read commands where it sees none.
    """
    if message[: len(MAGIC)] != MAGIC:
        raise UnreadableMessageError(
            f"it begins with {message[:4]!r}, not {MAGIC!r}", is_ours=False
        )
    body = message[_BODY_AT:]
    checksum = _CHECKSUM.pack(google_crc32c.value(body))
    if message[len(MAGIC) : _BODY_AT] != checksum:
        raise UnreadableMessageError("its CRC32C does not match", is_ours=True)
    try:
        fields = decode_prefix(body)
    except DecodeFailure as exc:
        raise UnreadableMessageError(str(exc), is_ours=True) from exc
    frame = _from_fields(fields)
    if frame is None:
        if isinstance(fields, list) and fields and fields[0] != VERSION:
            raise StorageFormatError(
                f"a message of the log has codec version {fields[0]!r}: expected {VERSION}; a "
                "newer dengine-sm-nats wrote it; upgrade this node",
                expected=str(VERSION),
                observed=str(fields[0]),
            )
        raise UnreadableMessageError("its fields are not those of any kind", is_ours=True)
    return frame


def _from_fields(fields: object) -> Frame | None:
    match fields:
        case [1, 1, bytes(sender), int(number), int(sent_ms), list(payloads)] if set(
            map(type, payloads)
        ) == {bytes}:
            return Commands(sender, number, sent_ms, payloads)
        case [1, 2, bytes(sender), int(number)]:
            return Barrier(sender, number)
        case [1, 3, bytes(sender), int(number), int(after)]:
            return Mark(sender, number, after)
        case [1, 4, str(node), bytes(identity), int(term), int(index), str(name), bytes(checksum)]:
            return Digest(node, identity, term, index, name, checksum)
    return None
