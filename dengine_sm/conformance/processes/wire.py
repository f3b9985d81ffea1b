"""Values between the kit and a machine in another process: tagged CBOR, length first."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from dengine_sm import errors
from dengine_sm.codec import decode, encode, pack_snapshot_metadata, unpack_snapshot_metadata
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome, ScanResult, SnapshotMetadata

READY = b"ready"
"""The nursery's first word: it has found the factory."""
SERVE = b"serve"
"""Comes with a socket that a new process is to serve."""

_LENGTH_BYTES = 4
_MOST_AT_ONCE = 1024 * 1024
_PLAIN = (type(None), bool, int, bytes, str)


NURSERY_VARIABLE = "DENGINE_SM_IN_NURSERY"
"""Set in the environment of the nursery and its machines."""


def refuse_in_nursery() -> None:
    """Refuse to run the kit in a process of the kit: without an end there would be more.

    Raises:
        RuntimeError: this is one.
    """
    if NURSERY_VARIABLE in os.environ:
        raise RuntimeError(
            "the module that makes the machine runs the kit when it is imported; "
            "put that under: if __name__ == '__main__':"
        )


class ProcessDied(Exception):  # noqa: N818 - a fact that the kit often wants
    """The other process is gone; `stderr` is what it said last."""

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


def pack(value: Any) -> Any:
    """Return a value as plain CBOR items.

    Raises:
        TypeError: values of this type do not travel.
    """
    match value:
        case Entry():
            return ["entry", value.index, value.term, value.timestamp_ms, bytes(value.data)]
        case LogId():
            return ["id", value.term, value.index]
        case ApplyResult():
            return ["result", value.index, value.outcome.value, value.value]
        case SnapshotMetadata():
            return ["metadata", pack_snapshot_metadata(value)]
        case ScanResult():
            rows = [[key, value] for key, value in value.entries]
            return ["scan", rows, pack(value.last_applied)]
        case Path():
            return ["path", str(value)]
        case str() | bytes() | int() | bool() | None:
            return value
        case bytearray() | memoryview():
            return bytes(value)
        case dict():
            return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
        case list() | tuple():
            return ["list", [pack(item) for item in value]]
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return ["list", [pack(value[i]) for i in range(len(value))]]
    raise TypeError(f"{type(value).__name__} {value!r:.80} does not travel between processes")


def unpack(item: Any) -> Any:
    """Return the value of `pack`; tuples come back as lists."""
    if isinstance(item, _PLAIN):
        return item
    match item:
        case ["entry", index, term, timestamp_ms, data]:
            return Entry(index, term, timestamp_ms, data)
        case ["id", term, index]:
            return LogId(term, index)
        case ["result", index, outcome, value]:
            return ApplyResult(index, Outcome(outcome), value)
        case ["metadata", fields]:
            return unpack_snapshot_metadata(fields)
        case ["scan", rows, last_applied]:
            return ScanResult(tuple((key, value) for key, value in rows), unpack(last_applied))
        case ["path", text]:
            return Path(text)
        case ["dict", pairs]:
            return {unpack(key): unpack(value) for key, value in pairs}
        case ["list", items]:
            return [unpack(entry) for entry in items]
    raise ValueError(f"not a packed value: {item!r:.80}")


def pack_error(exc: BaseException, details: str = "") -> list[Any]:
    """Return an exception with the attributes that travel; never fails.

    An error of a class that derives from one of ours travels as ours.
    """
    attributes = {}
    for name, value in vars(exc).items():
        with contextlib.suppress(Exception):
            encode(pack(value))
            attributes[name] = value
    ours = next((cls for cls in type(exc).__mro__ if cls.__module__ == errors.__name__), None)
    names = [type(exc).__name__, ours and ours.__name__]
    return [names, _plain_text(_text_of(exc)), pack(attributes), _plain_text(details)]


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as failure:
        return f"(its text cannot be had: {type(failure).__name__})"


def _plain_text(text: str) -> str:
    """Return a text without lone surrogates, which names of files may have."""
    return text.encode(errors="backslashreplace").decode()


class RemoteError(Exception):
    """The machine raised something that is no error of dengine_sm; `name` is its class."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


def unpack_error(item: Any) -> Exception:
    """Return the error that the machine raised, of its own class where that is ours."""
    (name, ours), message, attributes, details = item
    cls = getattr(errors, ours) if ours else None
    if cls is not None:
        exc: Exception = cls.__new__(cls)
        Exception.__init__(exc, message)
        vars(exc).update(unpack(attributes))
    else:
        exc = RemoteError(name, message)
    exc.add_note(f"in the machine's process:\n{details}")
    return exc


def ask_for_process(control: socket.socket) -> socket.socket:
    """Return a socket that a new process serves, forked by the one that listens to `control`.

    Raises:
        OSError: that one is gone.
    """
    connection, theirs = socket.socketpair()
    with theirs:
        try:
            socket.send_fds(control, [SERVE], [theirs.fileno()])
        except OSError:
            connection.close()
            raise
    return connection


def framed(item: Any) -> bytes:
    """Return the bytes of one item, as they are sent."""
    data = encode(item)
    return len(data).to_bytes(_LENGTH_BYTES) + data


def send(connection: socket.socket, item: Any) -> None:
    """Send one item."""
    connection.sendall(framed(item))


def receive(connection: socket.socket) -> Any:
    """Receive one item.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: nothing came within the connection's timeout.
    """
    header = _exactly(connection, _LENGTH_BYTES)
    return decode(_exactly(connection, int.from_bytes(header)))


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(min(size - len(parts), _MOST_AT_ONCE))
        except ConnectionResetError:
            part = b""
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
