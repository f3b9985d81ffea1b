"""The `file` machine after power loss at every step: what was flushed is there (CRASH-6)."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import attrs
import pytest

from dengine_sm.backends.file_store import FileStore
from dengine_sm.files import OsFileSystem
from dengine_sm.kv import Delete, KeyValueStateMachine, Put, encode_command
from dengine_sm.model import Entry

State = tuple[tuple[bytes, bytes], ...]


class PowerLossError(BaseException):
    """Power fails; a BaseException so that no error handling of ours runs on."""


@attrs.define(eq=False)
class File:
    synced: bytes = b""


@attrs.define(eq=False)
class Directory:
    synced: dict[str, File | Directory] = attrs.field(factory=dict)


class ForgetfulFileSystem(OsFileSystem):
    """Works on a real directory, which plays the page cache, and knows what is durable.

    What removes files past it (`shutil.rmtree`) is seen when a directory is synced, and
    until then undone by the power loss, as on a real disk.
    """

    def __init__(self, root: Path, failing: int | None = None) -> None:
        self.root = root
        self.failing = failing
        self.steps = 0
        self._is_down = False
        self._nodes: dict[Path, File | Directory] = {root: Directory()}
        self._open_files: dict[int, File] = {}
        self._turn = threading.RLock()

    def _step(self) -> None:
        with self._turn:
            if self._is_down or self.steps == self.failing:
                self._is_down = True
                raise PowerLossError
            self.steps += 1

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        is_new = not path.exists()
        if flags & os.O_CREAT:
            self._step()
        fd = super().open(path, flags, mode)
        if is_new:
            self._nodes[path] = File()
        node = self._nodes[path]
        assert isinstance(node, File)
        self._open_files[fd] = node
        return fd

    def write(self, fd: int, data) -> int:
        self._step()
        return super().write(fd, data)

    def pwrite(self, fd: int, data, offset: int) -> int:
        self._step()
        return super().pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._step()
        super().truncate(fd, size)

    def fsync(self, fd: int) -> None:
        self._step()
        self._open_files[fd].synced = Path(f"/proc/self/fd/{fd}").read_bytes()

    fdatasync = fsync

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)
        self._nodes[target] = self._nodes.pop(source)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        del self._nodes[path]

    def mkdir(self, path: Path) -> None:
        self._step()
        super().mkdir(path)
        self._nodes[path] = Directory()

    def sync_directory(self, path: Path) -> None:
        self._step()
        node = self._nodes[path]
        assert isinstance(node, Directory)
        node.synced = self._present(path)

    def _present(self, path: Path) -> dict[str, File | Directory]:
        # The lock file is not known here; nobody needs it after a restart.
        names = os.listdir(path) if path.exists() else []
        return {name: self._nodes[path / name] for name in names if path / name in self._nodes}

    def after_power_loss(self, target: Path, choices: random.Random | None = None) -> Path:
        """Lay out what is left; `choices` lets some of what was not synced survive."""
        live = {node: path for path, node in self._nodes.items() if path.exists()}
        self._lay_out(self._nodes[self.root], target, live, choices)
        return target

    def _lay_out(
        self,
        node: File | Directory,
        target: Path,
        live: dict[File | Directory, Path],
        choices: random.Random | None,
    ) -> None:
        survives = choices is not None and node in live and choices.random() < 0.5
        if isinstance(node, File):
            content = live[node].read_bytes() if survives else node.synced
            if survives and choices is not None and content.startswith(node.synced):
                # Of what was appended, any part.
                content = content[: choices.randint(len(node.synced), len(content))]
            target.write_bytes(content)
            return
        target.mkdir()
        for name, child in (self._present(live[node]) if survives else node.synced).items():
            self._lay_out(child, target / name, live, choices)


@attrs.define
class Scenario:
    """A machine at work, and what must be found after a power loss at any instant."""

    machine: KeyValueStateMachine
    aside: Path
    states: dict[int, State] = attrs.field(factory=lambda: {0: ()})
    flushed: int = 0

    async def apply(self, number: int) -> None:
        first = self.machine.last_applied().index + 1
        commands = [Put(b"key %d" % (number % 7), b"value %d" % number * 9), Delete(b"key 3")]
        chunk = [
            Entry(first + at, 1 + number // 4, number, encode_command(command))
            for at, command in enumerate(commands[: 1 + number % 2])
        ]
        # Known before the call: a chunk that was cut short may be there or not.
        entries = dict(self.states[first - 1])
        for entry, command in zip(chunk, commands, strict=False):
            match command:
                case Put(key, value):
                    entries[key] = value
                case Delete(key):
                    entries.pop(key, None)
            last = entry.index
        self.states[last] = tuple(sorted(entries.items()))
        await self.machine.apply_chunk(chunk)
        self.wait_for_checkpoint()

    def wait_for_checkpoint(self) -> None:
        """One thread at a time, so that step N is the same step in every run."""
        for thread in threading.enumerate():
            if thread.name == "dengine-sm-checkpoint":
                thread.join()

    def flush(self) -> None:
        self.machine.flush()
        self.flushed = self.machine.last_applied().index

    async def install(self) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)
        await self.machine.generate_snapshot_data(self.aside, self.machine.last_applied())
        metadata = self.machine.snapshot_metadata()
        assert metadata is not None
        await self.machine.apply_snapshot_from_file(metadata, self.aside)
        self.flushed = self.machine.last_applied().index

    async def work(self) -> None:
        self.machine.start()
        for number in range(24):
            await self.apply(number)
            if number % 3 == 1:
                self.flush()
            if number in (5, 14):
                await self.install()
        self.machine.stop()
        self.flushed = self.machine_index()
        self.machine.start()
        await self.apply(24)
        self.flush()
        self.machine.stop()

    def machine_index(self) -> int:
        return max(self.states)


def machine_on(directory: Path, fs: OsFileSystem | None = None) -> KeyValueStateMachine:
    return KeyValueStateMachine(
        FileStore(directory, segment_bytes=500, checkpoint_bytes=700, fs=fs)
    )


def interrupted(root: Path, failing: int | None) -> tuple[ForgetfulFileSystem, Scenario]:
    (root / "disk").mkdir(parents=True)
    fs = ForgetfulFileSystem(root / "disk", failing)
    # Two levels that the machine makes itself.
    scenario = Scenario(machine_on(root / "disk" / "data" / "machine", fs), root / "snapshot")
    with suppress(PowerLossError):
        asyncio.run(scenario.work())
    scenario.wait_for_checkpoint()
    with suppress(PowerLossError):
        scenario.machine.stop()
    return fs, scenario


@pytest.fixture(autouse=True)
def _power_fails_in_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not PowerLossError:
            earlier(args)

    monkeypatch.setattr(threading, "excepthook", hook)


def check(disk: Path, scenario: Scenario, where: str) -> None:
    machine = machine_on(disk / "data" / "machine")
    machine.start()
    last = machine.last_applied().index
    assert last >= scenario.flushed, f"{scenario.flushed} was flushed, {last} is there: {where}"
    assert last in scenario.states, f"{last} is no chunk boundary: {where}"
    assert scenario.states[last] == machine.scan_prefix(b"").entries, where
    machine.stop()


@pytest.mark.parametrize("survivors", [None, 1, 2])
def test_power_loss_at_every_step_loses_nothing_flushed(
    tmp_path: Path, survivors: int | None
) -> None:
    fs, scenario = interrupted(tmp_path / "whole", None)
    steps = fs.steps
    assert steps > 200
    [newest] = (tmp_path / "whole").rglob("checkpoint-*")
    assert int(newest.name.removeprefix("checkpoint-")) > 4, "two are of installs, more by size"

    for step in range(steps):
        root = tmp_path / str(step)
        fs, scenario = interrupted(root, step)
        choices = None if survivors is None else random.Random(f"{survivors}/{step}")
        left = fs.after_power_loss(root / "left", choices)
        check(left, scenario, f"step {step}, survivors {survivors}")
        shutil.rmtree(root)
