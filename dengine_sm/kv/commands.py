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
OPEN_SESSION = 4
IN_SESSION = 5


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


Change: TypeAlias = Put | Delete | CompareAndSwap


@attrs.frozen
class OpenSession:
    """Open a session; its id is the index of the log entry.

    The result's value is the id in 8 bytes, big-endian. Source: Ongaro's dissertation §6.3.
    """


@attrs.frozen
class InSession:
    """Execute `command` once, however often it is sent under one sequence."""

    session_id: int
    """In `[1, 2**64)`, of a session that was opened."""
    sequence: int
    """In `[1, 2**64)`, higher for each new command of the session; gaps are allowed."""
    command: Change


Command: TypeAlias = Change | OpenSession | InSession


def encode_command(command: Command) -> bytes:
    """Encode a command for `Node.propose`.

    Raises:
        TypeError: a field has a type that the command set does not know.
        ValueError: a session's id or sequence is out of its range.
    """
    if (
        type(command) is Put
        and command.ttl_ms is None
        and type(command.key) is type(command.value) is bytes
    ):
        # The common case by itself: bulk loads spend most of their time here.
        return encode([PUT, command.key, command.value, None])
    return encode(_to_fields(command))


def _to_fields(command: Command) -> list[Any]:
    match command:
        case Put(key, value, ttl_ms):
            _check_fields(command, key=key, value=value)
            if ttl_ms is not None and type(ttl_ms) is not int:
                raise TypeError(f"Put.ttl_ms: expected int or None, observed {ttl_ms!r}")
            return [PUT, key, value, ttl_ms]
        case Delete(key):
            _check_fields(command, key=key)
            return [DELETE, key]
        case CompareAndSwap(key, expected, new):
            _check_fields(command, key=key)
            _check_fields(command, optional=True, expected=expected, new=new)
            return [COMPARE_AND_SWAP, key, expected, new]
        case OpenSession():
            return [OPEN_SESSION]
        case InSession(session_id, sequence, Put() | Delete() | CompareAndSwap() as inner):
            _check_numbers(session_id=session_id, sequence=sequence)
            return [IN_SESSION, session_id, sequence, _to_fields(inner)]
        case InSession(command=inner):
            raise TypeError(
                f"InSession.command: expected Put, Delete or CompareAndSwap, observed {inner!r}"
            )
    raise TypeError(f"expected a {COMMAND_SET} command, observed {command!r}")


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
    change = _change_from(fields)
    if change is not None:
        return change
    match fields:
        case [4]:
            return OpenSession()
        case [5, int(session_id), int(sequence), inner] if _is_number(session_id) and _is_number(
            sequence
        ):
            change = _change_from(inner)
            return None if change is None else InSession(session_id, sequence, change)
    return None


def _change_from(fields: Any) -> Change | None:
    match fields:
        case [1, bytes(key), bytes(value), int() | None as ttl_ms] if type(ttl_ms) is not bool:
            return Put(key, value, ttl_ms)
        case [2, bytes(key)]:
            return Delete(key)
        case [3, bytes(key), bytes() | None as expected, bytes() | None as new]:
            return CompareAndSwap(key, expected, new)
    return None


def _is_number(number: object) -> bool:
    return type(number) is int and 1 <= number < 1 << 64


def _check_numbers(**fields: object) -> None:
    for name, value in fields.items():
        if type(value) is not int:
            raise TypeError(f"InSession.{name}: expected int, observed {value!r}")
        if not _is_number(value):
            raise ValueError(f"InSession.{name}: expected 1 to 2**64 - 1, observed {value}")


def _check_fields(command: Change, *, optional: bool = False, **fields: object) -> None:
    for name, value in fields.items():
        if type(value) is not bytes and not (optional and value is None):
            expected = "bytes or None" if optional else "bytes"
            raise TypeError(
                f"{type(command).__name__}.{name}: expected {expected}, observed {value!r}"
            )
