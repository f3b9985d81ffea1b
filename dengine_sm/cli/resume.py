"""The progress file of `load`: how many lines of a history were acknowledged.

Written by atomic replace after every batch. A load that is cut off re-sends at most the
batch it was waiting for; that is harmless, since puts and deletes are idempotent.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import attrs

from dengine_sm.errors import ConfigError, StorageError

HEAD_BYTES = 64 * 1024


@attrs.frozen
class Progress:
    """What a progress file says."""

    file: str
    """Absolute path of the history."""
    target: str
    """The server that acknowledged."""
    head_bytes: int
    """Length of the history's beginning that `head_sha256` covers."""
    head_sha256: str
    """Tells a file that has grown from another file of the same name."""
    lines: int = 0
    """Lines done with: acknowledged, blank or refused."""
    sent: int = 0
    """Commands acknowledged."""
    refused: int = 0
    """Lines refused."""
    log_index: int = 0
    """The server's log index of the last command acknowledged."""


def default_path(file: Path, target: str) -> Path:
    """Return where the progress of this file and server is kept.

    Below `$XDG_STATE_HOME`, or `~/.local/state`.
    """
    state_home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    identity = hashlib.sha256(f"{file.resolve()}\n{target}".encode(errors="surrogateescape"))
    return Path(state_home) / "dengine-sm" / "load" / f"{identity.hexdigest()[:32]}.progress"


def fresh(file: Path, target: str) -> Progress:
    """Return the progress of a load that has not begun."""
    head = _head(file, HEAD_BYTES)
    return Progress(
        file=str(file.resolve()),
        target=target,
        head_bytes=len(head),
        head_sha256=hashlib.sha256(head).hexdigest(),
    )


def read(path: Path, file: Path, target: str) -> Progress | None:
    """Return the recorded progress; None if there is none.

    Raises:
        ConfigError: the record is damaged, or about another file or server.
        StorageError: it cannot be read.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise StorageError(f"progress file {str(path)!r}: {exc}", path=path) from exc
    try:
        progress = Progress(**json.loads(text))
        counts = (progress.head_bytes, progress.lines, progress.sent, progress.refused)
        if not all(type(count) is int and count >= 0 for count in (*counts, progress.log_index)):
            raise ValueError("a count is negative or no number")
    except (TypeError, ValueError) as exc:
        raise _refused(path, f"not a progress record: {exc}") from exc
    head = _head(file, progress.head_bytes)
    if hashlib.sha256(head).hexdigest() != progress.head_sha256:
        raise _refused(path, f"it is about another file than {str(file)!r}, or an older version")
    if progress.target != target:
        raise _refused(path, f"it is about server {progress.target!r}, not {target!r}")
    return progress


def check_server(path: Path, progress: Progress, last_applied_index: int) -> None:
    """Refuse progress that this server cannot have acknowledged.

    Raises:
        ConfigError: the server's log ends before the recorded index.
    """
    if last_applied_index < progress.log_index:
        raise _refused(
            path,
            f"it ends at log index {progress.log_index}, but server {progress.target!r} has "
            f"applied only {last_applied_index}: another node listens there now, or it was reset",
        )


def write(path: Path, progress: Progress) -> None:
    """Replace the record; durable on return.

    Raises:
        StorageError: the record could not be written; the old one is still there.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w") as stream:
            json.dump(attrs.asdict(progress), stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as exc:
        aside.unlink(missing_ok=True)
        raise StorageError(
            f"progress file {str(path)!r}: cannot be written: {exc}", path=path
        ) from exc


def _refused(path: Path, reason: str) -> ConfigError:
    message = (
        f"progress file {str(path)!r}: {reason}; nothing was sent. "
        "Use --restart to load from the first line"
    )
    return ConfigError(message, problems=[message])


def _head(file: Path, size: int) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(size)
    except OSError as exc:
        raise StorageError(f"history {str(file)!r}: {exc}", path=file) from exc
