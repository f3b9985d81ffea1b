"""Stream sequences to log indices, exactly.

A message holds any number of commands, so nothing but counting tells the index of its
first one. A `Position` says what was counted up to a message; positions are kept on disk
and beside every published snapshot, and counting goes on from there. All nodes count the
same messages, so all have the same positions.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.codec import decode, encode
from dengine_sm.errors import CorruptionError, StorageFormatError
from dengine_sm.files import read_checked_file

FORMAT = "dengine-sm-nats-positions"
VERSION = 1
_MOST = 1024


@attrs.frozen(order=True)
class Position:
    """What was counted up to and including a message."""

    sequence: int
    """Of the message in the stream; 0 before the first."""
    index: int
    """Of the last command up to here."""
    timestamp_ms: int
    """Greatest time of a message up to here; log time never goes back (DET-2)."""
    mark: int = 0
    """Sequence of the last mark up to here that counted; 0 before the first."""

    def pack(self) -> list[int]:
        """Return the array `[sequence, index, timestamp_ms, mark]`."""
        return [self.sequence, self.index, self.timestamp_ms, self.mark]


def unpack_position(item: Any) -> Position:
    """Return the position of an array `[sequence, index, timestamp_ms, mark]`.

    Raises:
        ValueError: the item is anything else.
    """
    match item:
        case [int(), int(), int(), int()] if min(item) >= 0:
            return Position(*item)
    raise ValueError(f"position: expected 4 numbers, observed {item!r}")


class Positions:
    """Known positions of one stream, in order; more than enough are thinned out.

    Args:
        stream_id: of the stream that was counted.
    """

    def __init__(self, stream_id: str, known: list[Position]) -> None:
        self.stream_id = stream_id
        self._known = sorted(set(known))

    @property
    def newest(self) -> Position:
        """The last one known."""
        return self._known[-1]

    def add(self, position: Position) -> None:
        """Note a position."""
        at = bisect_right(self._known, position)
        if at == 0 or self._known[at - 1] != position:
            self._known.insert(at, position)
        if len(self._known) > _MOST:
            # The older half at half the density; the first one is where the stream begins.
            half = _MOST // 2
            self._known[1:half] = self._known[2:half:2]

    def at_or_before_index(self, index: int) -> Position | None:
        """Return the last position that counted no command beyond an index."""
        # Several positions may have one index; the last of them saves the most reading.
        at = bisect_right(self._known, index, key=lambda position: position.index)
        return self._known[at - 1] if at else None

    def at_or_after_sequence(self, sequence: int) -> Position | None:
        """Return the first position from a sequence on."""
        for position in self._known:
            if position.sequence >= sequence:
                return position
        return None

    def forget_before(self, sequence: int) -> None:
        """Drop what lies before the stream's first message; one position always stays."""
        keep = [position for position in self._known if position.sequence >= sequence - 1]
        self._known = keep or self._known[-1:]

    def pack(self) -> bytes:
        """Return what `load_positions` reads from a checked file."""
        return encode([FORMAT, VERSION, self.stream_id, [known.pack() for known in self._known]])


def load_positions(path: Path) -> Positions | None:
    """Read a checked file of `Positions.pack`; None when there is none.

    Raises:
        CorruptionError: it is damaged.
        StorageFormatError: it is another kind of file, or newer.
    """
    if not path.exists():
        return None
    payload = read_checked_file(path)
    try:
        match decode(payload):
            case [name, version, str(stream_id), [_, *_] as known] if (
                name == FORMAT and version == VERSION
            ):
                return Positions(stream_id, [unpack_position(item) for item in known])
            case other:
                raise StorageFormatError(
                    f"{str(path)!r}: expected {FORMAT} {VERSION}, observed {other!r}; "
                    "nothing was changed",
                    path=path,
                    expected=f"{FORMAT} {VERSION}",
                )
    except ValueError as exc:
        raise CorruptionError(f"{str(path)!r}: {exc}", path=path, offset=0) from exc
