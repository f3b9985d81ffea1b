"""A directory tree as a disk has it: what programs see, and what a power loss would leave."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import attrs

from dengine_sm.conformance.images import Image

_CLEAN, _DIRTY, _LOST = 0, 1, 2
_LOSE = bytes.maketrans(bytes([_DIRTY]), bytes([_LOST]))


@attrs.define(eq=False)
class File:
    """A file: what programs see of it, and what is on the disk."""

    live: bytearray = attrs.field(factory=bytearray)
    synced: bytes = b""
    _fates: bytearray = attrs.field(factory=bytearray)
    """Of every byte of `live`: clean, dirty, or lost in a sync that failed."""

    @classmethod
    def durable(cls, content: bytes) -> File:
        """Return a file whose content is on the disk."""
        return cls(bytearray(content), content, bytearray(len(content)))

    def write(self, offset: int, data: bytes) -> None:
        """Write, not durably."""
        self.truncate(max(len(self.live), offset))
        self.live[offset : offset + len(data)] = data
        self._fates[offset : offset + len(data)] = bytes([_DIRTY]) * len(data)

    def write_through(self, offset: int, data: bytes) -> None:
        """Write durably, as to a file opened with O_DSYNC; what else is dirty stays so."""
        self.write(offset, data)
        end = offset + len(data)
        self._fates[offset:end] = bytes([_CLEAN]) * len(data)
        self.synced = self.synced[:offset].ljust(offset, b"\0") + data + self.synced[end:]

    def truncate(self, size: int) -> None:
        """Cut or extend, not durably."""
        more = size - len(self.live)
        del self.live[size:], self._fates[size:]
        self.live += bytes(max(0, more))
        self._fates += bytes([_DIRTY]) * max(0, more)

    def sync(self) -> None:
        """Make durable what no failed sync has lost."""
        content = bytearray(self.live)
        if _LOST in self._fates:
            for at, fate in enumerate(self._fates):
                if fate == _LOST:
                    content[at] = self.synced[at] if at < len(self.synced) else 0
        self._fates = self._fates.replace(bytes([_DIRTY]), bytes([_CLEAN]))
        self.synced = bytes(content)

    def fail_sync(self) -> None:
        """Do as Linux does: what was dirty counts as written from here on, and is not."""
        self._fates = self._fates.translate(_LOSE)


@attrs.define(eq=False)
class Directory:
    """A directory: its entries as programs see them, and those on the disk."""

    live: dict[str, Node] = attrs.field(factory=dict)
    synced: dict[str, Node] = attrs.field(factory=dict)

    @classmethod
    def durable(cls, entries: dict[str, Node]) -> Directory:
        """Return a directory whose entries are on the disk."""
        return cls(dict(entries), entries)


Node: TypeAlias = File | Directory


@attrs.frozen
class Operation:
    """One step: a method of `Disk` with its arguments."""

    name: str
    path: str
    """What it changes, relative to the root."""
    args: tuple[int | str | bytes, ...] = ()

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')} {self.path or '.'!r}"


class Disk:
    """A directory tree at any step of a record: replays forward, lays out what is left.

    Args:
        start: the tree in the beginning; it is copied.
        numbers: numbers of its files, by path.
        operations: what happened then.
    """

    def __init__(
        self, start: Directory, numbers: Mapping[str, int], operations: Sequence[Operation]
    ) -> None:
        self._root = copy.deepcopy(start)
        self._files = {
            numbers[path]: node for path, node in walk(self._root) if isinstance(node, File)
        }
        self._operations = operations
        self.steps = 0
        """How many operations have happened."""

    @property
    def end(self) -> int:
        """Number of all operations."""
        return len(self._operations)

    def advance(self, steps: int) -> None:
        """Let the operations up to the `steps`-th happen; there is no way back."""
        for operation in self._operations[self.steps : steps]:
            getattr(self, f"_{operation.name}")(operation.path, *operation.args)
        self.steps = max(self.steps, steps)

    def tree(self) -> Directory:
        """Return a copy of the present tree."""
        return copy.deepcopy(self._root)

    def _directory(self, path: str) -> Directory:
        node: Node | None = self._root
        for name in filter(None, path.split("/")):
            node = node.live.get(name) if isinstance(node, Directory) else None
        assert isinstance(node, Directory), f"{path!r} is no directory"
        return node

    def _slot(self, path: str) -> tuple[Directory, str]:
        directory, _, name = path.rpartition("/")
        return self._directory(directory), name

    def _create(self, path: str, number: int) -> None:
        directory, name = self._slot(path)
        directory.live[name] = self._files[number] = File()

    def _write(self, _path: str, number: int, offset: int, data: bytes) -> None:
        self._files[number].write(offset, data)

    def _write_through(self, _path: str, number: int, offset: int, data: bytes) -> None:
        self._files[number].write_through(offset, data)

    def _truncate(self, _path: str, number: int, size: int) -> None:
        self._files[number].truncate(size)

    def _sync(self, _path: str, number: int) -> None:
        self._files[number].sync()

    def _fail_sync(self, _path: str, number: int) -> None:
        self._files[number].fail_sync()

    def _rename(self, path: str, target: str) -> None:
        directory, name = self._slot(path)
        goal, new_name = self._slot(target)
        goal.live[new_name] = directory.live.pop(name)

    def _link(self, path: str, target: str) -> None:
        directory, name = self._slot(path)
        goal, new_name = self._slot(target)
        goal.live[new_name] = directory.live[name]

    def _remove(self, path: str) -> None:
        directory, name = self._slot(path)
        del directory.live[name]

    def _make_directory(self, path: str) -> None:
        directory, name = self._slot(path)
        directory.live[name] = Directory()

    def _sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        directory.synced = dict(directory.live)

    def left_by_power_loss(self, choices: random.Random | None = None) -> Image:
        """Return what is left when the power fails now.

        Args:
            choices: lets some of what was not synced survive, of every file and directory
                all or nothing, and of what was appended to a file any part.
        """
        return _image(dict(_left(self._root, "", choices)))

    def left_by_kill(self) -> Image:
        """Return what is left when only the process dies: everything, synced or not."""
        return _image(
            {
                path: bytes(node.live) if isinstance(node, File) else None
                for path, node in walk(self._root)
            }
        )


@attrs.frozen
class Recording:
    """What happened to a directory tree, from which a disk is replayed."""

    start: Directory
    """The tree in the beginning."""
    numbers: Mapping[str, int]
    """Numbers of its files, by path."""
    operations: Sequence[Operation]
    """What happened then."""

    @property
    def steps(self) -> int:
        """Number of operations."""
        return len(self.operations)

    def disk(self) -> Disk:
        """Return the disk as it was in the beginning, with all that has happened since."""
        return Disk(self.start, self.numbers, self.operations)


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield relative path and node of all that programs see, from the top."""
    yield path, node
    if isinstance(node, Directory):
        for name, child in node.live.items():
            yield from walk(child, f"{path}/{name}" if path else name)


def _left(
    node: Node, path: str, choices: random.Random | None
) -> Iterator[tuple[str, bytes | None]]:
    """Yield paths with the contents of files, and None for directories."""
    survives = choices is not None and choices.random() < 0.5
    if isinstance(node, File):
        content = bytes(node.live) if survives else node.synced
        if survives and choices is not None and content.startswith(node.synced):
            content = content[: choices.randint(len(node.synced), len(content))]
        yield path, content
        return
    yield path, None
    for name, child in (node.live if survives else node.synced).items():
        yield from _left(child, f"{path}/{name}" if path else name, choices)


def _image(contents: dict[str, bytes | None]) -> Image:
    files = {path: content for path, content in contents.items() if content is not None}
    return Image(files, frozenset(contents.keys() - files.keys() - {""}))


def read_tree(path: Path) -> Directory:
    """Return what is below a path, all of it durable."""
    entries: dict[str, Node] = {}
    for child in sorted(path.iterdir()):
        entries[child.name] = (
            read_tree(child) if child.is_dir() else File.durable(child.read_bytes())
        )
    return Directory.durable(entries)
