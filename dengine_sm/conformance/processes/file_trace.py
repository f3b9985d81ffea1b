"""What strace saw of a process's files, as operations that a `Disk` can replay.

So a power loss can be laid out for an engine that writes its files itself. Memory that is
mapped from a file is not seen: such a file must be scratch, which the engine never syncs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

from dengine_sm.conformance.disk import Directory, Operation, Recording, walk

_CALL = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<thread>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)$")
_UNFINISHED = " <unfinished ...>"
_RETURNED = re.compile(r"\)\s+= (?P<value>-?\d+|0x[0-9a-f]+)(?P<more>.*)$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"^(?P<fd>\d+)<")
_DIRECTORY = re.compile(r"^(?:AT_FDCWD|\d+)<(?P<path>(?:\\x[0-9a-f]{2})*)>")

WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
NAMES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat")
UNREADABLE = ("copy_file_range", "sendfile", "splice", "symlink", "symlinkat")
"""Calls that change files in a way that is not followed."""
TRACED = (
    *WRITES,
    *NAMES,
    *UNREADABLE,
    *("open", "openat", "creat", "close", "dup", "dup2", "dup3", "fcntl", "lseek", "mmap"),
    *("ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "link", "linkat"),
)
WORD = "sendto"
"""How a process tells the kit that a call has ended."""


@attrs.define
class _Open:
    """An open file or directory."""

    path: str
    number: int
    """Of the file; 0 for a directory."""
    position: int = 0
    appends: bool = False
    writes_through: bool = False
    """What is written is durable at once: opened with O_DSYNC or O_SYNC."""


class FileTrace:
    """Follows a log of strace, with `-f -y -xx`.

    Args:
        root: the directory to follow, as the process names it.
        start: what is in it when the log begins, and what of that is durable.
        cwd: the process's working directory; this process's unless given.
    """

    def __init__(self, root: Path, start: Directory, cwd: Path | None = None) -> None:
        self._root = os.path.realpath(root)
        self._cwd = os.path.realpath(cwd or Path.cwd())
        self._start = start
        self._known: dict[str, int] = {}
        """Every path below the root; a number of its own for every file there ever was."""
        self._sizes: dict[int, int] = {}
        self._numbered = 0
        for path, node in walk(start):
            number = self._get_to_know(path)
            self._sizes[number] = -1 if isinstance(node, Directory) else len(node.live)
        self._start_numbers = dict(self._known)
        self._open: dict[int, _Open] = {}
        self._unfinished: dict[str, str] = {}
        self._channel = ""
        self._mapped: dict[int, str] = {}
        self.operations: list[Operation] = []
        self.ends: list[int] = []
        """Number of operations when the process told of the end of each of its calls."""
        self.unseen: list[str] = []
        """What was done in a way that cannot be followed."""

    def recording(self) -> Recording:
        """Return what has happened so far."""
        return Recording(self._start, self._start_numbers, tuple(self.operations))

    @property
    def mapped(self) -> frozenset[str]:
        """Files that were mapped for writing, as memory: they hold no data that lasts."""
        return frozenset(self._mapped.values())

    def follow(self, lines: Iterable[str]) -> FileTrace:
        """Take in lines of the log, in their order."""
        for line in lines:
            self._take(line.rstrip("\n"))
        return self

    def _take(self, line: str) -> None:
        resumed = _RESUMED.match(line)
        if resumed is not None:
            begun = self._unfinished.pop(resumed["thread"], "")
            if begun:
                self._take(begun + resumed["rest"])
            return
        found = _CALL.match(line)
        if found is None:
            return
        if found["name"] == WORD:
            self._take_word(found["rest"])
        elif line.endswith(_UNFINISHED):
            self._unfinished[found["thread"]] = line.removesuffix(_UNFINISHED)
        else:
            self._take_call(found["name"], found["rest"])

    def _take_word(self, rest: str) -> None:
        """Note a word when it is begun: nothing that follows was done before it."""
        socket = rest.partition(",")[0]
        self._channel = self._channel or socket
        if socket == self._channel:
            self.ends.append(len(self.operations))

    def _take_call(self, name: str, rest: str) -> None:
        returned = _RETURNED.search(rest)
        if returned is None:
            return
        value, arguments = int(returned["value"], 0), rest[: returned.start()]
        if value < 0:
            if name in ("fsync", "fdatasync"):
                self._sync(arguments, "fail_sync")
            return
        if name in WRITES:
            self._write(name, arguments, value)
        elif name in UNREADABLE:
            if self._touches_root(arguments):
                self.unseen.append(name)
        else:
            handler: Callable[[str, int], None] = getattr(self, f"_on_{name}")
            handler(arguments, value)

    # Names

    def _get_to_know(self, path: str) -> int:
        self._numbered += 1
        self._known[path] = self._numbered
        return self._numbered

    def _inside(self, full: str) -> str | None:
        full = os.path.normpath(full)
        if full == self._root:
            return ""
        below = full.removeprefix(f"{self._root}/")
        return None if below == full else below

    def _paths(self, arguments: str) -> list[str | None]:
        """Return the paths that are named, relative to the root; None for one elsewhere."""
        found: list[str | None] = []
        base = self._cwd
        for argument in arguments.split(", "):
            directory, quoted = _DIRECTORY.match(argument), _STRING.match(argument)
            if directory is not None:
                base = _text(directory["path"])
            elif quoted is not None:
                path = Path(base, _text(quoted[1]))
                found.append(self._inside(f"{os.path.realpath(path.parent)}/{path.name}"))
        return found

    def _touches_root(self, arguments: str) -> bool:
        fds = (int(fd) for fd in re.findall(r"\b(\d+)<", arguments))
        paths = self._paths(arguments)
        return any(fd in self._open for fd in fds) or any(path is not None for path in paths)

    def _note(self, name: str, path: str, *args: int | str | bytes) -> None:
        self.operations.append(Operation(name, path, args))

    def _on_open(self, arguments: str, fd: int) -> None:
        path = self._paths(arguments)[0]
        self._open.pop(fd, None)
        if path is None:
            return
        flags = set(arguments.partition('", ')[2].partition(", ")[0].split("|"))
        if path not in self._known:
            if "O_CREAT" not in flags:
                self.unseen.append(f"open of {path!r}, which nobody was seen to make")
                return
            number = self._get_to_know(path)
            self._sizes[number] = 0
            self._note("create", path, number)
        number = self._known[path]
        is_directory = self._sizes[number] < 0
        self._open[fd] = _Open(
            path,
            0 if is_directory else number,
            appends="O_APPEND" in flags,
            writes_through=not flags.isdisjoint({"O_DSYNC", "O_SYNC"}),
        )
        if "O_TRUNC" in flags and self._sizes[number] > 0:
            self._set_size(path, number, 0)

    _on_openat = _on_open

    def _on_creat(self, arguments: str, fd: int) -> None:
        self._on_open(f"{arguments.rpartition(', ')[0]}, O_CREAT|O_TRUNC", fd)

    def _on_rename(self, arguments: str, _value: int) -> None:
        old, new = self._paths(arguments)[:2]
        if old is None and new is not None:
            self.unseen.append(f"rename of a file from elsewhere to {new!r}")
        if old is None:
            return
        if new is None:
            self._forget(old)
            self._note("remove", old)
            return
        self._forget(new)
        self._note("rename", old, new)
        for path in [path for path in self._known if f"{path}/".startswith(f"{old}/")]:
            self._known[new + path[len(old) :]] = self._known.pop(path)
        for opened in self._open.values():
            if f"{opened.path}/".startswith(f"{old}/"):
                opened.path = new + opened.path[len(old) :]

    _on_renameat = _on_renameat2 = _on_rename

    def _forget(self, path: str) -> None:
        for known in [known for known in self._known if f"{known}/".startswith(f"{path}/")]:
            del self._known[known]

    def _on_unlink(self, arguments: str, _value: int) -> None:
        path = self._paths(arguments)[0]
        if path is not None:
            self._forget(path)
            self._note("remove", path)

    _on_unlinkat = _on_rmdir = _on_unlink

    def _on_mkdir(self, arguments: str, _value: int) -> None:
        path = self._paths(arguments)[0]
        if path is not None:
            self._sizes[self._get_to_know(path)] = -1
            self._note("make_directory", path)

    _on_mkdirat = _on_mkdir

    def _on_link(self, arguments: str, _value: int) -> None:
        old, new = self._paths(arguments)[:2]
        if new is None:
            return
        if old is None:
            self.unseen.append(f"link from elsewhere to {new!r}")
            return
        self._known[new] = self._known[old]
        self._note("link", old, new)

    _on_linkat = _on_link

    # Contents

    def _opened(self, arguments: str) -> _Open | None:
        descriptor = _DESCRIPTOR.match(arguments)
        return self._open.get(int(descriptor["fd"])) if descriptor else None

    def _write(self, name: str, arguments: str, taken: int) -> None:
        opened = self._opened(arguments)
        if opened is None:
            return
        strings = _STRING.findall(arguments)
        data = b"".join(map(_bytes, strings))[:taken]
        if len(data) < taken:
            self.unseen.append(f"a {name} of which strace shows a part")
            return
        tail = arguments[arguments.rfind('"') + 1 :]
        numbers = [int(number) for number in re.findall(r"(?:^|, )(\d+)", tail.rpartition("]")[2])]
        if name.startswith("pwrite"):
            offset = numbers[1]
        elif opened.appends:
            offset = self._sizes[opened.number]
            opened.position = offset + taken
        else:
            offset = opened.position
            opened.position += taken
        write = "write_through" if opened.writes_through else "write"
        self._note(write, opened.path, opened.number, offset, data)
        self._sizes[opened.number] = max(self._sizes[opened.number], offset + taken)

    def _set_size(self, path: str, number: int, size: int) -> None:
        self._sizes[number] = size
        self._note("truncate", path, number, size)

    def _on_ftruncate(self, arguments: str, _value: int) -> None:
        opened = self._opened(arguments)
        if opened is not None:
            self._set_size(opened.path, opened.number, int(arguments.rpartition(", ")[2]))

    def _on_truncate(self, arguments: str, _value: int) -> None:
        path = self._paths(arguments)[0]
        if path is not None:
            size = int(arguments.rpartition(", ")[2])
            self._set_size(path, self._known[path], size)

    def _on_fallocate(self, arguments: str, _value: int) -> None:
        opened = self._opened(arguments)
        if opened is None:
            return
        _, mode, offset, length = arguments.rsplit(", ", 3)
        end, size = int(offset) + int(length), self._sizes[opened.number]
        if mode == "0":
            if end > size:
                self._set_size(opened.path, opened.number, end)
        elif "PUNCH_HOLE" in mode or "ZERO_RANGE" in mode:
            zeros = bytes(max(0, min(end, size) - int(offset)))
            self._note("write", opened.path, opened.number, int(offset), zeros)
        elif mode != "FALLOC_FL_KEEP_SIZE":
            self.unseen.append(f"fallocate with {mode}")

    def _sync(self, arguments: str, name: str) -> None:
        opened = self._opened(arguments)
        if opened is None:
            return
        if opened.number in self._mapped:
            self.unseen.append(f"writes to {opened.path!r} through mapped memory")
        elif opened.number:
            self._note(name, opened.path, opened.number)
        elif name == "sync":
            self._note("sync_directory", opened.path)

    def _on_fsync(self, arguments: str, _value: int) -> None:
        self._sync(arguments, "sync")

    _on_fdatasync = _on_fsync

    # Descriptors

    def _on_close(self, arguments: str, _value: int) -> None:
        descriptor = _DESCRIPTOR.match(arguments)
        if descriptor is not None:
            self._open.pop(int(descriptor["fd"]), None)

    def _on_dup(self, arguments: str, fd: int) -> None:
        opened = self._opened(arguments)
        self._open.pop(fd, None)
        if opened is not None:
            self._open[fd] = opened  # they share their position

    _on_dup2 = _on_dup3 = _on_dup

    def _on_fcntl(self, arguments: str, value: int) -> None:
        if ", F_DUPFD" in arguments:
            self._on_dup(arguments, value)

    def _on_lseek(self, arguments: str, position: int) -> None:
        opened = self._opened(arguments)
        if opened is not None:
            opened.position = position

    def _on_mmap(self, arguments: str, _value: int) -> None:
        parts = arguments.split(", ")
        opened = self._opened(parts[4]) if len(parts) > 4 else None
        if opened is not None and "PROT_WRITE" in parts[2] and "MAP_SHARED" in parts[3]:
            self._mapped[opened.number] = opened.path


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped))
