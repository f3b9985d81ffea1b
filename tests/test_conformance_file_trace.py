"""What strace saw of files, against the files: contents, names, and what is durable."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dengine_sm.conformance.disk import Directory, read_tree
from dengine_sm.conformance.images import Image
from dengine_sm.conformance.power import written_past
from dengine_sm.conformance.processes.file_trace import TRACED, FileTrace
from dengine_sm.conformance.processes.strace import Strace

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")

_PROLOGUE = """
import ctypes, fcntl, mmap, os, socket, sys, threading
root = sys.argv[1]
os.chdir(root)
ours, theirs = socket.socketpair()
def word():
    ours.sendall(b"word")
def new(name, flags=0):
    return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o600)
sys.stdin.readline()
"""


def traced(root: Path, program: str, start: Directory | None = None) -> FileTrace:
    """Run a program below `root` under strace."""
    root.mkdir(exist_ok=True)
    trace = FileTrace(root, read_tree(root) if start is None else start, root)
    code = _PROLOGUE + textwrap.dedent(program)
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE)
    log = root.parent / "strace.log"
    with Strace(process.pid, log, names=TRACED, with_data=True) as tracer:
        process.communicate(b"go\n")
        tracer.wait()
        lines = tracer.lines()
    assert process.returncode == 0
    return trace.follow(lines)


def left(trace: FileTrace, steps: int | None = None) -> Image:
    """Return what a power loss leaves, after all or some steps."""
    disk = trace.recording().disk()
    disk.advance(len(trace.operations) if steps is None else steps)
    return disk.left_by_power_loss()


CONTENTS = {
    "in order": """
        fd = new("f"); os.write(fd, b"one\\n"); os.write(fd, b'"two"\\\\')
    """,
    "at a place": """
        fd = new("f"); os.write(fd, b"0123456789"); os.lseek(fd, 3, 0); os.write(fd, b"abc")
        os.lseek(fd, -1, 2); os.write(fd, b"end")
    """,
    "appended": """
        fd = new("f"); os.write(fd, b"123"); os.close(fd)
        fd = new("f", os.O_APPEND); os.write(fd, b"456"); os.pwrite(fd, b"x", 6)
    """,
    "scattered": """
        fd = new("f"); os.writev(fd, [b"a", b"", b"bc"]); os.pwritev(fd, [b"12", b"34"], 20)
        os.pwrite(fd, b"\\0\\xff", 9)
    """,
    "cut and extended": """
        fd = new("f"); os.write(fd, b"0123456789"); os.ftruncate(fd, 4); os.truncate("f", 8)
        os.posix_fallocate(fd, 2, 20)
    """,
    "cut when opened": """
        fd = new("f"); os.write(fd, b"0123456789"); os.close(fd); fd = new("f", os.O_TRUNC)
        os.write(fd, b"new")
    """,
    "by another descriptor": """
        fd = new("f"); os.write(fd, b"01"); other = os.dup(fd); os.write(other, b"23")
        os.write(fd, b"45")
    """,
    "by threads": """
        def work(number):
            fd = new(f"f{number}")
            for part in range(40):
                os.write(fd, b"%d " % part)
                os.fsync(fd)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """,
    "renamed": """
        os.mkdir("d"); os.mkdir("d/e"); fd = new("d/e/f"); os.write(fd, b"1")
        os.rename("d", "g"); os.write(fd, b"2"); other = new("g/e/h"); os.write(other, b"3")
        os.replace("g/e/h", "g/e/f"); os.write(fd, b"lost with the old file")
    """,
    "linked and removed": """
        fd = new("f"); os.write(fd, b"1"); os.link("f", "g"); os.unlink("f"); os.write(fd, b"2")
        os.mkdir("d"); new("d/x"); os.unlink("d/x"); os.rmdir("d")
    """,
    "below an open directory": """
        os.mkdir("d"); at = os.open("d", os.O_DIRECTORY)
        fd = os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at); os.write(fd, b"1")
        os.rename("f", "g", src_dir_fd=at, dst_dir_fd=at); os.mkdir("e", dir_fd=at)
    """,
    "beside what lies elsewhere": """
        outside = new("../outside"); os.write(outside, b"1"); fd = new("f"); os.write(fd, b"2")
        os.rename("f", "../f")
    """,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_sees_what_is_in_the_files(tmp_path: Path, name: str) -> None:
    root = tmp_path / 'with "quotes" ä'

    trace = traced(root, CONTENTS[name])

    assert trace.unseen == []
    disk = trace.recording().disk()
    disk.advance(len(trace.operations))
    assert Image.of(root) == disk.left_by_kill()
    assert written_past(trace.recording(), root) == []


def test_goes_on_from_a_directory_with_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"0123")

    trace = traced(root, 'fd = os.open("d/f", os.O_WRONLY | os.O_APPEND); os.write(fd, b"45")')

    assert left(trace).files == {"d/f": b"0123"}
    assert written_past(trace.recording(), root) == []


def test_knows_what_is_durable_and_when(tmp_path: Path) -> None:
    root = tmp_path / "root"
    trace = traced(
        root,
        """
        fd = new("f"); os.write(fd, b"1"); os.fsync(fd); word()
        at = os.open(".", os.O_DIRECTORY); os.fsync(at); word()
        os.write(fd, b"2"); os.rename("f", "g"); word()
        os.fdatasync(fd); os.fsync(at); word()
        """,
    )

    assert [left(trace, end).files for end in trace.ends] == [
        {},
        {"f": b"1"},
        {"f": b"1"},
        {"g": b"12"},
    ]


def test_a_descriptor_that_writes_through_makes_durable_what_goes_through_it(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    trace = traced(
        root,
        """
        fd = new("f"); os.write(fd, b"0123456789"); at = os.open(".", os.O_DIRECTORY)
        os.fsync(at); through = os.open("f", os.O_WRONLY | os.O_DSYNC); word()
        os.pwrite(through, b"ab", 3); word()
        os.fsync(fd); os.pwrite(fd, b"x", 0); word()
        other = os.dup(os.open("f", os.O_WRONLY | os.O_SYNC)); os.pwrite(other, b"y", 9); word()
        """,
    )

    assert [left(trace, end).files["f"] for end in trace.ends] == [
        b"",
        b"\0\0\0ab",
        b"012ab56789",
        b"012ab5678y",
    ]


def test_says_what_it_cannot_follow(tmp_path: Path) -> None:
    trace = traced(
        tmp_path / "root",
        """
        fd = new("f"); os.write(fd, b"1" * 4096); other = new("g")
        os.sendfile(other, fd, 0, 4096)
        mapped = mmap.mmap(fd, 4096); mapped[0] = 50; os.fsync(fd)
        """,
    )

    assert trace.unseen == ["sendfile", "writes to 'f' through mapped memory"]


def test_mapped_memory_that_is_never_synced_is_scratch(tmp_path: Path) -> None:
    root = tmp_path / "root"
    trace = traced(
        root,
        'fd = new("f"); os.ftruncate(fd, 4096); mapped = mmap.mmap(fd, 4096); mapped[0] = 50',
    )

    assert (trace.unseen, trace.mapped) == ([], {"f"})
    assert written_past(trace.recording(), root) == ["f"]
    assert written_past(trace.recording(), root, trace.mapped) == []
