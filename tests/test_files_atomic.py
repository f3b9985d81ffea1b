"""Atomic replacement, checked files, directory lock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dengine_sm.errors import CorruptionError, StorageError, StorageLockedError
from dengine_sm.files import (
    DirectoryLock,
    OsFileSystem,
    read_checked_file,
    replace_file,
    sync_directory,
    write_checked_file,
)


class Recording(OsFileSystem):
    """Notes the calls, and fails the one that has the given number."""

    def __init__(self, failing: int | None = None) -> None:
        self.calls: list[str] = []
        self.failing = failing

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if self.failing == len(self.calls) - 1:
            raise OSError(errno.EIO, "Input/output error")

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._note("open")
        return super().open(path, flags, mode)

    def write(self, fd, data) -> int:
        self._note("write")
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._note("fsync")

    def replace(self, source: Path, target: Path) -> None:
        self._note("replace")
        super().replace(source, target)

    def sync_directory(self, path: Path) -> None:
        self._note("sync_directory")


def test_replace_syncs_the_file_before_and_the_directory_after_the_rename(tmp_path):
    fs = Recording()

    replace_file(tmp_path / "x", b"new", fs)

    assert fs.calls == ["open", "write", "fsync", "replace", "sync_directory"]
    assert (tmp_path / "x").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("failing", range(4))
def test_a_failed_replace_leaves_the_old_file_and_no_other(tmp_path, failing):
    (tmp_path / "x").write_bytes(b"old")

    with pytest.raises(StorageError, match="the old content is untouched") as caught:
        replace_file(tmp_path / "x", b"new", Recording(failing))

    assert tmp_path / "x" == caught.value.path
    assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_failed_directory_sync_is_reported(tmp_path):
    with pytest.raises(StorageError, match="maybe not durably"):
        replace_file(tmp_path / "x", b"new", Recording(4))

    with pytest.raises(StorageError, match="cannot sync the directory"):
        sync_directory(tmp_path / "absent")


def test_a_write_cut_short_is_continued(tmp_path):
    class Short(OsFileSystem):
        def write(self, fd, data) -> int:
            return super().write(fd, bytes(data)[:3])

    replace_file(tmp_path / "x", b"0123456789", Short())

    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_disk_that_takes_nothing_is_an_error_not_a_loop(tmp_path):
    class Full(OsFileSystem):
        def write(self, fd, data) -> int:
            return 0

    with pytest.raises(StorageError, match="takes no more bytes"):
        replace_file(tmp_path / "x", b"0123456789", Full())


@pytest.mark.parametrize("payload", [b"", b"a", bytes(range(256)) * 300])
def test_a_checked_file_reads_back(tmp_path, payload):
    write_checked_file(tmp_path / "x", payload)

    assert payload == read_checked_file(tmp_path / "x")


@pytest.mark.parametrize("payload", [b"", b"some payload"])
def test_every_flipped_bit_cut_or_added_byte_of_a_checked_file_is_damage(tmp_path, payload):
    path = tmp_path / "x"
    write_checked_file(path, payload)
    data = path.read_bytes()
    flips = [
        data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        for at in range(len(data))
        for bit in range(8)
    ]

    for bad in [*flips, *(data[:size] for size in range(len(data))), data + b"\0"]:
        path.write_bytes(bad)
        with pytest.raises(CorruptionError) as caught:
            read_checked_file(path)
        assert path == caught.value.path
        assert 0 <= caught.value.offset <= len(bad)


def test_an_absent_checked_file_is_no_damage(tmp_path):
    with pytest.raises(StorageError, match="cannot read the file") as caught:
        read_checked_file(tmp_path / "x")

    assert not isinstance(caught.value, CorruptionError)


def test_a_second_lock_in_this_process_is_refused_and_changes_nothing(tmp_path):
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    first.acquire()
    before = (tmp_path / "LOCK").read_bytes()

    with pytest.raises(StorageLockedError, match=f"process {os.getpid()} ") as caught:
        second.acquire()

    assert tmp_path == caught.value.path
    assert not second.is_held
    assert before == (tmp_path / "LOCK").read_bytes()
    first.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_an_unreadable_directory_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot lock the directory"):
        DirectoryLock(tmp_path / "absent").acquire()


def test_refused_locks_leak_no_descriptor(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(50):
        with pytest.raises(StorageLockedError):
            DirectoryLock(tmp_path).acquire()

    assert before == len(os.listdir("/proc/self/fd"))
    lock.release()


HOLDER = """
import sys
from pathlib import Path
from dengine_sm.files import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_child_holds_the_lock_until_it_is_killed(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout.readline() == b"held\n"
        lock = DirectoryLock(tmp_path)

        with pytest.raises(StorageLockedError, match=f"process {child.pid} "):
            lock.acquire()
        child.send_signal(signal.SIGKILL)
        child.wait()
        lock.acquire()

    assert lock.is_held
    lock.release()


def test_a_child_is_refused_while_this_process_holds_the_lock(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()

    refused = subprocess.run(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert refused.returncode == 1
    assert "StorageLockedError" in refused.stderr
    assert "held" not in refused.stdout
    lock.release()
