"""The sessions of clients, kept in bookkeeping rows that change together with the data.

`s/` + id holds a session, and `u/` + index of its last use orders sessions by use: an
entry uses one session at most. A state holds a bounded number of them; one more drives out
the one whose last use is longest ago, which depends on the log alone.

Source: Ongaro's dissertation §6.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from dengine_sm.kv.store import KeyValueReader, WriteBatch
from dengine_sm.snapshot import SessionRow

SESSION = b"s/"
AFTER_SESSION = b"s0"
USED_AT = b"u/"
AFTER_USED_AT = b"u0"

SESSION_UNKNOWN = b"session unknown"
"""Value of a rejected `InSession`: the state does not have the session (any more)."""
SEQUENCE_PASSED = b"sequence passed"
"""Value of a rejected `InSession`: the session has executed a higher sequence."""

_MISSING: Any = object()


def pack_session_id(session_id: int) -> bytes:
    """Return 8 bytes that sort as the number does: the value of an opened session."""
    return session_id.to_bytes(8, "big")


def unpack_session_id(value: bytes) -> int:
    """Return the number of `pack_session_id`."""
    return int.from_bytes(value, "big")


def session_rows(sessions: Iterable[SessionRow]) -> dict[bytes, bytes | None]:
    """Return the bookkeeping rows of sessions."""
    rows: dict[bytes, bytes | None] = {}
    for session in sessions:
        packed = pack_session_id(session.session_id)
        rows[SESSION + packed] = _pack(session)
        rows[USED_AT + pack_session_id(session.last_used)] = packed
    return rows


def stored_sessions(reader: KeyValueReader) -> Iterator[SessionRow]:
    """Yield the sessions of a state by id."""
    for key, row in reader.scan_internal(SESSION, AFTER_SESSION):
        yield _unpack(unpack_session_id(key[len(SESSION) :]), row)


def count_sessions(reader: KeyValueReader) -> int:
    """Return how many sessions a state has."""
    return sum(1 for _ in reader.scan_internal(USED_AT, AFTER_USED_AT))


def _pack(session: SessionRow) -> bytes:
    numbers = pack_session_id(session.sequence) + pack_session_id(session.last_used)
    return numbers + bytes([session.succeeded])


def _unpack(session_id: int, row: bytes) -> SessionRow:
    sequence, last_used = unpack_session_id(row[:8]), unpack_session_id(row[8:16])
    return SessionRow(session_id, sequence, bool(row[16]), last_used)


class Sessions:
    """The sessions as one chunk sees and changes them.

    Args:
        store: what was there before the chunk.
        batch: gets the changes.
        count: number of sessions before the chunk.
        most: greatest number of sessions, at least 1.
    """

    def __init__(self, store: KeyValueReader, batch: WriteBatch, count: int, most: int) -> None:
        self.count = count
        self._store = store
        self._internal = batch.internal
        self._most = most
        self._old_uses: Iterator[tuple[bytes, bytes]] | None = None
        self._new_uses: deque[bytes] = deque()

    def find(self, session_id: int) -> SessionRow | None:
        """Return a session."""
        row = self._row(SESSION + pack_session_id(session_id))
        return None if row is None else _unpack(session_id, row)

    def open(self, index: int) -> None:
        """Make the session of an index; the least recently used ones make room."""
        while self.count >= self._most:
            self._evict()
        self._save(SessionRow(session_id=index, sequence=0, succeeded=False, last_used=index))
        self.count += 1

    def record(self, session: SessionRow, index: int, sequence: int, succeeded: bool) -> None:
        """Remember what the command of a sequence gave, executed by the entry of an index."""
        self._internal[USED_AT + pack_session_id(session.last_used)] = None
        self._save(SessionRow(session.session_id, sequence, succeeded, last_used=index))

    def _save(self, session: SessionRow) -> None:
        self._internal.update(session_rows([session]))
        self._new_uses.append(USED_AT + pack_session_id(session.last_used))

    def _row(self, key: bytes) -> bytes | None:
        row = self._internal.get(key, _MISSING)
        return self._store.get_internal(key) if row is _MISSING else row

    def _evict(self) -> None:
        use = self._oldest_use()
        packed = self._row(use)
        if packed is not None:
            self._internal[use] = self._internal[SESSION + packed] = None
            self.count -= 1

    def _oldest_use(self) -> bytes:
        """Take the next use by index: what the store holds is older than what the chunk did.

        It may be a use that the chunk has replaced by a later one.
        """
        if self._old_uses is None:
            self._old_uses = iter(self._store.scan_internal(USED_AT, AFTER_USED_AT))
        for use, _ in self._old_uses:
            return use
        return self._new_uses.popleft()
