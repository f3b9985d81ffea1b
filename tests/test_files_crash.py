"""The framed log after kills, and after power loss or an error at every step."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dengine_sm.errors import StorageError
from dengine_sm.files import FramedLog, LogRecord, OsFileSystem

SEGMENT_BYTES = 1500


class PowerLossError(BaseException):
    """Power fails; a BaseException so that no error handling of ours runs on."""


class StepFileSystem(OsFileSystem):
    """Counts the calls that change something, and fails the one with a given number.

    It works on a real directory, which plays the page cache, and remembers beside it
    what is durable: per file its content when last synced, per directory the changes of
    entries not synced yet, in order.
    """

    def __init__(self, root: Path, failing: int | None = None) -> None:
        self.root = root
        self.failing = failing
        self.error: BaseException = PowerLossError()
        self.steps = 0
        self.names: list[str] = []
        self._is_down = False
        self._ids = itertools.count()
        self._files: dict[int, int] = {}
        self._live: dict[Path, int] = {}
        self._synced: dict[int, bytes] = {}
        self._entries: dict[Path, dict[str, int | None]] = {root: {}}
        self._pending: dict[Path, list[tuple[str, int | None]]] = {root: []}

    def _step(self, name: str) -> None:
        if self._is_down:
            raise PowerLossError
        if self.steps == self.failing:
            self._is_down = isinstance(self.error, PowerLossError)
            self.steps += 1
            raise self.error
        self.steps += 1
        self.names.append(name)

    def _enter(self, path: Path, identity: int | None) -> None:
        self._pending[path.parent].append((path.name, identity))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if flags & os.O_CREAT:
            self._step("create")
        fd = super().open(path, flags, mode)
        if path not in self._live:
            self._live[path] = next(self._ids)
            self._enter(path, self._live[path])
        self._files[fd] = self._live[path]
        return fd

    def write(self, fd: int, data) -> int:
        self._step("write")
        return super().write(fd, data)

    def pwrite(self, fd: int, data, offset: int) -> int:
        self._step("pwrite")
        return super().pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._step("truncate")
        super().truncate(fd, size)

    def fsync(self, fd: int) -> None:
        self._step("fsync")
        self._sync(fd)

    def fdatasync(self, fd: int) -> None:
        self._step("fdatasync")
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        identity = self._files[fd]
        for path, other in self._live.items():
            if other == identity:
                self._synced[identity] = path.read_bytes()

    def replace(self, source: Path, target: Path) -> None:
        self._step("replace")
        super().replace(source, target)
        self._live[target] = self._live.pop(source)
        # One step of the journal: a rename is never half done.
        self._pending[target.parent].append((f"{source.name}/{target.name}", self._live[target]))

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)
        del self._live[path]
        self._enter(path, None)

    def mkdir(self, path: Path) -> None:
        self._step("mkdir")
        super().mkdir(path)
        self._entries[path], self._pending[path] = {}, []
        self._pending[path.parent].append((path.name + "/", -1))

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory")
        self._settle(path, len(self._pending[path]))

    def _settle(self, directory: Path, count: int) -> None:
        entries = self._entries[directory]
        for name, identity in self._pending[directory][:count]:
            source, _, target = name.partition("/")
            if identity is None:
                entries.pop(source, None)
            elif target:
                entries.pop(source, None)
                entries[target] = identity
            else:
                entries[source] = identity
        del self._pending[directory][:count]

    def after_power_loss(self, target: Path, choices: random.Random | None) -> Path:
        """Lay out what is left; `choices` lets part of what was not synced survive."""
        live = {identity: path.read_bytes() for path, identity in self._live.items()}
        for directory, pending in self._pending.items():
            self._settle(directory, choices.randint(0, len(pending)) if choices else 0)
        target.mkdir()
        for directory, entries in self._entries.items():
            if directory == self.root or directory.name not in self._entries[self.root]:
                continue
            (target / directory.name).mkdir()
            for name, identity in entries.items():
                synced = self._synced.get(identity, b"")
                content = _mix(synced, live.get(identity, synced), choices) if choices else synced
                (target / directory.name / name).write_bytes(content)
        return target / "log"


def _mix(synced: bytes, live: bytes, choices: random.Random) -> bytes:
    """Return a file of which some sectors were written, and some not."""
    size = choices.choice(
        [len(synced), len(live), choices.randint(*sorted((len(synced), len(live))))]
    )
    mixed = bytearray(size)
    for at in range(0, size, 512):
        old, new = synced[at : at + 512], live[at : at + 512]
        sector = choices.choice([old, new])[: size - at]
        mixed[at : at + len(sector)] = sector
    return bytes(mixed)


class Scenario:
    """A log under work, and beside it what may be found after a crash at any instant.

    `floor` records must be there, `ceiling` records may; while `clear` is under way,
    the alternative is the empty log.
    """

    def __init__(self, fs: OsFileSystem, directory: Path) -> None:
        self.log = FramedLog(directory, segment_bytes=SEGMENT_BYTES, fs=fs)
        self.floor: list[LogRecord] = []
        self.ceiling: list[LogRecord] = []
        self.doubtful: list[LogRecord] = []
        self.purged = 0
        self.empty_next: int | None = None

    def append(self, size: int, count: int = 1) -> None:
        sequence = self.ceiling[-1].sequence + self.ceiling[-1].count if self.ceiling else 0
        sequence = sequence or (self.empty_next or 1)
        payload = bytes((sequence + at) % 251 for at in range(size))
        record = LogRecord(sequence, count, payload)
        self.doubtful = [record]
        assert sequence == self.log.append(payload, count)
        self.ceiling.append(record)
        self.doubtful = []

    def sync(self) -> None:
        self.log.sync()
        self.floor = list(self.ceiling)

    def undo(self) -> None:
        record = self.ceiling.pop()
        self.doubtful = [record]
        if self.floor and self.floor[-1] == record:
            self.floor.pop()
        self.log.undo_append(record.sequence)
        self.doubtful = []

    def purge(self, up_to: int) -> None:
        self.purged = up_to
        self.log.purge(up_to)

    def clear(self, next_sequence: int) -> None:
        before = self.floor, self.ceiling
        self.empty_next = next_sequence
        self.is_clearing = True
        self.log.clear(next_sequence)
        assert before == (self.floor, self.ceiling)
        self.floor, self.ceiling, self.purged = [], [], 0
        self.is_clearing = False

    is_clearing = False

    def work(self) -> None:
        """Do a little of everything."""
        self.log.open()
        for size, count in ((100, 1), (700, 4), (3, 1)):
            self.append(size, count)
        self.sync()
        self.append(600)
        self.append(900)
        self.undo()
        self.append(650)
        self.sync()
        self.undo()
        self.append(1200, 3)
        self.append(20)
        self.append(2000)
        self.append(5)
        self.purge(9)
        self.sync()
        self.log.close()
        self.log.open()
        self.append(1700)
        self.append(800)
        self.clear(4)
        self.append(90)
        self.sync()
        self.append(1600)
        self.append(10)
        self.clear(4000)
        self.append(40)
        self.append(41)
        self.sync()
        self.append(42)
        self.log.close()

    def check(self, directory: Path) -> None:
        """Open what is left of the log, and let it go on."""
        log = FramedLog(directory, segment_bytes=SEGMENT_BYTES)
        for _ in range(2):
            log.open()
            observed = list(log.read(log.first_sequence))
            sizes = sum(path.stat().st_size for path in directory.glob("*.seg"))
            assert sizes == log.size_bytes
            is_empty_one = not observed and log.next_sequence == self.empty_next
            if not (self.is_clearing and is_empty_one):
                self._check_records(log, observed)
            log.close()
        log.open()
        sequence = log.append(b"goes on")
        log.sync()
        log.close()
        assert sequence == log.open().last_sequence
        log.close()

    def _check_records(self, log: FramedLog, observed: list[LogRecord]) -> None:
        possible = self.ceiling + self.doubtful
        begins = [at for at, record in enumerate(possible) if record.sequence == log.first_sequence]
        if not observed and not self.floor:
            return
        assert begins
        assert log.first_sequence <= self.purged + 1 or begins == [0]
        assert observed == possible[begins[0] : begins[0] + len(observed)]
        assert begins[0] + len(observed) >= len(self.floor)


def steps_of_the_scenario(tmp_path: Path) -> int:
    (tmp_path / "dry").mkdir()
    fs = StepFileSystem(tmp_path / "dry")
    Scenario(fs, tmp_path / "dry" / "log").work()
    return fs.steps


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert before == set(os.listdir("/proc/self/fd"))


def interrupted(root: Path, failing: int, error: BaseException) -> tuple[StepFileSystem, Scenario]:
    root.mkdir()
    fs = StepFileSystem(root, failing)
    fs.error = error
    scenario = Scenario(fs, root / "log")
    with pytest.raises((PowerLossError, StorageError)):
        scenario.work()
    return fs, scenario


@pytest.mark.parametrize("survivors", ["none", 1, 2, 3, 4, 5])
def test_power_loss_at_every_step_loses_nothing_synced(tmp_path, survivors):
    for failing in range(steps_of_the_scenario(tmp_path)):
        fs, scenario = interrupted(tmp_path / f"{failing}", failing, PowerLossError())
        scenario.log.close()
        choices = None if survivors == "none" else random.Random(survivors * 1000 + failing)

        left = fs.after_power_loss(tmp_path / f"{failing}-left", choices)

        scenario.check(left)


def test_a_kill_at_every_step_then_power_loss_loses_nothing_synced_since(tmp_path):
    for failing in range(steps_of_the_scenario(tmp_path)):
        fs, scenario = interrupted(tmp_path / f"{failing}", failing, PowerLossError())
        scenario.log.close()
        fs._is_down = False
        again = FramedLog(tmp_path / f"{failing}" / "log", segment_bytes=SEGMENT_BYTES, fs=fs)
        again.open()
        again.append(b"after the kill")
        again.sync()
        expected = list(again.read(again.first_sequence))
        again.close()

        left = FramedLog(fs.after_power_loss(tmp_path / f"{failing}-left", None))
        left.open()

        assert expected == list(left.read(left.first_sequence))
        left.close()


@pytest.mark.parametrize(("cut", "steps"), [(7, 3), (300 + 24 + 7, 5)])
def test_a_kill_at_every_step_of_recovery_changes_nothing(tmp_path, cut, steps):
    root = tmp_path / "source"
    root.mkdir()
    scenario = Scenario(OsFileSystem(), root / "log")
    scenario.log.open()
    for size in (900, 900, 900, 100, 200):
        scenario.append(size)
    scenario.sync()
    scenario.append(300)
    scenario.doubtful = [scenario.ceiling.pop()]
    if steps == 5:
        scenario.doubtful = [scenario.ceiling.pop()]
        scenario.floor.pop()
    scenario.log.close()
    newest = max((root / "log").glob("*.seg"))
    os.truncate(newest, newest.stat().st_size - cut)
    torn = {path.name: path.read_bytes() for path in (root / "log").iterdir()}

    for failing in itertools.count():
        target = tmp_path / f"{failing}"
        (target / "log").mkdir(parents=True)
        for name, data in torn.items():
            (target / "log" / name).write_bytes(data)
        fs = StepFileSystem(target, failing)
        fs._entries[target / "log"], fs._pending[target / "log"] = {}, []
        try:
            FramedLog(target / "log", segment_bytes=SEGMENT_BYTES, fs=fs).open()
        except PowerLossError:
            scenario.check(target / "log")
        else:
            assert failing == steps
            break


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_at_every_step_loses_nothing_synced_and_leaks_nothing(tmp_path, number):
    for failing in range(steps_of_the_scenario(tmp_path)):
        with no_descriptor_leaks():
            error = OSError(number, os.strerror(number))
            _, scenario = interrupted(tmp_path / f"{failing}", failing, error)
            scenario.log.close()

            scenario.check(tmp_path / f"{failing}" / "log")


def test_power_loss_after_undoing_a_synced_record_leaves_a_torn_tail_not_damage(tmp_path):
    (tmp_path / "root").mkdir()
    fs = StepFileSystem(tmp_path / "root")
    log = FramedLog(tmp_path / "root" / "log", fs=fs)
    log.open()
    log.append(b"a")
    log.append(b"b" * 600)
    log.sync()
    for path, identity in fs._live.items():  # the kernel writes back in its own time
        fs._synced[identity] = path.read_bytes()
    log.undo_append(2)
    log.append(b"c" * 3000)
    log.close()
    left = fs.after_power_loss(tmp_path / "left", None)
    name = next(left.glob("*.seg")).name
    content = (tmp_path / "root" / "log" / name).read_bytes()
    (left / name).write_bytes(content[:512] + bytes(512) + content[1024:])

    log = FramedLog(left)

    assert log.open().last_sequence == 1
    log.close()


@pytest.mark.parametrize("drop", [lambda log: log.purge(2), lambda log: log.clear(1)])
def test_deleted_segments_are_gone_durably_and_only_after_start_says_so(tmp_path, drop):
    fs = StepFileSystem(tmp_path)
    log = FramedLog(tmp_path / "log", segment_bytes=100, fs=fs)
    log.open()
    for _ in range(3):
        log.append(b"x" * 100)
    before = len(fs.names)

    drop(log)

    names = fs.names[before:]
    assert names[-2:] == ["unlink", "sync_directory"]
    first = names.index("unlink")
    assert "sync_directory" in names[names.index("replace") : first]
    log.close()


WRITER = """
import os, random, sys
from pathlib import Path
from dengine_sm.files import FramedLog

