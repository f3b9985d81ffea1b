"""The portable key-value snapshot, `kv-portable/1`: equal states, identical bytes.

The directory holds the manifest and `entries.cbor`, a CBOR sequence (RFC 8742) of

    header  = ["kv-portable", 1, [term, index], clock_ms]
            / ["kv-portable", 1, [term, index], clock_ms, [[id, sequence, succeeded, last_used]...]]
    block   = [[key...], [value...], [[position, deadline_ms]...]]
    trailer = [number of entries in all blocks]

The fifth field of the header are the sessions by rising id, if there are any. Keys rise
strictly by their bytes through all blocks. A block is closed by the entry that
brings it to 1024 entries or to 1 MiB of keys and values, so that where blocks end
depends on the state alone.

Source: CONTRACT SNAP-11, SNAP-13.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NoReturn

import attrs

from dengine_sm.codec import decode_sequence, encode, pack_log_id, unpack_log_id
from dengine_sm.errors import SnapshotError
from dengine_sm.files.filesystem import FileSystem, default_file_system, storage_errors
from dengine_sm.files.new_file import NewFile
from dengine_sm.model import LogId
from dengine_sm.snapshot._disk import BLOCK_BYTES, damaged, open_regular
from dengine_sm.snapshot.manifest import MANIFEST_NAME, read_manifest, seal_snapshot

PORTABLE_FORMAT = "kv-portable/1"
ENTRIES_NAME = "entries.cbor"
BLOCK_ENTRIES = 1024

_MAGIC = "kv-portable"
_VERSION = 1

Row = tuple[bytes, bytes, int | None]


class SnapshotAborted(SnapshotError):  # noqa: N818 - the caller asked for it, not a failure
    """Writing stopped because `should_stop` said so; nothing is left of it."""


@attrs.frozen
class Block:
    """A run of entries; the position of an entry is its place in `keys`."""

    keys: list[bytes]
    """Rising strictly, within the block and from block to block."""
    values: list[bytes]
    """One for each key."""
    deadlines: dict[int, int]
    """Position to deadline in milliseconds, for the entries that have one."""


@attrs.frozen
class SessionRow:
    """A client's session: the newest command of it and what that gave."""

    session_id: int
    """Index of the entry that opened it."""
    sequence: int
    """The highest one executed; 0 before the first."""
    succeeded: bool
    """Whether the command of that sequence was `APPLIED`; False before the first."""
    last_used: int
    """Index of the entry that executed it, or that opened the session."""


@attrs.frozen
class PortableSnapshot:
    """A portable snapshot that is being read."""

    last_included: LogId
    clock_ms: int
    """The log's clock after `last_included`."""
    sessions: list[SessionRow]
    """By rising id."""
    blocks: Iterator[Block]
    """To be read once; one block at a time is in memory."""


def never() -> bool:
    """Return False: nothing asks the writer to stop."""
    return False


def write_portable(
    directory: Path,
    *,
    last_included: LogId,
    clock_ms: int,
    entries: Iterable[Row],
    sessions: Sequence[SessionRow] = (),
    should_stop: Callable[[], bool] = never,
    on_progress: Callable[[int], None] | None = None,
    fs: FileSystem | None = None,
) -> bytes:
    """Write a portable snapshot and seal it.

    Args:
        directory: absent or empty.
        last_included: the entry the state belongs to.
        clock_ms: the log's clock at that entry.
        entries: `(key, value, deadline_ms or None)`, rising strictly by key bytes.
        sessions: the sessions of clients, by rising id.
        should_stop: asked between blocks, from the calling thread.
        on_progress: told after each block how many entries are written so far.
        fs: the file system to write through.

    Returns:
        The checksum for `SnapshotMetadata`, 32 bytes.

    Raises:
        SnapshotAborted: `should_stop` said so.
        SnapshotError: the directory is not empty (it is untouched), or the keys do not
            rise.
        StorageError: the disk refused.

    Whatever is raised, by `entries` too, what was written is removed again.
    """
    fs = fs or default_file_system()
    with storage_errors(directory, "write the snapshot", "what was written is removed"):
        created = _prepare(directory, fs)
        try:
            with NewFile(directory / ENTRIES_NAME, fs) as stream:
                header = [_MAGIC, _VERSION, pack_log_id(last_included), clock_ms]
                if sessions:
                    header.append([_pack_session(session) for session in sessions])
                stream.write(encode(header))
                total = 0
                for block in _blocks(entries, directory):
                    _stop_if(should_stop, directory)
                    stream.write(encode(block))
                    total += len(block[0])
                    if on_progress is not None:
                        on_progress(total)
                stream.write(encode([total]))
            _stop_if(should_stop, directory)
            return seal_snapshot(
                directory, format=PORTABLE_FORMAT, last_included=last_included, fs=fs
            )
        except BaseException:
            _remove(directory, created, fs)
            raise


