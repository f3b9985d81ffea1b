"""What a node keeps in its log directory beside the positions: who it is, and an alarm."""

from __future__ import annotations

import secrets
from pathlib import Path

from dengine_sm import LogId, StateDivergenceError, StorageFormatError
from dengine_sm.codec import decode, encode, pack_log_id, unpack_log_id
from dengine_sm.files import names_in, read_checked_file, write_checked_file

FORMAT = "dengine-sm-nats-log"
VERSION = 1
IDENTITY = "IDENTITY"
ALARM = "DIVERGED"
_KNOWN = {IDENTITY, ALARM, "POSITIONS", "LOCK"}


def refuse_foreign_directory(directory: Path) -> None:
    """Refuse a directory of another log, before the first change.

    Raises:
        StorageFormatError: it holds something else.
    """
    names = names_in(directory)
    foreign = sorted(name for name in names - _KNOWN if not name.endswith(".tmp"))
    if foreign and IDENTITY not in names:
        some = ", ".join(map(repr, foreign[:3]))
        raise StorageFormatError(
            f"log directory {str(directory)!r} is not one of the log 'nats': it holds {some}; "
            f"expected an empty directory or one with {IDENTITY}; nothing was changed",
            path=directory,
            expected=FORMAT,
            observed=some,
        )


def own_identity(directory: Path) -> bytes:
    """Return 16 bytes drawn when the directory was first used.

    Raises:
        StorageError: damaged, of a newer version, or the disk refused.
    """
    path = directory / IDENTITY
    if not path.exists():
        write_checked_file(path, encode([FORMAT, VERSION, secrets.token_bytes(16)]))
    match decode(read_checked_file(path)):
        case [name, version, bytes(identity)] if name == FORMAT and version == VERSION:
            return identity
        case other:
            raise StorageFormatError(
                f"{str(path)!r}: expected {FORMAT} {VERSION}, observed {other!r}; nothing was "
                "changed",
                path=path,
                expected=f"{FORMAT} {VERSION}",
            )


def keep_alarm(directory: Path, error: StateDivergenceError) -> None:
    """Keep a divergence on disk: a restart makes the state no better."""
    last_equal = None if error.last_equal is None else pack_log_id(error.last_equal)
    fields = [pack_log_id(error.log_id), last_equal, str(error)]
    write_checked_file(directory / ALARM, encode(fields))


def refuse_alarm(directory: Path) -> None:
    """Refuse to open after a divergence.

    Raises:
        StateDivergenceError: this node's state was found to differ.
    """
    path = directory / ALARM
    if not path.exists():
        return
    log_id, last_equal, text = decode(read_checked_file(path))
    known: LogId | None = None if last_equal is None else unpack_log_id(last_equal)
    raise StateDivergenceError(
        f"this node was stopped by an alarm: {text}; keep a copy of its data directory for whoever "
        "looks into it, then remove the directory and start again: the node takes a snapshot of "
        "the others",
        log_id=unpack_log_id(log_id),
        last_equal=known,
    )
