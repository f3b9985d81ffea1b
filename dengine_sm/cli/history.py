"""The ndjson form of a history: one put or delete a line.

    {"t": 1383612080000, "op": "put", "key": "a", "value": "1", "ttl_ms": 60000}
    {"t": 1383612080001, "op": "delete", "key": "a"}

`t` says when it happened and is not used: a log stamps its own time. Bytes that are not
UTF-8 stand as base64, marked by `"key_base64": true` or `"value_base64": true`.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.cli.output import field_bytes
from dengine_sm.errors import StorageError
from dengine_sm.kv import Delete, Put, encode_command

MAX_COMMAND_BYTES = 18 * 1024 * 1024
"""Larger commands do not fit into a request of the default server."""

_FIELDS = {
    "put": {"t", "op", "key", "key_base64", "value", "value_base64", "ttl_ms"},
    "delete": {"t", "op", "key", "key_base64"},
}


@attrs.frozen
class Line:
    """One line of a history: a command, or the reason why it is none."""

    number: int
    """From 1."""
    command: bytes | None
    """None for a blank or bad line."""
    problem: str | None = None
    """None for a good or blank line."""


def parse_line(number: int, text: bytes) -> Line:
    """Turn a line into a command; whatever is wrong becomes `problem`."""
    if not text.strip():
        return Line(number, None)
    try:
        command = _command(text)
    except ValueError as exc:
        return Line(number, None, str(exc))
    if len(command) > MAX_COMMAND_BYTES:
        return Line(
            number,
            None,
            f"command of {len(command)} bytes; at most {MAX_COMMAND_BYTES} can be sent",
        )
    return Line(number, command)


def _command(text: bytes) -> bytes:
    try:
        record = json.loads(text.decode())
    except UnicodeDecodeError as exc:
        raise ValueError(f"byte {exc.start} is not UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise ValueError(f"not JSON: {exc}") from exc
    except RecursionError as exc:
        raise ValueError("not JSON that can be read: nested too deeply") from exc
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, observed {type(record).__name__}")
    op = record.get("op")
    known = _FIELDS.get(op) if isinstance(op, str) else None
    if known is None:
        raise ValueError(f"'op': expected 'put' or 'delete', observed {op!r}")
    unknown = sorted(set(record) - known)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} for {op}")
    key = field_bytes(record, "key")
    if op == "delete":
        return encode_command(Delete(key))
    return encode_command(Put(key, field_bytes(record, "value"), _ttl_ms(record)))


def _ttl_ms(record: dict[str, Any]) -> int | None:
    ttl_ms = record.get("ttl_ms")
    if ttl_ms is None:
        return None
    if type(ttl_ms) is not int or not 1 <= ttl_ms < 2**63:
        raise ValueError(f"'ttl_ms': expected a whole number from 1, observed {ttl_ms!r}")
    return ttl_ms


class HistoryFile:
    """Reads the lines of a history, gzip or plain, and knows how far it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        """Of the file as it is on disk, compressed or not."""
        self._raw: io.BufferedReader | None = None

    @property
    def position_bytes(self) -> int:
        """How much of the file was read."""
        return self._raw.tell() if self._raw is not None and not self._raw.closed else 0

    def lines(self, *, after: int = 0, until: int | None = None) -> Iterator[Line]:
        """Yield lines `after + 1` to `until`, or to the end.

        Raises:
            StorageError: the file cannot be read, or the compressed data is damaged or
                ends early; all lines before were yielded.
        """
        number = 0
        try:
            with self.path.open("rb") as raw, self._decompressed(raw) as stream:
                for text in stream:
                    if until is not None and number >= until:
                        return
                    number += 1
                    if number > after:
                        yield parse_line(number, text)
        except (OSError, EOFError, zlib.error) as exc:
            raise StorageError(
                f"history {str(self.path)!r}: cannot be read after line {number}: {exc}",
                path=self.path,
            ) from exc

    def _decompressed(self, raw: io.BufferedReader) -> io.BufferedIOBase:
        self._raw = raw
        self.size_bytes = self.path.stat().st_size
        magic = raw.peek(2)[:2]
        return gzip.open(raw) if magic == b"\x1f\x8b" else raw
