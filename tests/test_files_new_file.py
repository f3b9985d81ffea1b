"""New files through a file system, and directories that a crash may have left half made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dengine_sm.errors import StorageError
from dengine_sm.files import (
    OsFileSystem,
    default_file_system,
    make_directories,
    replaced_file_system,
)
from dengine_sm.files.new_file import NewFile


class Counting(OsFileSystem):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.synced: list[Path] = []

    def write(self, fd: int, data) -> int:
        self.sizes.append(len(data))
        return super().write(fd, data)

    def sync_directory(self, path: Path) -> None:
        self.synced.append(path)


def test_small_writes_are_gathered_and_large_ones_passed_on(tmp_path: Path):
    fs = Counting()

    with NewFile(tmp_path / "f", fs) as file:
        for _ in range(3):
            file.write(b"small")
        file.write(bytes(2 << 20))
        file.write(b"end")

    assert fs.sizes == [15, 2 << 20, 3]
    assert (tmp_path / "f").read_bytes() == b"small" * 3 + bytes(2 << 20) + b"end"


def test_overwrites_what_was_written_before(tmp_path: Path):
    with NewFile(tmp_path / "f") as file:
        file.write(b"....body")
        file.overwrite(b"head", 0)
        file.write(b"tail")
        file.sync()

    assert (tmp_path / "f").read_bytes() == b"headbodytail"


def test_refuses_a_file_that_exists(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"there")

    with pytest.raises(FileExistsError):
        NewFile(tmp_path / "f")

    assert (tmp_path / "f").read_bytes() == b"there"


def test_closes_the_file_when_the_block_raises(tmp_path: Path):
    before = os.listdir("/proc/self/fd")

    with pytest.raises(ValueError), NewFile(tmp_path / "f") as file:
        file.write(b"lost")
        raise ValueError

    assert len(before) == len(os.listdir("/proc/self/fd"))
    assert (tmp_path / "f").read_bytes() == b""


def test_the_replacement_ends_with_the_block_and_may_be_nested():
    first, second, real = Counting(), Counting(), default_file_system()

    with replaced_file_system(first):
        with pytest.raises(KeyError), replaced_file_system(second):
            assert default_file_system() is second
            raise KeyError
        assert default_file_system() is first

    assert default_file_system() is real


def test_syncs_the_entry_of_a_directory_that_exists_already(tmp_path: Path):
    fs = Counting()
    (tmp_path / "a").mkdir()

    make_directories(tmp_path / "a" / "b" / "c", fs)
    make_directories(tmp_path / "a" / "b" / "c", fs)

    a = tmp_path / "a"
    assert fs.synced == [tmp_path, a, a / "b", a / "b"]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EINVAL])
def test_a_parent_that_cannot_be_synced_is_none_that_we_made_something_in(
    tmp_path: Path, error: int
):
    class Refusing(OsFileSystem):
        def sync_directory(self, path: Path) -> None:
            raise OSError(error, os.strerror(error))

    make_directories(tmp_path, Refusing())

    with pytest.raises(StorageError, match="cannot make the directory"):
        make_directories(tmp_path / "new", Refusing())
