"""A backend's data directory: whose it is, which generation is in force, what a kill leaves."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dengine_sm.codec import encode
from dengine_sm.errors import (
    CorruptionError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.files import DataDirectory, OsFileSystem, write_checked_file


def opened(path: Path, **options: object) -> DataDirectory:
    directory = DataDirectory(path, format="toy", **options)
    directory.open()
    return directory


def grown(path: Path, content: str = "first") -> DataDirectory:
    """Return an open directory with one generation in force."""
    directory = opened(path)
    directory.next.write_text(content)
    directory.switch()
    return directory


def contents(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.iterdir() if found.is_file()}


def test_a_new_one_is_empty_until_something_is_put_in_force(tmp_path):
    directory = opened(tmp_path / "deep" / "data")
    assert directory.is_empty

    directory.next.write_text("first")
    directory.switch()

    assert not directory.is_empty
    assert directory.current.read_text() == "first"


def test_construction_touches_nothing(tmp_path):
    DataDirectory(tmp_path / "data", format="toy")

    assert not (tmp_path / "data").exists()


def test_what_was_not_put_in_force_is_removed_at_the_next_opening(tmp_path):
    directory = grown(tmp_path)
    directory.next.mkdir()
    (directory.next / "half").write_text("half")
    directory.close()

    again = opened(tmp_path)

    assert again.current.read_text() == "first"
    assert not again.next.exists()


def test_the_old_generation_stays_until_it_is_removed(tmp_path):
    directory = grown(tmp_path)
    old = directory.current
    directory.next.write_text("second")
    directory.switch()
    assert old.exists()

    directory.remove_old()

    assert not old.exists()
    assert directory.current.read_text() == "second"


def test_is_locked_while_open_and_free_afterwards(tmp_path):
    directory = grown(tmp_path)
    with pytest.raises(StorageLockedError):
        opened(tmp_path)

    directory.close()

    assert opened(tmp_path).current.read_text() == "first"


@pytest.mark.parametrize("mark", [["other", 1, 1], ["toy", 2, 1], ["toy"], 7])
def test_another_format_or_version_is_refused_unchanged(tmp_path, mark):
    write_checked_file(tmp_path / "FORMAT", encode(mark))
    before = contents(tmp_path)

    with pytest.raises(StorageFormatError, match="nothing was changed"):
        opened(tmp_path)

    assert before == contents(tmp_path)


def test_a_strangers_directory_is_refused_unchanged(tmp_path):
    (tmp_path / "letters").write_text("mine")

    with pytest.raises(StorageFormatError, match="it holds 'letters'"):
        opened(tmp_path)

    assert contents(tmp_path) == {"letters": b"mine"}


def test_data_without_a_mark_is_damage(tmp_path):
    grown(tmp_path).close()
    (tmp_path / "FORMAT").unlink()

    with pytest.raises(CorruptionError) as caught:
        opened(tmp_path)

    assert tmp_path / "FORMAT" == caught.value.path


def test_a_mark_without_its_data_is_damage(tmp_path):
    grown(tmp_path).close()
    data = tmp_path / "data-00000001"
    data.unlink()

    with pytest.raises(CorruptionError) as caught:
        opened(tmp_path)

    assert data == caught.value.path


class Failing(OsFileSystem):
    """Fails the syncs of directories whose numbers are given, from 0 once armed."""

    def __init__(self, *numbers: int) -> None:
        self.numbers: tuple[int, ...] = numbers
        self.count = -1

    def sync_directory(self, path: Path) -> None:
        if self.count >= 0:
            self.count += 1
            if self.count - 1 in self.numbers:
                raise OSError(errno.EIO, "Input/output error")
        super().sync_directory(path)


@pytest.mark.parametrize("number", [0, 1])
def test_a_switch_that_fails_leaves_the_old_generation_in_force(tmp_path, number):
    grown(tmp_path).close()
    fs = Failing(number)
    directory = opened(tmp_path, fs=fs)
    directory.next.write_text("second")
    fs.count = 0

    with pytest.raises(StorageError, match="cannot sync the directory"):
        directory.switch()

    assert directory.current.read_text() == "first"
    assert not directory.is_in_doubt
    directory.close()
    assert opened(tmp_path).current.read_text() == "first"


def test_says_so_when_it_does_not_know_which_is_in_force(tmp_path):
    grown(tmp_path).close()
    fs = Failing(1, 2)
    directory = opened(tmp_path, fs=fs)
    directory.next.write_text("second")
    fs.count = 0

    with pytest.raises(StorageError, match="which generation is in force is unknown"):
        directory.switch()

    assert directory.is_in_doubt
    directory.close()
    fs.count = -1
    directory.open()
    assert not directory.is_in_doubt


_KILLED = """
import os, signal, sys
from pathlib import Path
from dengine_sm.files import DataDirectory, OsFileSystem

class Killed(OsFileSystem):
    left = 0
    def __getattribute__(self, name):
        if name in ("open", "write", "fsync", "replace", "sync_directory"):
            Killed.left -= 1
            if Killed.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)

def run(path):
    directory = DataDirectory(path, format="toy", fs=Killed())
    directory.open()
    for content in ("first", "second"):
        directory.next.write_text(content)
        directory.switch()

for calls in range(100):
    child = os.fork()
    if child == 0:
        Killed.left = calls
        run(Path(sys.argv[1], str(calls)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
print(calls)
"""


def test_killed_at_any_call_one_whole_generation_is_in_force(tmp_path):
    program = [sys.executable, "-c", _KILLED, str(tmp_path)]
    calls = int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    found = []
    for number in range(calls + 1):
        directory = opened(tmp_path / str(number))
        found.append(None if directory.is_empty else directory.current.read_text())

    assert 10 < calls < 100
    assert list(dict.fromkeys(found)) == [None, "first", "second"]
