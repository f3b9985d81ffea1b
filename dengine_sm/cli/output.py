"""Text and JSON on stdout, and bytes in either."""

from __future__ import annotations

import base64
import json
from typing import Any

import click


def argument_bytes(text: str) -> bytes:
    """Return the bytes that the shell gave for an argument, valid UTF-8 or not."""
    return text.encode("utf-8", "surrogateescape")


def json_fields(**fields: bytes) -> dict[str, Any]:
    """Return bytes as JSON fields: text, or base64 with a field `NAME_base64: true`."""
    out: dict[str, Any] = {}
    for name, data in fields.items():
        try:
            out[name] = data.decode()
        except UnicodeDecodeError:
            out[name] = base64.b64encode(data).decode()
            out[f"{name}_base64"] = True
    return out


def field_bytes(record: dict[str, Any], name: str) -> bytes:
    """Return the bytes of a field that `json_fields` wrote, or of plain text.

    Raises:
        ValueError: the field is missing, no text, or not base64 although marked so.
    """
    text = record.get(name)
    if not isinstance(text, str):
        observed = "nothing" if name not in record else repr(text)
        raise ValueError(f"{name!r}: expected text, observed {observed}")
    marker = record.get(f"{name}_base64", False)
    if not isinstance(marker, bool):
        raise ValueError(f"'{name}_base64': expected true or false, observed {marker!r}")
    if marker:
        # binascii.Error is a ValueError, and says what is wrong.
        return base64.b64decode(text, validate=True)
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"{name!r}: holds half of a surrogate pair") from exc


def printable(data: bytes) -> str:
    """Return bytes for a terminal: text, with what is not UTF-8 escaped."""
    return data.decode("utf-8", "backslashreplace")


def print_json(value: Any) -> None:
    """Print one line of JSON, flushed so that a reader of a pipe sees it."""
    click.echo(json.dumps(value, ensure_ascii=False, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return printable(value)
    return str(value)
