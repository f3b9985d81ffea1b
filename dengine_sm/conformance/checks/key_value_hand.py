"""Puts `kv/1` commands into a machine, with the log ids that come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dengine_sm.conformance.workload import FIRST_TIMESTAMP_MS
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import Command, encode_command
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome


class Hand:
    """A log that is written as it is applied; term 1, one millisecond an entry."""

    def __init__(self, machine: Any, last_applied: LogId = LogId.ZERO) -> None:
        self.machine: StateMachine = machine
        self.index = last_applied.index

    def entries(self, *commands: Command) -> list[Entry]:
        """Return the next entries of the log, without applying them."""
        return entries_of(commands, self.index + 1)

    async def apply(self, *commands: Command) -> list[Outcome]:
        """Apply commands as one chunk and return their outcomes."""
        chunk = self.entries(*commands)
        self.index += len(chunk)
        return outcomes(await self.machine.apply_chunk(chunk))


def entries_of(commands: Sequence[Command], first_index: int = 1) -> list[Entry]:
    """Return commands as entries of term 1."""
    return [
        Entry(index, 1, FIRST_TIMESTAMP_MS + index, encode_command(command))
        for index, command in enumerate(commands, first_index)
    ]


def outcomes(results: Sequence[ApplyResult]) -> list[Outcome]:
    """Return the outcomes of results, in order."""
    return [result.outcome for result in results]