def read_portable(directory: Path) -> PortableSnapshot:
    """Begin to read a directory that `verify_snapshot` has accepted.

    The blocks are read as they are asked for, and raise in their turn.

    Raises:
        SnapshotCorruptionError: the content is not a portable snapshot.
        StorageError: the disk refused.
    """
    path = directory / ENTRIES_NAME
    manifest, _ = read_manifest(directory)
    with storage_errors(path, "read the snapshot", "it was not used"), open_regular(path) as stream:
        last_included, clock_ms, sessions = _unpack_header(path, next(_items(path, stream), None))
    if manifest.last_included != last_included:
        raise damaged(
            path,
            f"begins with last_included {last_included!r}, "
            f"its manifest says {manifest.last_included!r}",
            expected=manifest.last_included,
            observed=last_included,
        )
    return PortableSnapshot(last_included, clock_ms, sessions, _read_blocks(path))


def _prepare(directory: Path, fs: FileSystem) -> bool:
    """Make sure that the directory exists and is empty; tell whether it was created."""
    try:
        fs.mkdir(directory)
    except FileExistsError:
        if any(directory.iterdir()):
            raise SnapshotError(
                f"snapshot directory '{directory}' is not empty; nothing was written",
                path=directory,
            ) from None
        return False
    return True


def _remove(directory: Path, created: bool, fs: FileSystem) -> None:
    for name in (ENTRIES_NAME, MANIFEST_NAME):
        with suppress(OSError):
            fs.unlink(directory / name)
    if created:
        with suppress(OSError):
            directory.rmdir()


def _stop_if(should_stop: Callable[[], bool], directory: Path) -> None:
    if should_stop():
        raise SnapshotAborted(
            f"snapshot '{directory}': stopped on request; what was written is removed",
            path=directory,
        )


def _blocks(entries: Iterable[Row], directory: Path) -> Iterator[list[list[Any]]]:
    last_key: bytes | None = None
    rows = iter(entries)
    while True:
        keys, values, deadlines = _fill(rows)
        if not keys:
            return
        if (last_key is not None and keys[0] <= last_key) or not _rises(keys):
            _refuse_order(directory, keys if last_key is None else [last_key, *keys])
        last_key = keys[-1]
        yield [keys, values, deadlines]


def _fill(rows: Iterator[Row]) -> tuple[list[bytes], list[bytes], list[list[int]]]:
    """Take the entries of one block."""
    keys: list[bytes] = []
    values: list[bytes] = []
    deadlines: list[list[int]] = []
    size = 0
    for key, value, deadline_ms in islice(rows, BLOCK_ENTRIES):
        if deadline_ms is not None:
            deadlines.append([len(keys), deadline_ms])
        keys.append(key)
        values.append(value)
        size += len(key) + len(value)
        if size >= BLOCK_BYTES:
            break
    return keys, values, deadlines


def _rises(items: list[Any]) -> bool:
    return all(map(operator.lt, items, islice(items, 1, None)))


def _refuse_order(directory: Path, keys: list[bytes]) -> NoReturn:
    before, after = next((a, b) for a, b in pairwise(keys) if a >= b)
    raise SnapshotError(
        f"snapshot '{directory}': key {after!r} comes after {before!r}; expected keys that "
        f"rise strictly; what was written is removed",
        path=directory,
        expected=before,
        observed=after,
    )


