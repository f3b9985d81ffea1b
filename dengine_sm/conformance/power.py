"""A file system that forgets what was not synced, for whoever writes through `dengine_sm.files`.

`ForgetfulFileSystem` lets everything happen for real and records it, step by step; a
`Disk` replays the record up to any step, and lays out what a power loss at that instant
leaves behind. So one run of a machine gives every power loss that could cut it short.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from dengine_sm.conformance.disk import Directory, Disk, Operation, Recording, read_tree, walk
from dengine_sm.conformance.images import Image
from dengine_sm.files.filesystem import Buffer, OsFileSystem, replaced_file_system

_LOCK_FILE_BYTES = 64
_FOR_GOOD = ExitStack()


class UnsyncedFileSystem(OsFileSystem):
    """Does not sync: for machines that nothing happens to, because it saves time."""

    def fsync(self, fd: int) -> None:
        """Do nothing."""

    def fdatasync(self, fd: int) -> None:
        """Do nothing."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


def skip_syncs() -> None:
    """Do without syncs in this process, for whoever writes through `dengine_sm.files`."""
    _FOR_GOOD.enter_context(replaced_file_system(UnsyncedFileSystem()))


class ForgetfulFileSystem(UnsyncedFileSystem):
    """Passes everything on, and records what happens below a directory.

    What removes files past it (`shutil.rmtree`)
    is noticed at the next step. Whatever lies elsewhere is passed on and forgotten. Nothing
    is really synced.

    Args:
        root: an existing directory.
        start: what is in it, and what of that is durable; None for all.
    """

    def __init__(self, root: Path, start: Directory | None = None) -> None:
        self.root = Path(os.path.realpath(root))
        self.operations: list[Operation] = []
        self._turn = threading.RLock()
        self._start = read_tree(self.root) if start is None else start
        self._known: dict[str, int] = {}
        """Every path below the root; a number of its own for every file there ever was."""
        self._numbered = 0
        for path, _ in walk(self._start):
            self._get_to_know(path)
        self._start_numbers = dict(self._known)
        self._open_files: dict[int, tuple[int, str]] = {}

    @property
    def steps(self) -> int:
        """Number of operations so far."""
        return len(self.operations)

    def recording(self) -> Recording:
        """Return what has happened so far."""
        return Recording(self._start, self._start_numbers, tuple(self.operations))

    def disk(self) -> Disk:
        """Return the disk as it was in the beginning, with all that has happened since."""
        return self.recording().disk()

    @property
    def is_used(self) -> bool:
        """Whether anything but lock files was written through it."""
        return any(
            operation.name == "write" and not _is_lock(operation.path, b"")
            for operation in self.operations
        )

    def past(self) -> list[str]:
        """Return the files that were written past this file system, sorted.

        Lock files are not among them: they hold nothing that a restart needs.
        """
        return written_past(self.recording(), self.root)

    def _before(self, _call: str, _path: str, size: int = 0) -> int:
        """Return how many bytes of a write may be taken; raise OSError to let a call fail.

        Called: before every call that is to change something below the root.
        """
        return size

    def _inside(self, path: Path) -> str | None:
        """Return a path relative to the root, which is empty; None if it lies elsewhere."""
        full = f"{os.path.realpath(path.parent)}/{path.name}"
        if full == str(self.root):
            return ""
        below = full.removeprefix(f"{self.root}/")
        return None if below == full else below

    def _get_to_know(self, path: str) -> int:
        self._numbered += 1
        self._known[path] = self._numbered
        return self._numbered

    def _note(self, name: str, path: str, *args: int | str | bytes) -> None:
        self.operations.append(Operation(name, path, args))

    def _notice_removals(self) -> None:
        gone = [path for path in self._known if not os.path.lexists(f"{self.root}/{path}")]
        # Deepest first: a directory goes after what was in it.
        for path in sorted(gone, key=lambda path: -path.count("/")):
            del self._known[path]
            self._note("remove", path)

    def _enter(self, call: str, path: Path) -> str | None:
        inside = self._inside(path)
        if inside is not None:
            self._notice_removals()
            self._before(call, inside)
        return inside

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open a file and return its descriptor."""
        with self._turn:
            is_new = not os.path.lexists(path)
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            call = "create" if is_new else "open"
            inside = self._enter(call, path) if writes else self._inside(path)
            fd = super().open(path, flags, mode)
            if inside is not None:
                self._note_open(fd, inside, is_new=is_new, is_cut=bool(flags & os.O_TRUNC))
            return fd

    def _note_open(self, fd: int, inside: str, *, is_new: bool, is_cut: bool) -> None:
        if is_new:
            self._note("create", inside, self._get_to_know(inside))
        if inside in self._known:
            self._open_files[fd] = self._known[inside], inside
            if is_cut and not is_new:
                self._note_file("truncate", fd, 0)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        with self._turn:
            self._open_files.pop(fd, None)
            super().close(fd)

    def _enter_file(self, call: str, fd: int, size: int = 0) -> int:
        if fd not in self._open_files:
            return size
        self._notice_removals()
        return self._before(call, self._open_files[fd][1], size)

    def _note_file(self, name: str, fd: int, *args: int | bytes) -> None:
        if fd in self._open_files:
            number, path = self._open_files[fd]
            self._note(name, path, number, *args)

    def write(self, fd: int, data: Buffer) -> int:
        """Write at the file position, and note where that was."""
        with self._turn:
            size = self._enter_file("write", fd, len(data))
            written = super().write(fd, data[:size])
            if fd in self._open_files:
                end = os.lseek(fd, 0, os.SEEK_CUR)
                self._note_file("write", fd, end - written, bytes(data[:written]))
            return written

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at `offset`."""
        with self._turn:
            is_inside = offset + len(data) <= os.fstat(fd).st_size
            size = self._enter_file("overwrite" if is_inside else "pwrite", fd, len(data))
            written = super().pwrite(fd, data[:size], offset)
            self._note_file("write", fd, offset, bytes(data[:written]))
            return written

    def truncate(self, fd: int, size: int) -> None:
        """Set the size of a file."""
        with self._turn:
            self._enter_file("truncate", fd)
            super().truncate(fd, size)
            self._note_file("truncate", fd, size)

    def fsync(self, fd: int) -> None:
        """Note that a file is durable; that much is enough below the root."""
        if fd not in self._open_files:
            super().fsync(fd)
            return
        with self._turn:
            try:
                self._enter_file("fsync", fd)
            except OSError:
                self._note_file("fail_sync", fd)
                raise
            self._note_file("sync", fd)

    def fdatasync(self, fd: int) -> None:
        """Note that a file's data is durable."""
        self.fsync(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file or directory over another."""
        with self._turn:
            old, new = self._inside(source), self._enter("replace", target)
            super().replace(source, target)
            if old is None or old not in self._known:
                return
            if new is None:
                self._notice_removals()
                return
            self._note("rename", old, new)
            for path in [path for path in self._known if f"{path}/".startswith(f"{old}/")]:
                self._known[new + path[len(old) :]] = self._known.pop(path)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        with self._turn:
            self._enter("unlink", path)
            super().unlink(path)
            self._notice_removals()

    def mkdir(self, path: Path) -> None:
        """Create a directory."""
        with self._turn:
            inside = self._enter("mkdir", path)
            super().mkdir(path)
            if inside is not None:
                self._get_to_know(inside)
                self._note("make_directory", inside)

    def sync_directory(self, path: Path) -> None:
        """Note that the entries of a directory are durable."""
        with self._turn:
            inside = self._enter("sync_directory", path)
            if inside is None:
                super().sync_directory(path)
            elif inside in self._known:
                self._note("sync_directory", inside)


def written_past(recording: Recording, root: Path, but: Collection[str] = ()) -> list[str]:
    """Return the files of a directory that are not as a recording of it says, sorted.

    Lock files are not among them, they hold nothing that a restart needs, nor are those of
    `but`.
    """
    disk = recording.disk()
    disk.advance(recording.steps)
    known = disk.left_by_kill().files
    observed = Image.of(root).files
    return sorted(
        name
        for name, content in observed.items()
        if known.get(name) != content and not _is_lock(name, content) and name not in but
    )


def _is_lock(name: str, content: bytes) -> bool:
    return "lock" in Path(name).name.lower() and len(content) <= _LOCK_FILE_BYTES