log = FramedLog(Path(sys.argv[1]), segment_bytes=1 << 20)
log.open()
choices = random.Random(int(sys.argv[2]))
while True:
    for _ in range(choices.randint(1, 5)):
        sequence = log.next_sequence
        payload = random.Random(sequence).randbytes(random.Random(-sequence).randint(0, 200_000))
        log.append(payload)
    if choices.random() < 0.9:
        log.sync()
        os.write(1, log.synced_sequence.to_bytes(8, "big"))
    if choices.random() < 0.1:
        log.purge(log.synced_sequence - 20)
"""


@pytest.mark.storm
def test_killed_writers_lose_nothing_acknowledged(tmp_path):
    choices = random.Random(20)
    acknowledged = 0

    for attempt in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "log"), str(attempt)],
            stdout=subprocess.PIPE,
        )
        with child:
            for _ in range(choices.randint(0, 12)):
                acknowledged = int.from_bytes(child.stdout.read(8), "big")
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read()
        assert child.returncode == -signal.SIGKILL
        if rest:
            acknowledged = int.from_bytes(rest[len(rest) // 8 * 8 - 8 :][:8], "big")
        log = FramedLog(tmp_path / "log", segment_bytes=1 << 20)
        assert log.open().last_sequence >= acknowledged
        for sequence, record in enumerate(log.read(log.first_sequence), log.first_sequence):
            size = random.Random(-sequence).randint(0, 200_000)
            assert record == LogRecord(sequence, 1, random.Random(sequence).randbytes(size))
        log.close()

    assert acknowledged > 20
