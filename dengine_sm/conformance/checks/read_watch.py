"""What readers may see of a log while it is applied, and how they are kept busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from dengine_sm.conformance.checks.key_value_hand import entries_of
from dengine_sm.conformance.key_value import KeyValueModel
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.readers import Readers
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import Violation, violates
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Command, Delete, Put
from dengine_sm.model import Entry, Limits


class Watch:
    """What a reader may see of a log that is applied, or installed, in whole steps.

    Args:
        clause: blamed for what is no state between two steps.
        oracle: the log and the model of it.
        ends: the indices at which the steps end.
        goes_back: the clause that is blamed for an applied id that goes back.
    """

    def __init__(
        self, clause: str, oracle: Oracle, ends: Sequence[int], *, goes_back: str = "LOG-1"
    ) -> None:
        self.clause = clause
        self.goes_back = goes_back
        self.oracle = oracle
        self.ends = [0, *ends]
        self._places = {oracle.id_at(index): index for index in self.ends}

    def applied(self, machine: StateMachine) -> int:
        """Read the applied index, which must be the end of a step."""
        __tracebackhide__ = True
        found = machine.last_applied()
        if found not in self._places:
            violates(self.clause, expected="last_applied() at the end of a chunk", observed=found)
        return self._places[found]

    def between(self, machine: StateMachine, read: Callable[[], Any]) -> tuple[Any, list[int]]:
        """Read, and return with it the indices that it may belong to.

        State and applied id change together (APPLY-2), so a read belongs to no state
        before the id seen first, and to none after the id seen next.
        """
        __tracebackhide__ = True
        first = self.applied(machine)
        value = read()
        last = self.applied(machine)
        if last < first:
            violates(
                self.goes_back,
                expected=f"last_applied() not before {self.oracle.id_at(first)}",
                observed=self.oracle.id_at(last),
            )
        return value, [index for index in self.ends if first <= index <= last]

    def expect(self, what: str, value: Any, known: Callable[[int], Any], may: list[int]) -> None:
        """Compare what was read with what is known of the indices that it may belong to."""
        __tracebackhide__ = True
        if any(known(index) == value for index in may):
            return
        elsewhere = [str(index) for index in self.ends if known(index) == value]
        violates(
            self.clause,
            expected=f"{what} as at index {' or '.join(map(str, may))}: {known(may[0])!r:.400}",
            observed=f"{what}: {value!r:.400}, as at {', '.join(elsewhere[:5]) or 'no chunk end'}",
        )


def answering(clause: str, look: Callable[[int], None]) -> Callable[[int], None]:
    """Blame a clause for a read that raises."""

    def looking(number: int) -> None:
        __tracebackhide__ = True
        try:
            look(number)
        except Violation:
            raise
        except Exception as exc:
            raise Violation(
                clause, expected="an answer", observed=f"{type(exc).__name__}: {exc}"
            ) from exc

    return looking


@attrs.frozen
class Counting:
    """A log that sets several keys to one number, chunk by chunk: half a chunk shows at once."""

    oracle: Oracle
    keys: tuple[bytes, ...]
    chunks: list[list[Entry]]
    values: dict[int, bytes | None]
    """The value that all keys have at the end of each chunk; None: they are absent."""
    rows: dict[int, tuple[tuple[bytes, bytes], ...]]
    """Everything that there is at the end of each chunk."""

    @property
    def ends(self) -> list[int]:
        """The index at the end of each chunk."""
        return [chunk[-1].index for chunk in self.chunks]


def counting(trial: Trial, chunks: int, keys: int, others: int) -> Counting:
    """Return a log for key-value machines.

    Args:
        trial: the check's.
        chunks: one a number; every fifth deletes the keys.
        keys: that are set to the number.
        others: rows that come and go, so that their number tells a state too.
    """
    found = Counting(
        Oracle(trial.subject.workload),
        tuple(b"key-%03d" % key for key in range(keys)),
        chunks=[],
        values={0: None},
        rows={0: ()},
    )
    model = KeyValueModel(trial.subject.limits or Limits())
    for number in range(chunks):
        value = None if number % 5 == 4 else b"%08d" % number
        commands: list[Command] = [
            Delete(key) if value is None else Put(key, value) for key in found.keys
        ]
        for row in range(others):
            key = b"row-%03d" % row
            commands.append(Put(key, b"") if row < number % 3 * others / 2 else Delete(key))
        chunk = entries_of(commands, len(found.oracle.log) + 1)
        found.oracle.extend(chunk)
        for entry in chunk:
            model.apply(entry)
        found.chunks.append(chunk)
        found.values[chunk[-1].index] = value
        found.rows[chunk[-1].index] = model.scan()
    return found


async def write_under_readers(
    trial: Trial, machine: StateMachine, chunks: Sequence[Sequence[Entry]], readers: Readers
) -> None:
    """Apply chunks beside a snapshot that is being written, with all readers at it."""
    __tracebackhide__ = True
    writing: asyncio.Future[bytes] | None = None
    try:
        for number, chunk in enumerate(chunks):
            await machine.apply_chunk(chunk)
            if number % 4 == 0:
                await readers.keep_up()
                trial.on_progress(number, len(chunks))
            if number % 24 == 0:
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(
                    machine.generate_snapshot_data(
                        trial.directory("snapshot") / "data", machine.last_applied()
                    )
                )
                # Up to its first suspension, by which the view is pinned (SNAP-1).
                await asyncio.sleep(0)
        await readers.keep_up()
    finally:
        if writing is not None:
            await asyncio.wait([writing])
    if writing is not None:
        writing.result()
    trial.evidence.update(chunks=len(chunks), looks=readers.looks)
