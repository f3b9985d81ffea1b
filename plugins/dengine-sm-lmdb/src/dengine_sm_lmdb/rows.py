"""Rows of any key in LMDB tables, whose own keys have 1 to 511 bytes.

A key of up to 510 bytes is stored as it is. Longer keys make a tree: those that share
their first 510 bytes are in one *bucket*, which a row of 511 bytes, these 510 and a zero,
points to. In the bucket the same goes on with the rest of the key, 502 bytes at a time.
A pointer sorts after the key that it continues and before all that is greater, so that
the order of keys is kept exactly, whatever their lengths, and no key is ever hashed.

    short    key                                    -> value
             510 bytes, 0                           -> bucket
    long     bucket (8 bytes), up to 502 bytes      -> value
             bucket, 502 bytes, 0                   -> bucket
             8 times 0                              -> value of the empty key
             8 times 255                            -> last bucket, number of buckets
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import attrs

from dengine_sm_lmdb.engine import Table, Transaction

SHORT_BYTES = 510
"""Longest key that is its own row."""
_SEGMENT_BYTES = 502
_EMPTY_KEY = bytes(8)
_BUCKETS = b"\xff" * 8
_POINTS = b"\0"

_Step: TypeAlias = tuple[Table, bytes]
"""A table and the key of a row in it."""


@attrs.frozen
class Space:
    """The two tables of one key space."""

    short: Table
    long: Table


def get(txn: Transaction, space: Space, key: bytes) -> bytes | None:
    """Return the value of a key, or None."""
    if 0 < len(key) <= SHORT_BYTES:
        return txn.get(key, db=space.short)
    path = _path(txn, space, key)
    return None if path is None else txn.get(path[-1][1], db=space.long)


def count(txn: Transaction, space: Space) -> int:
    """Return the number of keys, in constant time."""
    rows: int = txn.stat(space.short)["entries"]
    long_rows: int = txn.stat(space.long)["entries"]
    if long_rows:
        # Every bucket has one pointer, which is no key; nor is the row that counts them.
        _, buckets = _buckets(txn, space)
        rows += long_rows - buckets - (buckets > 0)
    return rows


def scan(
    txn: Transaction, space: Space, start: bytes, stop: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values in `[start, stop)`; None: to the end."""
    if not txn.stat(space.long)["entries"]:
        yield from _rows(txn, space.short, start, stop)
        return
    if not start and stop != b"":
        empty = txn.get(_EMPTY_KEY, db=space.long)
        if empty is not None:
            yield b"", empty
    yield from _scan_bucket(txn, space, None, b"", start, stop)


def change(txn: Transaction, space: Space, rows: Mapping[bytes, bytes | None]) -> None:
    """Put every row with a value, delete every row with None."""
    if not rows:
        return
    # In key order: neighbours are on one page, which is then found and copied once.
    keys = sorted(rows)
    if None in rows.values() or not keys[0] or max(map(len, keys)) > SHORT_BYTES:
        odd = {key for key in keys if rows[key] is None or not 0 < len(key) <= SHORT_BYTES}
        for key in sorted(odd):
            _change_one(txn, space, key, rows[key])
        keys = [key for key in keys if key not in odd]
        if not keys:
            return
    with txn.cursor(space.short) as cursor:
        comes_last = not cursor.last() or cursor.key() < keys[0]
        # None of them is None by now, which a type checker cannot know.
        puts: list[tuple[bytes, Any]] = [(key, rows[key]) for key in keys]
        cursor.putmulti(puts, append=comes_last)


def _change_one(txn: Transaction, space: Space, key: bytes, value: bytes | None) -> None:
    if 0 < len(key) <= SHORT_BYTES:
        if value is None:
            txn.delete(key, db=space.short)
        else:
            txn.put(key, value, db=space.short)
    elif value is None:
        _delete_long(txn, space, key)
    else:
        path = _path(txn, space, key, create=True)
        assert path is not None
        txn.put(path[-1][1], value, db=space.long)


def _rows(
    txn: Transaction, table: Table, start: bytes, stop: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor(table) as cursor:
        # An unplaced cursor would begin at the first row.
        if not (cursor.set_range(start) if start else cursor.first()):
            return
        if stop is None:
            yield from cursor.iternext()
            return
        for row in cursor.iternext():
            if row[0] >= stop:
                return
            yield row


def _scan_bucket(
    txn: Transaction,
    space: Space,
    bucket: bytes | None,
    stem: bytes,
    start: bytes,
    stop: bytes | None,
) -> Iterator[tuple[bytes, bytes]]:
    """Yield what is in a bucket; None: in the short table. `stem` begins all keys in it."""
    prefix = bucket or b""
    table, size = (space.short, SHORT_BYTES) if bucket is None else (space.long, _SEGMENT_BYTES)
    rest = start[len(stem) :] if start.startswith(stem) else b""
    first = prefix + rest[:size] + (_POINTS if len(rest) > size else b"")
    for row, value in _rows(txn, table, first, None):
        if not row.startswith(prefix):
            return
        key = stem + row[len(prefix) : len(prefix) + size]
        if stop is not None and key >= stop:
            return
        if len(row) > len(prefix) + size:
            yield from _scan_bucket(txn, space, value, key, start, stop)
        else:
            yield key, value


def _path(
    txn: Transaction, space: Space, key: bytes, *, create: bool = False
) -> list[_Step] | None:
    """Return the pointers to a long key and its row; None: there is no bucket for it."""
    if not key:
        return [(space.long, _EMPTY_KEY)]
    table, row, rest = space.short, key[:SHORT_BYTES] + _POINTS, key[SHORT_BYTES:]
    path = []
    while True:
        path.append((table, row))
        bucket = txn.get(row, db=table)
        if bucket is None:
            if not create:
                return None
            bucket = _new_bucket(txn, space)
            txn.put(row, bucket, db=table)
        table = space.long
        if len(rest) <= _SEGMENT_BYTES:
            return [*path, (table, bucket + rest)]
        row, rest = bucket + rest[:_SEGMENT_BYTES] + _POINTS, rest[_SEGMENT_BYTES:]


def _delete_long(txn: Transaction, space: Space, key: bytes) -> None:
    path = _path(txn, space, key)
    if path is None:
        return
    *pointers, (table, row) = path
    txn.delete(row, db=table)
    for table, pointer in reversed(pointers):
        bucket = txn.get(pointer, db=table)
        assert bucket is not None
        if _holds_rows(txn, space, bucket):
            return
        txn.delete(pointer, db=table)
        last, number = _buckets(txn, space)
        _set_buckets(txn, space, last, number - 1)


def _holds_rows(txn: Transaction, space: Space, bucket: bytes) -> bool:
    with txn.cursor(space.long) as cursor:
        return cursor.set_range(bucket) and cursor.key().startswith(bucket)


def _new_bucket(txn: Transaction, space: Space) -> bytes:
    last, number = _buckets(txn, space)
    _set_buckets(txn, space, last + 1, number + 1)
    return (last + 1).to_bytes(8, "big")


def _buckets(txn: Transaction, space: Space) -> tuple[int, int]:
    """Return the number of the last bucket made, and how many there are."""
    row = txn.get(_BUCKETS, db=space.long) or bytes(16)
    return int.from_bytes(row[:8], "big"), int.from_bytes(row[8:], "big")


def _set_buckets(txn: Transaction, space: Space, last: int, number: int) -> None:
    if number:
        row = last.to_bytes(8, "big") + number.to_bytes(8, "big")
        txn.put(_BUCKETS, row, db=space.long)
    else:
        txn.delete(_BUCKETS, db=space.long)
