"""The SQL, and how many rows go into one statement.

`sqlite3` gives up the interpreter lock for every step of a statement, and a thread that
computes keeps it for up to 5 ms: ten thousand rows by `executemany` could wait for it ten
thousand times. So rows go into statements of many rows each, of a few fixed sizes, which
stay prepared.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import chain

from dengine_sm.kv import WriteBatch

GET = "SELECT value FROM data WHERE key = ?"
GET_INTERNAL = "SELECT value FROM internal WHERE key = ?"
TOTALS = "SELECT keys, batches FROM totals"
SET_TOTALS = "UPDATE totals SET keys = ?, batches = ?"
TOUCH = "UPDATE totals SET batches = batches + 1"

_SIZES = (256, 64, 16, 4, 1)
_LARGE_BYTES = 4096
"""Average size of values from which rows are written one by one: SQLite copies them."""


def parts_of(items: list[bytes]) -> Iterator[list[bytes]]:
    """Cut a list into parts of those sizes that statements have."""
    first = 0
    for size in _SIZES:
        while len(items) - first >= size:
            yield items[first : first + size]
            first += size


@functools.cache
def page_statement(table: str, to_the_end: bool) -> str:
    """Return the statement for rows from a key on, in key order, up to a number."""
    condition = "key >= ?" if to_the_end else "key >= ? AND key < ?"
    return f"SELECT key, value FROM {table} WHERE {condition} ORDER BY key LIMIT ?"  # noqa: S608 - our own names


@functools.cache
def select_statement(size: int) -> str:
    """Return the statement that finds keys with their values."""
    return f"SELECT key, value FROM data WHERE key IN ({_marks(size)})"  # noqa: S608 - question marks


@functools.cache
def _count_statement(size: int) -> str:
    return f"SELECT count(*) FROM data WHERE key IN ({_marks(size)})"  # noqa: S608 - question marks


@functools.cache
def _delete_statement(table: str, size: int) -> str:
    return f"DELETE FROM {table} WHERE key IN ({_marks(size)})"  # noqa: S608 - our own names


@functools.cache
def _put_statement(table: str, size: int) -> str:
    rows = ", ".join(["(?, ?)"] * size)
    return (
        f"INSERT INTO {table} VALUES {rows}"  # noqa: S608 - our own names
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    )


def _marks(size: int) -> str:
    return ", ".join("?" * size)


def change(connection: sqlite3.Connection, batch: WriteBatch) -> int:
    """Put and delete rows; return by how many keys the data has grown."""
    gone, kept = _parted(batch.data)
    grown = len(kept) - _existing(connection, [key for key, _ in kept]) if kept else 0
    _put(connection, "data", kept)
    grown -= _delete(connection, "data", gone)
    gone, kept = _parted(batch.internal)
    _put(connection, "internal", kept)
    _delete(connection, "internal", gone)
    return grown


def replace(connection: sqlite3.Connection, batches: Iterable[WriteBatch]) -> int:
    """Delete everything, put what the batches hold; return the number of keys."""
    connection.execute("DELETE FROM data")
    connection.execute("DELETE FROM internal")
    for batch in batches:
        change(connection, batch)
    (keys,) = connection.execute("SELECT count(*) FROM data").fetchone()
    return int(keys)


def _parted(rows: dict[bytes, bytes | None]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Return keys to delete and rows to put, in key order: each page is touched once."""
    gone: list[bytes] = []
    kept: list[tuple[bytes, bytes]] = []
    for key, value in rows.items():
        if value is None:
            gone.append(key)
        else:
            kept.append((key, value))
    gone.sort()
    kept.sort()
    return gone, kept


def _existing(connection: sqlite3.Connection, keys: list[bytes]) -> int:
    count = 0
    for part in parts_of(keys):
        (found,) = connection.execute(_count_statement(len(part)), part).fetchone()
        count += found
    return count


def _delete(connection: sqlite3.Connection, table: str, keys: list[bytes]) -> int:
    count = 0
    for part in parts_of(keys):
        count += connection.execute(_delete_statement(table, len(part)), part).rowcount
    return count


def _put(connection: sqlite3.Connection, table: str, rows: list[tuple[bytes, bytes]]) -> None:
    if sum(len(value) for _, value in rows) > len(rows) * _LARGE_BYTES:
        connection.executemany(_put_statement(table, 1), rows)
        return
    first = 0
    for size in _SIZES:
        statement = _put_statement(table, size)
        while len(rows) - first >= size:
            values = list(chain.from_iterable(rows[first : first + size]))
            connection.execute(statement, values)
            first += size