def _items(path: Path, stream: IO[bytes]) -> Iterator[Any]:
    try:
        yield from decode_sequence(stream)
    except ValueError as exc:
        raise damaged(path, str(exc)) from exc


def _unpack_header(path: Path, item: Any) -> tuple[LogId, int, list[SessionRow]]:
    match item:
        case [str(magic), int(version), log_id, int(clock_ms), *rest] if (
            magic == _MAGIC and version == _VERSION and type(clock_ms) is int
        ):
            with suppress(ValueError):
                last_included = unpack_log_id(log_id)
                return last_included, clock_ms, _unpack_sessions(rest, last_included.index)
    raise damaged(path, "does not begin with the header of a portable snapshot")


def _pack_session(session: SessionRow) -> list[int]:
    return [session.session_id, session.sequence, int(session.succeeded), session.last_used]


def _unpack_sessions(rest: list[Any], last_index: int) -> list[SessionRow]:
    """Return the sessions in what follows a header's clock.

    Raises:
        ValueError: it is something else, or no state can hold them.
    """
    match rest:
        case []:
            return []
        case [[_, *_] as items]:
            sessions = [_unpack_session(item, last_index) for item in items]
            uses = {session.last_used for session in sessions}
            if _rises([session.session_id for session in sessions]) and len(uses) == len(sessions):
                return sessions
    raise ValueError("not the sessions of a state")


def _unpack_session(item: Any, last_index: int) -> SessionRow:
    match item:
        case [int(session_id), int(sequence), 0 | 1 as succeeded, int(last_used)] if (
            set(map(type, item)) == {int}
            and 1 <= session_id <= last_used <= last_index
            and 0 <= sequence < 1 << 64
        ):
            return SessionRow(session_id, sequence, succeeded == 1, last_used)
    raise ValueError(f"not a session: {item!r}")


def _read_blocks(path: Path) -> Iterator[Block]:
    total = 0
    last_key: bytes | None = None
    with storage_errors(path, "read the snapshot", "it was not used"), open_regular(path) as stream:
        items = _items(path, stream)
        next(items, None)
        for item in items:
            if type(item) is list and len(item) == 1:
                _check_end(path, item, total, items)
                return
            block = _unpack_block(item)
            if block is None or (last_key is not None and block.keys[0] <= last_key):
                raise damaged(path, f"what follows entry {total} is not a block of entries")
            total += len(block.keys)
            last_key = block.keys[-1]
            yield block
    raise damaged(path, f"ends after {total} entries, without its trailer")


def _check_end(path: Path, trailer: list[Any], total: int, rest: Iterator[Any]) -> None:
    if type(trailer[0]) is not int or trailer[0] != total:
        raise damaged(
            path,
            f"holds {total} entries, its trailer says {trailer[0]!r}",
            expected=trailer[0],
            observed=total,
        )
    if next(rest, None) is not None:
        raise damaged(path, "goes on after its trailer")


def _unpack_block(item: Any) -> Block | None:
    """Return the block, or None when the item is none."""
    match item:
        case [[_, *_] as keys, list(values), list(pairs)] if (
            len(keys) == len(values)
            and set(map(type, keys)) == {bytes} == set(map(type, values))
            and _rises(keys)
        ):
            deadlines = _unpack_deadlines(pairs, len(keys))
            return None if deadlines is None else Block(keys, values, deadlines)
    return None


def _unpack_deadlines(pairs: list[Any], count: int) -> dict[int, int] | None:
    for pair in pairs:
        match pair:
            case [position, deadline] if type(position) is int and type(deadline) is int:
                continue
        return None
    deadlines: dict[int, int] = dict(pairs)
    positions = list(deadlines)
    if len(deadlines) != len(pairs) or not _rises(positions):
        return None
    if positions and not (positions[0] >= 0 and positions[-1] < count):
        return None
    return deadlines
