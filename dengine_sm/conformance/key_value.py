"""The workload of key-value machines, command set `kv/1` (CONTRACT §4)."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dengine_sm.contract import StateMachine
from dengine_sm.kv import SEQUENCE_PASSED, SESSION_UNKNOWN
from dengine_sm.kv.commands import (
    Change,
    CompareAndSwap,
    Delete,
    InSession,
    OpenSession,
    Put,
    decode_command,
    encode_command,
)
from dengine_sm.model import Entry, Limits, LogId, Outcome

KEYS: tuple[bytes, ...] = (
    b"a",
    b"b",
    b"c",
    b"",
    b"\x00",
    b"\xff\xff",
    b"a\x00",
    # Names that a machine may use for rows of its own (READ-4).
    b"m/applied",
    b"last_applied",
    b"snapshot_metadata",
)
VALUES: tuple[bytes, ...] = (b"", b"1", b"2", b"\x00\xff", b"value")
TTLS_MS = (1, 2, 30, 400, 6000)
SESSION_IDS = (1, 2, 3, 4, 5, 6, 7, 8)
SEQUENCES = (1, 1, 2, 3, 4, 7, 1 << 63)


class KeyValueModel:
    """A dict with deadlines and one of sessions; the clock is the largest timestamp applied."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows: dict[bytes, tuple[bytes, int | None]] = {}
        self.clock_ms = 0
        self.sessions: dict[int, tuple[int, Outcome]] = {}
        """Session to newest sequence and its outcome; the least recently used one is first."""

    def apply(self, entry: Entry) -> tuple[Outcome, bytes | None]:
        """Carry out one entry (CONTRACT §4, DET-3)."""
        self.clock_ms = max(self.clock_ms, entry.timestamp_ms)
        for key, (_, deadline_ms) in list(self.rows.items()):
            if deadline_ms is not None and deadline_ms <= self.clock_ms:
                del self.rows[key]
        try:
            command = decode_command(entry.data)
        except ValueError:
            return Outcome.REJECTED, None
        match command:
            case OpenSession():
                return Outcome.APPLIED, self._open(entry.index)
            case InSession():
                return self._execute_once(command)
        return self._execute(command), None

    def _open(self, session_id: int) -> bytes:
        if len(self.sessions) == self.limits.max_sessions:
            del self.sessions[next(iter(self.sessions))]
        self.sessions[session_id] = 0, Outcome.REJECTED
        return session_id.to_bytes(8, "big")

    def _execute_once(self, command: InSession) -> tuple[Outcome, bytes | None]:
        if command.session_id not in self.sessions:
            return Outcome.REJECTED, SESSION_UNKNOWN
        newest, outcome = self.sessions[command.session_id]
        if command.sequence < newest:
            return Outcome.REJECTED, SEQUENCE_PASSED
        if command.sequence > newest:
            outcome = self._execute(command.command)
            del self.sessions[command.session_id]
            self.sessions[command.session_id] = command.sequence, outcome
        return outcome, None

    def _execute(self, command: Change | None) -> Outcome:
        return Outcome.APPLIED if self._change(command) else Outcome.REJECTED

    def _change(self, command: Change | None) -> bool:
        match command:
            case Put(key, value, ttl_ms):
                if self._too_large(key, value) or (ttl_ms is not None and ttl_ms < 1):
                    return False
                deadline_ms = None if ttl_ms is None else self.clock_ms + ttl_ms
                self.rows[key] = value, deadline_ms
            case Delete(key):
                self.rows.pop(key, None)
            case CompareAndSwap(key, expected, new):
                if self.get(key) != expected or self._too_large(key, new or b""):
                    return False
                self.rows.pop(key, None)
                if new is not None:
                    self.rows[key] = new, None
        return True

    def _too_large(self, key: bytes, value: bytes) -> bool:
        return len(key) > self.limits.max_key_bytes or len(value) > self.limits.max_value_bytes

    def get(self, key: bytes) -> bytes | None:
        """Return a live value."""
        return self.rows[key][0] if key in self.rows else None

    def scan(self, prefix: bytes = b"") -> tuple[tuple[bytes, bytes], ...]:
        """Return the live entries with a prefix, sorted by key bytes."""
        return tuple((k, self.rows[k][0]) for k in sorted(self.rows) if k.startswith(prefix))

    def observe(self) -> tuple[bytes | None, ...]:
        """Return the values of `KEYS`."""
        return tuple(self.get(key) for key in KEYS)

    def len(self) -> int:
        """Return the number of live keys."""
        return len(self.rows)


@attrs.frozen
class KeyValueWorkload:
    """Commands over a few keys: puts with and without time to live, deletes, swaps, garbage.

    Some of them in sessions, which exist if an early entry happens to open them.
    """

    limits: Limits = attrs.field(factory=Limits)
    name: str = "kv/1"
    is_key_value: bool = True

    def commands(self) -> SearchStrategy[bytes]:
        """Return a strategy for `kv/1` commands, malformed ones included."""
        keys = st.sampled_from(KEYS)
        values = st.sampled_from(VALUES)
        expected = st.none() | values
        ttls = st.none() | st.sampled_from(TTLS_MS)
        puts = st.builds(Put, keys, values, st.none())
        timed_puts = st.builds(Put, keys, values, ttls)
        deletes = st.builds(Delete, keys)
        swaps = st.builds(CompareAndSwap, keys, expected, expected)
        bad_ttls = st.builds(Put, keys, values, st.sampled_from((0, -5)))
        change = st.one_of(puts, deletes, swaps)
        sessions = st.sampled_from(SESSION_IDS), st.sampled_from(SEQUENCES)
        in_session = st.builds(InSession, *sessions, change)
        malformed = st.sampled_from((b"\xff", b"no command", encode_command(Delete(b"a")) + b"x"))
        return st.one_of(
            # As often as they are listed: most of a log should do something.
            puts.map(encode_command),
            st.just(encode_command(OpenSession())),
            in_session.map(encode_command),
            timed_puts.map(encode_command),
            deletes.map(encode_command),
            swaps.map(encode_command),
            swaps.map(encode_command),
            puts.map(encode_command),
            puts.map(encode_command),
            malformed | bad_ttls.map(encode_command) | st.just(b""),
        )

    def model(self) -> KeyValueModel:
        """Return an empty model."""
        return KeyValueModel(self.limits)

    def observe(self, machine: StateMachine) -> tuple[bytes | None, ...]:
        """Read every key that the commands use, one by one."""
        return tuple(machine.get(key) for key in KEYS)

    def observe_at_once(self, machine: StateMachine) -> tuple[Any, LogId | None] | None:
        """Read with `scan_prefix` or else `get_multi`, if the machine has them."""
        scan_prefix = getattr(machine, "scan_prefix", None)
        if scan_prefix is not None:
            result = scan_prefix(b"")
            rows = dict(result.entries)
            return tuple(rows.get(key) for key in KEYS), result.last_applied
        get_multi = getattr(machine, "get_multi", None)
        if get_multi is not None:
            return tuple(get_multi(list(KEYS))), None
        return None
