"""The data directory of a backend over another engine: locked, marked, replaced as a whole.

On disk: `LOCK`; `FORMAT`, a checked file that says whose directory it is and which
generation is in force; `data-N`, a file or directory of the engine for each generation.
The engine's first data and every replacement of it take over by the atomic replacement
of `FORMAT`, so that a kill leaves one generation whole.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from dengine_sm.codec import decode_prefix, encode
from dengine_sm.errors import CorruptionError, StorageError, StorageFormatError
from dengine_sm.files.atomic import TEMPORARY_SUFFIX, read_checked_file, write_checked_file
from dengine_sm.files.filesystem import (
    FileSystem,
    default_file_system,
    make_directories,
    names_in,
    storage_errors,
    sync_directory,
)
from dengine_sm.files.lock import DirectoryLock

MARK = "FORMAT"
LOCK = "LOCK"
GENERATION = "data-"


class DataDirectory:
    """See the module's docstring.

    Args:
        path: the directory; made by `open`.
        format: name of what the engine keeps in it, such as `acme-store`.
        version: of that format; a directory of a newer one is refused.
        fs: the file system for what this object writes itself.
    """

    def __init__(
        self, path: Path, *, format: str, version: int = 1, fs: FileSystem | None = None
    ) -> None:
        self.path = path
        self._format = format
        self._version = version
        self._fs = fs or default_file_system()
        self._lock = DirectoryLock(path, LOCK, self._fs)
        self._generation = 0
        self._is_in_doubt = False

    @property
    def is_in_doubt(self) -> bool:
        """Whether a failed `switch` has left it unknown which generation is in force."""
        return self._is_in_doubt

    @property
    def is_empty(self) -> bool:
        """Whether no generation is in force: the engine has not laid out its data yet."""
        return self._generation == 0

    @property
    def current(self) -> Path:
        """Where the generation in force is; meaningless while `is_empty`."""
        return self._path_of(self._generation)

    @property
    def next(self) -> Path:
        """Where the next generation is to be written; absent after `open` and `switch`."""
        return self._path_of(self._generation + 1)

    def open(self) -> None:
        """Take the lock, find the generation in force, remove the others.

        Raises:
            StorageFormatError: the directory is another backend's, or of a newer format
                (LIFE-7); nothing was changed.
            CorruptionError: the mark is damaged or missing, or the data is missing (CRASH-5);
                nothing was changed.
            StorageLockedError: somebody else has it open (LIFE-6); nothing was changed.
            StorageError: the disk refused.
        """
        self._refuse_foreign()
        make_directories(self.path, self._fs)
        self._lock.acquire()
        try:
            self._generation = self._recovered()
            self._is_in_doubt = False
            self._remove_others()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the lock; idempotent."""
        self._lock.release()

    def switch(self) -> None:
        """Put the next generation in force, durably; the old one stays until `remove_old`.

        The caller has synced what it wrote to `next`.

        Raises:
            StorageError: the old generation is in force; unless putting it back has failed
                as well: then `is_in_doubt` is set, and only `open` knows.
        """
        old = self._generation
        sync_directory(self.path, self._fs)
        try:
            self._write_mark(old + 1)
        except StorageError as exc:
            self._switch_back(old, exc)
            raise
        except BaseException:
            self._is_in_doubt = True
            raise
        self._generation = old + 1

    def remove_old(self) -> None:
        """Remove every generation but the one in force; what cannot be removed stays."""
        with suppress(OSError, StorageError):
            self._remove_others()

    def _path_of(self, generation: int) -> Path:
        return self.path / f"{GENERATION}{generation:08d}"

    def _refuse_foreign(self) -> None:
        """Refuse before the first change: not even a lock file is left behind."""
        names = names_in(self.path)
        if MARK in names:
            self._read_mark()
            return
        found = names - {LOCK, MARK + TEMPORARY_SUFFIX}
        foreign = sorted(name for name in found if not name.startswith(GENERATION))
        if foreign:
            some = ", ".join(map(repr, foreign[:3]))
            raise StorageFormatError(
                f"data directory {str(self.path)!r} is not one of {self._format!r}: it holds "
                f"{some}; expected an empty directory or a {MARK}; nothing was changed",
                path=self.path,
                expected=self._format,
                observed=some,
            )
        if found:
            raise CorruptionError(
                f"data directory {str(self.path)!r} has data but no {MARK}; nothing was changed",
                path=self.path / MARK,
                offset=0,
            )

    def _read_mark(self) -> int:
        """Return the generation in force."""
        path = self.path / MARK
        match decode_prefix(read_checked_file(path, self._fs)):
            case [str(name), int(version), int(generation)] if (
                name == self._format and version == self._version
            ):
                return generation
            case [str(name), int(version), *_]:
                observed = f"{name} {version}"
            case _:
                observed = "no mark"
        raise StorageFormatError(
            f"{str(path)!r} says {observed!r}: expected '{self._format} {self._version}'; "
            "nothing was changed",
            path=path,
            expected=f"{self._format} {self._version}",
            observed=observed,
        )

    def _write_mark(self, generation: int) -> None:
        content = encode([self._format, self._version, generation])
        write_checked_file(self.path / MARK, content, self._fs)

    def _switch_back(self, old: int, cause: StorageError) -> None:
        """Undo a switch that failed: the new mark may be in place, only not durably."""
        try:
            if self._read_mark() != old:
                self._write_mark(old)
        except StorageError as exc:
            self._is_in_doubt = True
            raise StorageError(
                f"{str(self.path / MARK)!r}: which generation is in force is unknown "
                f"({cause}; putting {old} back: {exc}); close and open it again",
                path=self.path / MARK,
            ) from cause

    def _recovered(self) -> int:
        if MARK not in names_in(self.path):
            self._write_mark(0)
            return 0
        generation = self._read_mark()
        # A killed process may have renamed it in, and not synced its entry.
        sync_directory(self.path, self._fs)
        path = self._path_of(generation)
        if generation and not path.exists():
            raise CorruptionError(
                f"{str(path)!r} is missing, which {MARK} says is in force; nothing was changed",
                path=path,
                offset=0,
            )
        return generation

    def _remove_others(self) -> None:
        with storage_errors(self.path, "remove old data", "what is in force is untouched"):
            for name in names_in(self.path):
                if name.startswith(GENERATION) and self.path / name != self.current:
                    _remove(self.path / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
