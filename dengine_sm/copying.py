"""Copies a state from one backend to another, through a snapshot, and verifies it.

The target is made in `TARGET.partial`, beside it, and is renamed into place when it has
been verified. Killed at any instant, this leaves no target or a whole one; what else is
left is in `TARGET.partial`, and the next copy to that target removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import attrs

from dengine_sm.contract import StateMachine
from dengine_sm.errors import (
    ConfigError,
    ContractViolationError,
    SnapshotCorruptionError,
    SnapshotFormatError,
    StorageError,
    StorageLockedError,
)
from dengine_sm.files import DirectoryLock, default_file_system, names_in, sync_directory
from dengine_sm.files.filesystem import storage_errors
from dengine_sm.loader import create_state_machine, find_backend, structure_options
from dengine_sm.model import Durability, LogId, SnapshotMetadata

WORK_SUFFIX = ".partial"
MARKER = "dengine-sm-copy.lock"
"""File that tells a work directory from one of somebody else; the lock of the copy."""

_POLL_S = 0.2

T = TypeVar("T")


class Stage(enum.StrEnum):
    """What a copy does, in this order."""

    WRITE = "write"
    """The source writes a snapshot."""
    INSTALL = "install"
    """The target installs it, and makes it durable."""
    VERIFY = "verify"
    """The target, opened again, writes a snapshot; it must be the same."""


@attrs.frozen
class BackendDirectory:
    """A backend by name, with the directory that holds or gets a machine of it."""

    backend: str
    directory: Path
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """As in `[state_machine.options]`."""

    def __str__(self) -> str:
        return f"{self.backend}:{self.directory}"


@attrs.frozen
class CopyProgress:
    """How far a copy is."""

    stage: Stage
    entries: int
    """Of the whole state."""
    written_bytes: int
    """Size on disk of what the stage writes, so far."""
    total_bytes: int | None
    """What `written_bytes` will be; None where nobody can know it."""
    time_s: float
    """Since the stage began."""
    is_done: bool
    """The stage has ended well."""


@attrs.frozen
class CopyReport:
    """What was copied."""

    source: BackendDirectory
    target: BackendDirectory
    last_applied: LogId
    """Of both machines."""
    entries: int
    checksum: bytes
    """Of the snapshots that both machines wrote, 32 bytes."""
    seconds: dict[Stage, float]
    """How long each stage took."""


async def copy_state(
    source: BackendDirectory,
    target: BackendDirectory,
    *,
    on_progress: Callable[[CopyProgress], None] | None = None,
) -> CopyReport:
    """Copy the state of one machine into a new machine of the same or another backend.

    The source is in use only while it writes the snapshot. The file system of the target
    needs room for the target and one snapshot.

    Args:
        source: a machine's directory that no node uses.
        target: absent or empty, in a directory that exists.
        on_progress: told at the beginning and end of each stage and now and then between,
            in the event loop.

    Raises:
        ConfigError: a backend is TRANSIENT, options are wrong, or one directory is or
            contains the other.
        PluginError: a backend is not found or breaks the contract.
        StorageLockedError: a node uses the source, or another copy the target.
        StorageError: the source holds no state, the target holds something, or the disk
            refused.
        SnapshotFormatError: the target cannot read the snapshots of the source.
        SnapshotCorruptionError: the target did not become what the source is.

    Whatever is raised, and when cancelled, the target is as it was. The source keeps its
    state; like after every snapshot, it may remember the one that was written as its newest.
    """
    source, target = _resolved(source), _resolved(target)
    _check_places(source, target)
    work = _WorkDirectory(target.directory)
    _refuse_target(target.directory, work)
    _refuse_source(source)
    origin = await _in_thread(
        lambda: create_state_machine(
            source.backend, source.directory, source.options, validate="structure"
        )
    )
    # It is to hold the data from now on: run before it is trusted with any.
    copy = await _in_thread(
        lambda: create_state_machine(target.backend, work.machine, target.options)
    )
    with work:
        progress = _Progress(on_progress)
        snapshot, entries = await _write(source, origin, work, progress)
        with _explained(source, target):
            await _install(copy, work, snapshot, progress)
        work.remove(work.snapshot)
        await _verify(target, copy, work, snapshot, progress)
        work.remove(work.check)
        _move_into_place(work.machine, target.directory)
    return CopyReport(
        source, target, snapshot.last_included, entries, snapshot.checksum, progress.seconds
    )


# Refusals


def _resolved(place: BackendDirectory) -> BackendDirectory:
    return attrs.evolve(place, directory=Path(os.path.realpath(place.directory)))


def _check_places(source: BackendDirectory, target: BackendDirectory) -> None:
    """Refuse what cannot be right, whatever is on disk; every problem at once."""
    problems = [
        *_backend_problems("source", source, "so there is nothing to copy"),
        *_backend_problems("target", target, "so the copy would be lost"),
    ]
    one, other = source.directory, target.directory
    if one == other:
        problems.append(f"source and target are one directory, '{one}'")
    elif other.is_relative_to(one) or one.is_relative_to(other):
        problems.append(f"one of '{one}' and '{other}' is inside of the other")
    elif one.is_relative_to(_work_path(other)):
        problems.append(f"source '{one}' is where the copy to '{other}' would work")
    if problems:
        count = "" if len(problems) == 1 else f"{len(problems)} problems:\n  - "
        message = f"cannot copy {source} to {target}: {count}" + "\n  - ".join(problems)
        raise ConfigError(message, problems=problems)


def _backend_problems(side: str, place: BackendDirectory, therefore: str) -> list[str]:
    backend = find_backend(place.backend)
    try:
        options = structure_options(backend, place.options)
    except ConfigError as exc:
        return [f"{side}: {problem}" for problem in exc.problems]
    if backend.durability_for(options) is Durability.TRANSIENT:
        return [
            f"{side}: backend {backend.name!r} is TRANSIENT: it keeps nothing in its directory, "
            f"{therefore}"
        ]
    return []


def _refuse_source(source: BackendDirectory) -> None:
    # A start would make a new, empty machine there.
    if not names_in(source.directory):
        raise StorageError(
            f"source '{source.directory}' is absent or empty: expected the directory of a state "
            "machine; nothing was changed",
            path=source.directory,
        )


def _refuse_target(directory: Path, work: _WorkDirectory) -> None:
    names = sorted(names_in(directory))
    if names:
        # A copy that was killed after its last step but one left its work directory.
        work.discard_leftover()
        some = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        raise StorageError(
            f"target '{directory}' is not empty, it holds {some}: expected an absent or empty "
            "directory; it was not changed",
            path=directory,
        )
    if os.path.ismount(directory):
        raise StorageError(
            f"target '{directory}' is a mount point, which nothing can be renamed to: expected "
            "a directory below it; nothing was changed",
            path=directory,
        )
    if not directory.parent.is_dir():
        raise StorageError(
            f"target '{directory}': expected its parent to be a directory that exists; "
            "nothing was changed",
            path=directory.parent,
        )


# Stages


async def _write(
    source: BackendDirectory, machine: StateMachine, work: _WorkDirectory, progress: _Progress
) -> tuple[SnapshotMetadata, int]:
    try:
        async with _running(machine):
            progress.entries = machine.len()
            before = machine.snapshot_metadata()
            async with progress.stage(Stage.WRITE, work.snapshot):
                written = await _write_snapshot(source.backend, machine, work.snapshot)
            if before is not None:
                machine.update_last_snapshot_metadata(before)
    except StorageLockedError as exc:
        raise StorageLockedError(
            f"source {source} is in use: {exc}. Stop the node that uses it, then copy again",
            path=source.directory,
        ) from exc
    progress.snapshot_bytes = _size_of(work.snapshot)
    return written, progress.entries


async def _install(
    machine: StateMachine, work: _WorkDirectory, snapshot: SnapshotMetadata, progress: _Progress
) -> None:
    async with progress.stage(Stage.INSTALL, work.machine), _running(machine):
        await machine.apply_snapshot_from_file(snapshot, work.snapshot)
        await _in_thread(machine.save_hard_state)
        await machine.flush_async()


async def _verify(
    target: BackendDirectory,
    machine: StateMachine,
    work: _WorkDirectory,
    expected: SnapshotMetadata,
    progress: _Progress,
) -> None:
    # Opened again: what is on disk is to be right, not what is in memory.
    async with progress.stage(Stage.VERIFY, work.check), _running(machine):
        entries = machine.len()
        observed = await _write_snapshot(target.backend, machine, work.check)
    if (observed, entries) != (expected, progress.entries):
        raise SnapshotCorruptionError(
            f"target {target} differs from the source after the install: it holds {entries} "
            f"entries at {observed.last_included} with snapshot checksum "
            f"{observed.checksum.hex()}, expected {progress.entries} at {expected.last_included} "
            f"with {expected.checksum.hex()}; nothing of it is left",
            path=target.directory,
            expected=expected,
            observed=observed,
        )


async def _write_snapshot(backend: str, machine: StateMachine, directory: Path) -> SnapshotMetadata:
    last_applied = machine.last_applied()
    checksum = await machine.generate_snapshot_data(directory, last_applied)
    written = machine.snapshot_metadata()
    if written is None or (written.checksum, written.last_included) != (checksum, last_applied):
        text = (
            f"SNAP-2: expected snapshot_metadata() with {checksum.hex()} at {last_applied}, "
            f"observed {written}"
        )
        raise ContractViolationError(
            f"backend {backend!r} breaks the contract while it writes a snapshot: {text}",
            name=backend,
            findings=[text],
        )
    return written


def _move_into_place(machine: Path, target: Path) -> None:
    with storage_errors(target, "move the finished copy there", "nothing of it is left"):
        default_file_system().replace(machine, target)
    sync_directory(target.parent)


@contextlib.contextmanager
def _explained(source: BackendDirectory, target: BackendDirectory) -> Iterator[None]:
    try:
        yield
    except SnapshotFormatError as exc:
        raise SnapshotFormatError(
            f"cannot copy {source} to {target}: the target does not read the snapshots of the "
            f"source: {exc}; nothing of the copy is left",
            path=target.directory,
            expected=exc.expected,
            observed=exc.observed,
        ) from exc


# Machines and threads


@contextlib.asynccontextmanager
async def _running(machine: StateMachine) -> AsyncIterator[None]:
    try:
        await _in_thread(machine.start)
        yield
    finally:
        await _in_thread(machine.stop)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run work in a thread; a cancelled caller waits for its end."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.exception()
        raise


class _Progress:
    """Tells how far the copy is, by what a stage has on disk: no machine is asked."""

    def __init__(self, told: Callable[[CopyProgress], None] | None) -> None:
        self._told = told
        self.entries = 0
        self.snapshot_bytes = 0
        self.seconds: dict[Stage, float] = {}

    @contextlib.asynccontextmanager
    async def stage(self, stage: Stage, directory: Path) -> AsyncIterator[None]:
        began_s = time.monotonic()
        self._tell(stage, directory, began_s)
        polling = asyncio.ensure_future(self._poll(stage, directory, began_s))
        try:
            yield
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
        self.seconds[stage] = time.monotonic() - began_s
        self._tell(stage, directory, began_s, is_done=True)

    async def _poll(self, stage: Stage, directory: Path, began_s: float) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            self._tell(stage, directory, began_s)

    def _tell(self, stage: Stage, directory: Path, began_s: float, is_done: bool = False) -> None:
        if self._told is None:
            return
        total = self.snapshot_bytes if stage is Stage.VERIFY else None
        size, time_s = _size_of(directory), time.monotonic() - began_s
        self._told(CopyProgress(stage, self.entries, size, total, time_s, is_done))


def _size_of(directory: Path) -> int:
    """Return the bytes in the files below a directory that others are writing to."""
    size = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += Path(parent, name).stat().st_size
    return size


# The work directory


def _work_path(target: Path) -> Path:
    return target.with_name(target.name + WORK_SUFFIX)


class _WorkDirectory:
    """`TARGET.partial`; a context manager that leaves nothing behind.

    On the file system of the target, so that a rename moves the copy into place.
    """

    def __init__(self, target: Path) -> None:
        self.path = _work_path(target)
        self.snapshot = self.path / "snapshot"
        self.machine = self.path / "machine"
        self.check = self.path / "check"
        self._target = target
        self._fs = default_file_system()
        self._lock = DirectoryLock(self.path, MARKER)

    def __enter__(self) -> _WorkDirectory:
        """Make or take over the directory, empty but for the marker.

        Raises:
            StorageLockedError: another copy works in it.
            StorageError: it is somebody else's, or the disk refused.
        """
        if not self._is_ours():
            raise StorageError(
                f"'{self.path}', where the copy to '{self._target}' would work, is not a "
                f"leftover of a copy ('{MARKER}' is missing): expected an absent directory; "
                "nothing was changed",
                path=self.path,
            )
        with (
            storage_errors(self.path, "make the directory", "nothing was copied"),
            contextlib.suppress(FileExistsError),
        ):
            self._fs.mkdir(self.path)
        try:
            self._lock.acquire()
        except StorageLockedError as exc:
            raise StorageLockedError(
                f"another copy to '{self._target}' is under way: {exc}", path=self._target
            ) from exc
        self._clear()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # A leftover is no failure: the next copy removes it.
        with contextlib.suppress(OSError, StorageError):
            self._clear()
            self._fs.unlink(self.path / MARKER)
            self.path.rmdir()
        # Last: whoever waits for the lock must not get that of a removed file.
        self._lock.release()

    def discard_leftover(self) -> None:
        """Remove what a killed copy left, if anything."""
        if self.path.is_dir() and self._is_ours():
            with contextlib.suppress(StorageLockedError), self:
                pass

    def _is_ours(self) -> bool:
        # Empty: killed before the marker was made, or after it was removed.
        names = names_in(self.path)
        return not self.path.is_symlink() and (not names or MARKER in names)

    def remove(self, path: Path) -> None:
        """Remove a directory in it."""
        with storage_errors(path, "remove the directory", "the copy was not finished"):
            shutil.rmtree(path)

    def _clear(self) -> None:
        # Marker last: without it the rest would be nobody's.
        for name in names_in(self.path) - {MARKER}:
            shutil.rmtree(self.path / name, ignore_errors=True)
