"""Many entries as columns: an `Entry` is made only when somebody looks at one.

A log hands on thousands of entries that a key-value machine reads as bare commands. An
object for each would cost half as much as applying it, and give the garbage collector work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, repeat

from dengine_sm.lazy_sequence import LazySequence
from dengine_sm.model import Entry, LogId


class EntryBlock(LazySequence[Entry]):
    """Consecutive entries of one term.

    A slice without a step is a block too, and copies no command.

    Args:
        first_index: index of the first entry.
        term: of all entries.
        timestamps_ms: one per entry.
        payloads: the commands, one per entry.
    """

    __slots__ = ("first_index", "payloads", "term", "timestamps_ms")

    def __init__(
        self,
        first_index: int,
        term: int,
        timestamps_ms: Iterable[int] = (),
        payloads: Iterable[bytes] = (),
    ) -> None:
        self.first_index = first_index
        self.term = term
        self.timestamps_ms = list(timestamps_ms)
        self.payloads = list(payloads)

    @classmethod
    def stamped(
        cls, first_index: int, term: int, timestamp_ms: int, payloads: Sequence[bytes]
    ) -> EntryBlock:
        """Return a block of entries that were stamped together."""
        block = cls(first_index, term)
        block.add(timestamp_ms, payloads)
        return block

    def add(self, timestamp_ms: int, payloads: Sequence[bytes]) -> None:
        """Add the entries that follow, stamped together."""
        self.timestamps_ms += [timestamp_ms] * len(payloads)
        self.payloads += payloads

    @property
    def last_id(self) -> LogId:
        """Id of the last entry; of the one before the first while there is none."""
        return LogId(self.term, self.first_index + len(self.payloads) - 1)

    def from_index(self, index: int) -> EntryBlock:
        """Return the entries from an index on, which is none below the first."""
        skipped = index - self.first_index
        return self._part(skipped, len(self)) if skipped else self

    def __len__(self) -> int:
        return len(self.payloads)

    def _item(self, position: int) -> Entry:
        return Entry(
            self.first_index + position,
            self.term,
            self.timestamps_ms[position],
            self.payloads[position],
        )

    def _part(self, start: int, stop: int) -> EntryBlock:
        return EntryBlock(
            self.first_index + start,
            self.term,
            self.timestamps_ms[start:stop],
            self.payloads[start:stop],
        )

    def _whole(self) -> str:
        return f"a block of {len(self)} entries"

    def __iter__(self) -> Iterator[Entry]:
        # Sequence's own goes through __getitem__, which costs three times as much.
        indices = count(self.first_index)
        return map(Entry, indices, repeat(self.term), self.timestamps_ms, self.payloads)


def timestamps_of(entries: Sequence[Entry]) -> list[int]:
    """Return the timestamps of entries, in milliseconds since the epoch."""
    if isinstance(entries, EntryBlock):
        return entries.timestamps_ms
    return [entry.timestamp_ms for entry in entries]


def payloads_of(entries: Sequence[Entry]) -> list[bytes]:
    """Return the commands of entries."""
    if isinstance(entries, EntryBlock):
        return entries.payloads
    return [entry.data for entry in entries]
