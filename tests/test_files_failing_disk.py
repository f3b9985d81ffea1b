"""The framed log on a disk that refuses single calls, or is full."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dengine_sm.errors import StorageError
from dengine_sm.files import FramedLog, OsFileSystem


class Refusing(OsFileSystem):
    """Refuses the calls that are named, while they are."""

    def __init__(self) -> None:
        self.refused: set[str] = set()

    def _check(self, name: str) -> None:
        if name in self.refused:
            raise OSError(errno.EIO, "Input/output error")

    def write(self, fd: int, data) -> int:
        if "write" in self.refused:
            super().write(fd, bytes(data)[: len(data) // 2])
        self._check("write")
        return super().write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._check("truncate")
        super().truncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        self._check("fdatasync")
        super().fdatasync(fd)

    def replace(self, source: Path, target: Path) -> None:
        self._check("replace")
        super().replace(source, target)

    def sync_directory(self, path: Path) -> None:
        self._check("sync_directory")
        super().sync_directory(path)


@pytest.fixture
def refusing(tmp_path) -> Iterator[tuple[FramedLog, Refusing]]:
    fs = Refusing()
    log = FramedLog(tmp_path / "log", segment_bytes=200, fs=fs)
    log.open()
    log.append(b"first")
    log.sync()
    yield log, fs
    log.close()


def payloads(log: FramedLog) -> list[bytes]:
    return [record.payload for record in log.read(log.first_sequence)]


def test_a_failed_append_is_taken_back_and_the_log_goes_on(refusing):
    log, fs = refusing
    fs.refused = {"write"}

    with pytest.raises(StorageError, match="cannot append: Input/output error; the log is as"):
        log.append(b"second" * 10)

    fs.refused = set()
    assert log.append(b"another") == 2
    assert payloads(log) == [b"first", b"another"]
    log.close()
    assert log.open().truncated_bytes == 0
    assert payloads(log) == [b"first", b"another"]


def test_an_append_that_cannot_be_taken_back_breaks_the_log(refusing):
    log, fs = refusing
    fs.refused = {"write", "truncate"}
    with pytest.raises(StorageError):
        log.append(b"second" * 10)
    fs.refused = set()

    with pytest.raises(StorageError, match="is broken: a failed append could not be taken back"):
        log.append(b"another")
    assert payloads(log) == [b"first"]
    log.close()

    assert log.open().truncated_bytes > 0
    assert log.append(b"another") == 2
    assert payloads(log) == [b"first", b"another"]


def test_a_failed_sync_is_not_retried_as_if_it_had_worked(refusing):
    log, fs = refusing
    log.append(b"second")
    fs.refused = {"fdatasync"}
    with pytest.raises(StorageError, match="cannot sync the log"):
        log.sync()
    fs.refused = set()

    for act in (log.sync, lambda: log.append(b""), lambda: log.clear(1), lambda: log.purge(1)):
        with pytest.raises(StorageError, match="is broken"):
            act()
    assert log.synced_sequence == 1
    log.undo_append(2)
    assert payloads(log) == [b"first"]
    log.close()
    assert log.open().last_sequence == 1


def test_a_segment_that_cannot_be_begun_leaves_the_log_usable(refusing):
    log, fs = refusing
    log.append(b"x" * 200)
    fs.refused = {"replace"}

    for _ in range(2):
        with pytest.raises(StorageError, match="cannot begin a segment"):
            log.append(b"third")

    fs.refused = set()
    log.undo_append(2)
    assert log.append(b"second" * 40) == 2
    assert log.append(b"third") == 3
    assert payloads(log) == [b"first", b"second" * 40, b"third"]


def test_a_clear_that_failed_does_not_disturb_the_next_one(refusing):
    log, fs = refusing
    fs.refused = {"sync_directory"}
    with pytest.raises(StorageError, match=r"cannot clear the log: .*; the log is as before"):
        log.clear(20)
    assert payloads(log) == [b"first"]
    fs.refused = set()

    log.clear(10)
    log.close()

    assert log.open().first_sequence == 10


LIMITED = """
import resource, signal, sys
from pathlib import Path
from dengine_sm.errors import StorageError
from dengine_sm.files import FramedLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
log = FramedLog(Path(sys.argv[1]))
log.open()
failures = 0
while failures < 3:
    try:
        log.append(bytes([log.next_sequence]) * 7000)
    except StorageError as exc:
        assert "File too large; the log is as before" in str(exc), exc
        failures += 1
log.append(b"small")
log.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append(bytes([log.next_sequence]) * 7000)
log.sync()
print(log.last_sequence, [len(record.payload) for record in log.read(1)])
"""


def test_a_full_disk_leaves_the_log_usable(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (child.stderr, child.stdout) == ("", f"16 {[7000] * 14 + [5, 7000]}\n")
    log = FramedLog(tmp_path / "log")
    report = log.open()
    assert (report.last_sequence, report.truncated_bytes) == (16, 0)
    assert [record.payload[:1] for record in log.read(1)][:14] == [bytes([n]) for n in range(1, 15)]
    log.close()
