"""Execute the commands of one chunk against a store, into one write batch.

Nothing is written here: reads go to the batch first and to the store second, so that an
entry sees what earlier ones of its chunk did (APPLY-4), and a failure leaves no trace.

Keys with a time to live have two bookkeeping rows, changed together with the data:
`d/` + key holds the deadline, and `t/` + deadline + key orders the deadlines. A key is
removed by the very entry that passes its deadline, so that no read has to ask the time.
Sessions have bookkeeping rows too, see `sessions`.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from dengine_sm.entries import payloads_of, timestamps_of
from dengine_sm.kv.commands import (
    Change,
    CompareAndSwap,
    Delete,
    InSession,
    OpenSession,
    Put,
    decode_command,
)
from dengine_sm.kv.sessions import SEQUENCE_PASSED, SESSION_UNKNOWN, Sessions, pack_session_id
from dengine_sm.kv.store import KeyValueStore, WriteBatch
from dengine_sm.model import Entry, Limits

DEADLINE_OF = b"d/"
AFTER_DEADLINE_OF = b"d0"
DUE_AT = b"t/"
AFTER_DUE_AT = b"t0"
NEVER = (1 << 64) - 1
"""The greatest deadline; a later one is as good as this."""

_PUT_HEAD = b"\x84\x01"
_NULL = 0xF6
_MISSING: Any = object()


def pack_deadline(deadline_ms: int) -> bytes:
    """Return 8 bytes that sort as the number does."""
    return deadline_ms.to_bytes(8, "big")


def unpack_deadline(row: bytes) -> int:
    """Return the number of `pack_deadline`."""
    return int.from_bytes(row[:8], "big")


def first_deadline(store: KeyValueStore) -> int:
    """Return the earliest deadline in a store, or `NEVER`."""
    for row, _ in store.scan_internal(DUE_AT, AFTER_DUE_AT):
        return unpack_deadline(row[len(DUE_AT) :])
    return NEVER


_Shape: TypeAlias = tuple[int, Callable[[bytes], tuple[Any, ...]], bytes, bytes]
"""Size, what splits a command, what then stands before the key, and before the value."""

_NO_SHAPE: _Shape = (-1, lambda _: (), b"", b"")


def _shape_of(command: bytes, key: bytes, value: bytes) -> _Shape:
    """Return what all plain puts with these lengths of key and value share.

    Their encoding is fixed but for the bytes of key and value, so comparing what is
    around those is an exact check, and splitting decodes the command.
    """
    value_at = len(command) - 1 - len(value)
    key_at = 3 if len(key) < 24 else 4
    key_end = key_at + len(key)
    split = struct.Struct(f"{key_at}s{len(key)}s{value_at - key_end}s{len(value)}sB").unpack
    return len(command), split, command[:key_at], command[key_end:value_at]


def _plain_put(command: bytes) -> tuple[bytes, bytes] | None:
    """Return key and value of a put without a time to live; None for all else.

    Reads the deterministic encoding of such a put, and nothing else, byte by byte: half
    the cost of decoding any CBOR and then checking that it was this. Sizes of 64 KiB and
    more, and everything odd, are left to `decode_command`.
    """
    try:
        head = command[2]
        if 0x40 <= head < 0x58:
            key_at, key_size = 3, head - 0x40
        elif head == 0x58:
            key_at, key_size = 4, command[3]
            if key_size < 24:
                return None
        else:
            return None
        key_end = key_at + key_size
        head = command[key_end]
        if 0x40 <= head < 0x58:
            value_at, value_size = key_end + 1, head - 0x40
        elif head == 0x58:
            value_at, value_size = key_end + 2, command[key_end + 1]
            if value_size < 24:
                return None
        elif head == 0x59:
            value_at = key_end + 3
            value_size = command[key_end + 1] << 8 | command[key_end + 2]
            if value_size < 256:
                return None
        else:
            return None
        if value_at + value_size + 1 != len(command) or command[-1] != _NULL:
            return None
    except IndexError:
        return None
    return command[key_at:key_end], command[value_at:-1]


class Execution:
    """One chunk being executed; `batch` holds the changes afterwards."""

    def __init__(
        self,
        store: KeyValueStore,
        limits: Limits,
        *,
        clock_ms: int,
        timed_keys: int,
        next_deadline: int,
        sessions: int,
    ) -> None:
        self.batch = WriteBatch()
        self.clock_ms = clock_ms
        self.timed_keys = timed_keys
        self.next_deadline = next_deadline
        self.rejected: set[int] = set()
        """Positions in the executed entries whose outcome is REJECTED."""
        self.values: dict[int, bytes] = {}
        """The values of results, by position in the executed entries."""
        self._store = store
        self._limits = limits
        self._session_count = sessions
        self._sessions: Sessions | None = None
        self._new_deadlines: list[tuple[int, bytes]] = []
        self._old_deadlines: Iterator[tuple[bytes, bytes]] | None = None
        self._old_next: tuple[int, bytes] | None = None

    @property
    def session_count(self) -> int:
        """How many sessions the state has."""
        return self._session_count if self._sessions is None else self._sessions.count

    @property
    def sessions(self) -> Sessions:
        """The sessions; made when a command asks for them, which is seldom."""
        if self._sessions is None:
            most = self._limits.max_sessions
            self._sessions = Sessions(self._store, self.batch, self._session_count, most)
        return self._sessions

    def run(self, entries: Sequence[Entry]) -> None:
        """Execute entries in order."""
        data = self.batch.data
        clock = self.clock_ms
        due = self.next_deadline
        max_key, max_value = self._limits.max_key_bytes, self._limits.max_value_bytes
        size, split, before_key, before_value = _NO_SHAPE
        previous_size = -1
        first_index = entries[0].index if entries else 0
        rows = zip(timestamps_of(entries), payloads_of(entries), strict=True)
        for position, (timestamp_ms, command) in enumerate(rows):
            if timestamp_ms > clock:
                self.clock_ms = clock = timestamp_ms
                if clock >= due:
                    self._expire()
                    due = self.next_deadline
            if type(command) is bytes and not self.timed_keys:
                # While no key has a deadline: a put shaped like those before it, then any
                # plain put, both without building a command.
                if len(command) == size:
                    head, key, middle, value, end = split(command)
                    if head == before_key and middle == before_value and end == _NULL:
                        data[key] = value
                        continue
                if command[:2] == _PUT_HEAD and (put := _plain_put(command)) is not None:
                    key, value = put
                    if len(key) <= max_key and len(value) <= max_value:
                        data[key] = value
                        if len(command) == previous_size:
                            size, split, before_key, before_value = _shape_of(command, key, value)
                        previous_size = len(command)
                        continue
            if not command:
                continue
            if not self._execute(bytes(command), position, first_index + position):
                self.rejected.add(position)
            due = self.next_deadline

    def _execute(self, data: bytes, position: int, index: int) -> bool:
        """Execute any command; False when it is rejected."""
        try:
            command = decode_command(data)
        except (ValueError, TypeError):
            return False
        match command:
            case Put() | Delete() | CompareAndSwap():
                return self._change(command)
            case OpenSession():
                self.sessions.open(index)
                self.values[position] = pack_session_id(index)
            case InSession():
                return self._execute_once(command, position, index)
        return True

    def _execute_once(self, command: InSession, position: int, index: int) -> bool:
        """Execute a command unless its session has; a repetition changes nothing at all."""
        session = self.sessions.find(command.session_id)
        if session is None or command.sequence < session.sequence:
            self.values[position] = SESSION_UNKNOWN if session is None else SEQUENCE_PASSED
            return False
        if command.sequence == session.sequence:
            return session.succeeded
        succeeded = self._change(command.command)
        self.sessions.record(session, index, command.sequence, succeeded)
        return succeeded

    def _change(self, command: Change) -> bool:
        match command:
            case Put(key, value, ttl_ms):
                if not self._fits(key, value) or (ttl_ms is not None and ttl_ms < 1):
                    return False
                deadline = None if ttl_ms is None else min(self.clock_ms + ttl_ms, NEVER)
                self._set(key, value, deadline)
            case Delete(key):
                if not self._fits(key, b""):
                    return False
                self._set(key, None, None)
            case CompareAndSwap(key, expected, new):
                if not self._fits(key, new or b"") or self._live(key) != expected:
                    return False
                self._set(key, new, None)
        return True

    def _fits(self, key: bytes, value: bytes) -> bool:
        limits = self._limits
        return len(key) <= limits.max_key_bytes and len(value) <= limits.max_value_bytes

    def _live(self, key: bytes) -> bytes | None:
        value = self.batch.data.get(key, _MISSING)
        return self._store.get(key) if value is _MISSING else value

    def _set(self, key: bytes, value: bytes | None, deadline: int | None) -> None:
        self.batch.data[key] = value
        if deadline is not None or self.timed_keys:
            self._set_deadline(key, deadline)

    def _deadline_of(self, key: bytes) -> int | None:
        row_key = DEADLINE_OF + key
        row = self.batch.internal.get(row_key, _MISSING)
        if row is _MISSING:
            row = self._store.get_internal(row_key)
        return None if row is None else unpack_deadline(row)

    def _set_deadline(self, key: bytes, deadline: int | None) -> None:
        internal = self.batch.internal
        earlier = self._deadline_of(key)
        if earlier is not None:
            internal[DUE_AT + pack_deadline(earlier) + key] = None
            self.timed_keys -= 1
        if deadline is None:
            if earlier is not None:
                internal[DEADLINE_OF + key] = None
            return
        internal[DEADLINE_OF + key] = pack_deadline(deadline)
        internal[DUE_AT + pack_deadline(deadline) + key] = b""
        self.timed_keys += 1
        heapq.heappush(self._new_deadlines, (deadline, key))
        self.next_deadline = min(self.next_deadline, deadline)

    def _expire(self) -> None:
        """Remove every key whose deadline the clock has reached."""
        while (due := self._pop_due()) is not None:
            deadline, key = due
            # A later command may have moved or cleared the deadline meanwhile.
            if self._deadline_of(key) == deadline:
                self.batch.data[key] = None
                self._set_deadline(key, None)
        old = self._peek_old()
        new = self._new_deadlines[0][0] if self._new_deadlines else NEVER
        self.next_deadline = min(new, old[0] if old else NEVER)

    def _pop_due(self) -> tuple[int, bytes] | None:
        if self._new_deadlines and self._new_deadlines[0][0] <= self.clock_ms:
            return heapq.heappop(self._new_deadlines)
        old = self._peek_old()
        if old is not None and old[0] <= self.clock_ms:
            self._old_next = None
            return old
        return None

    def _peek_old(self) -> tuple[int, bytes] | None:
        """Return the earliest deadline that the store holds and that was not popped."""
        if self._old_deadlines is None:
            self._old_deadlines = iter(self._store.scan_internal(DUE_AT, AFTER_DUE_AT))
        if self._old_next is None:
            for row, _ in self._old_deadlines:
                start = len(DUE_AT)
                self._old_next = (unpack_deadline(row[start:]), row[start + 8 :])
                break
        return self._old_next
