"""The key-value commands and their encoding, command set `kv/1`.

A command is one CBOR array in deterministic encoding; `docs/reference/commands.md`
has the CDDL. Source: CONTRACT §4.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from dengine_sm.codec import DecodeFailure, decode_prefix, encode

COMMAND_SET = "kv/1"

PUT = 1
DELETE = 2
COMPARE_AND_SWAP = 3


@attrs.frozen
class Put:
    """Set `key` to `value`; any earlier time to live is cleared."""

    key: bytes
    value: bytes
    ttl_ms: int | None = None
    """Milliseconds of log time until the key is gone; None keeps it for ever."""


@attrs.frozen
class Delete:
    """Make `key` absent; applied also when it was."""

    key: bytes


@attrs.frozen
class CompareAndSwap:
    """Set `key` to `new` if its live value equals `expected`."""

    key: bytes
    expected: bytes | None
    """None: the key must be absent."""
    new: bytes | None
    """None: delete the key."""


Command: TypeAlias = Put | Delete | CompareAndSwap


def encode_command(command: Command) -> bytes:
    """Encode a command for `Node.propose`.

    Raises:
        TypeError: a field has a type that the command set does not know.
    """
    if (
        type(command) is Put
        and command.ttl_ms is None
        and type(command.key) is type(command.value) is bytes
    ):
        # The common case by itself: bulk loads spend most of their time here.
        return encode([PUT, command.key, command.value, None])
    match command:
        case Put(key, value, ttl_ms):
            _check_fields(command, key=key, value=value)
            if ttl_ms is not None and type(ttl_ms) is not int:
                raise TypeError(f"Put.ttl_ms: expected int or None, observed {ttl_ms!r}")
            return encode([PUT, key, value, ttl_ms])
        case Delete(key):
            _check_fields(command, key=key)
            return encode([DELETE, key])
        case CompareAndSwap(key, expected, new):
            _check_fields(command, key=key)
            _check_fields(command, optional=True, expected=expected, new=new)
            return encode([COMPARE_AND_SWAP, key, expected, new])
    raise TypeError(f"expected Put, Delete or CompareAndSwap, observed {command!r}")


def decode_command(data: bytes) -> Command | None:
    """Decode a command; None for the empty data of an entry without one.

    Raises:
        ValueError: the bytes are no command of `kv/1` in deterministic encoding.
    """
    if not data:
        return None
    try:
        fields = decode_prefix(data)
    except DecodeFailure as exc:
        raise ValueError(f"not a {COMMAND_SET} command: {exc}") from exc
    command = _from_fields(fields)
    if command is None or encode_command(command) != data:
        raise ValueError(f"not a {COMMAND_SET} command in deterministic encoding: {data[:40]!r}")
    return command


def _from_fields(fields: Any) -> Command | None:
    match fields:
        case [1, bytes(key), bytes(value), int() | None as ttl_ms] if type(ttl_ms) is not bool:
            return Put(key, value, ttl_ms)
        case [2, bytes(key)]:
            return Delete(key)
        case [3, bytes(key), bytes() | None as expected, bytes() | None as new]:
            return CompareAndSwap(key, expected, new)
    return None


def _check_fields(command: Command, *, optional: bool = False, **fields: object) -> None:
    for name, value in fields.items():
        if type(value) is not bytes and not (optional and value is None):
            expected = "bytes or None" if optional else "bytes"
            raise TypeError(
                f"{type(command).__name__}.{name}: expected {expected}, observed {value!r}"
            )
