"""The kit's failing disk, and whom its checks of damage, power loss and faults leave out."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from broken_base import SoundFileMachine, SoundMemoryMachine, SoundSyncedMachine, subject_of
from broken_reading import SoundDiskMachine
from marked_store import SoundMarkedMachine, SoundMarkedSyncedMachine
from sound_sqlite import SoundSQLiteMachine

from dengine_sm.conformance.checks import damage, disk_faults, power_loss, read_failures
from dengine_sm.conformance.faults import CHANGING, GROWING, SYNCS, WRITES, Fault, FaultyFileSystem
from dengine_sm.conformance.images import Image
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import CheckResult, Status
from dengine_sm.conformance.runner import run_check
from dengine_sm.conformance.subject import Subject
from dengine_sm.model import Durability

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")
CHECKS = (*damage.CHECKS, *power_loss.CHECKS, *disk_faults.CHECKS, *read_failures.CHECKS)


def results(subject: Subject, clause: str = "", seed: int = 0) -> list[CheckResult]:
    return [
        run_check(check, subject, profile=Profile.STANDARD, seed=seed)
        for check in CHECKS
        if clause in check.clause
    ]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "machine",
    [SoundFileMachine, SoundSyncedMachine, SoundMarkedMachine, SoundMarkedSyncedMachine],
)
def test_sound_machines_pass(machine: type, seed: int) -> None:
    durability = Durability.PER_APPLY if "Synced" in machine.__name__ else Durability.ON_FLUSH

    found = results(subject_of(machine, durability=durability), seed=seed)

    assert {Status.PASSED, Status.NOT_BOUND} == {r.status for r in found}, [
        r.details for r in found if r.status is Status.FAILED
    ]
    assert {r.clause for r in found if r.status is Status.NOT_BOUND} == {"READ-5"}


def test_a_sound_machine_that_reads_from_disk_passes() -> None:
    found = results(subject_of(SoundDiskMachine, keeps_state_in_memory=False))

    assert {Status.PASSED} == {r.status for r in found}, [r.details for r in found]


def test_a_transient_machine_is_not_bound() -> None:
    found = results(subject_of(SoundMemoryMachine, durability=Durability.TRANSIENT))

    assert {Status.NOT_BOUND} == {r.status for r in found}


@needs_strace
@pytest.mark.parametrize("seed", [0, 1])
def test_an_engine_that_writes_its_files_itself_is_watched_by_strace(seed: int) -> None:
    subject = subject_of(SoundSQLiteMachine, keeps_state_in_memory=False, detects_damage=False)

    found = results(subject, "CRASH-6", seed)

    assert {Status.PASSED} == {r.status for r in found}, [r.details for r in found]
    assert found[0].evidence["seen by"] == "strace"
    assert {Status.NOT_BOUND} == {r.status for r in results(subject, "CRASH-8")}
    assert {Status.PASSED, Status.NOT_BOUND} == {r.status for r in results(subject, "READ-5")}


def test_without_strace_its_power_loss_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    subject = subject_of(SoundSQLiteMachine, keeps_state_in_memory=False, detects_damage=False)

    found = results(subject, "CRASH-6")

    assert {Status.SKIPPED} == {r.status for r in found}
    assert {"strace is not installed: no system call can be seen or made to fail"} == {
        r.reason for r in found
    }


def test_flipped_bits_do_not_bind_an_engine_that_declares_no_checksums() -> None:
    found = results(subject_of(SoundMarkedMachine, detects_damage=False), "CRASH-5")

    assert [r.reason for r in found if r.status is Status.NOT_BOUND] == [
        "declared: the engine detects no damaged bytes"
    ]
    assert [r.status for r in found].count(Status.PASSED) == 2


def opened(fs: FaultyFileSystem, name: str = "f") -> int:
    return fs.open(fs.root / name, os.O_RDWR | os.O_CREAT | os.O_APPEND)


def test_one_call_fails_and_the_next_works(tmp_path: Path) -> None:
    fs = FaultyFileSystem(tmp_path)
    fd = opened(fs)
    fs.arm(Fault("", WRITES, errno.ENOSPC), 2)

    fs.write(fd, b"1")
    with pytest.raises(OSError, match="No space left"):
        fs.write(fd, b"2")
    fs.write(fd, b"3")
    fs.close(fd)

    assert (tmp_path / "f").read_bytes() == b"13"
    assert fs.struck == ["write 'f'"]


def test_all_calls_fail_until_the_cause_is_gone(tmp_path: Path) -> None:
    fs = FaultyFileSystem(tmp_path)
    fs.arm(Fault("", CHANGING | SYNCS, is_lasting=True), 1)

    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            opened(fs)
    with pytest.raises(OSError, match="Input/output"):
        fs.sync_directory(tmp_path)
    fs.disarm()
    fs.close(opened(fs))

    assert len(fs.struck) == 3


def test_a_short_write_takes_half(tmp_path: Path) -> None:
    fs = FaultyFileSystem(tmp_path)
    fd = opened(fs)
    fs.arm(Fault("", WRITES, errno.ENOSPC, is_lasting=True, is_short=True), 1)

    assert fs.write(fd, b"12345678") == 4
    with pytest.raises(OSError, match="No space left"):
        fs.write(fd, b"5678")
    fs.close(fd)

    assert (tmp_path / "f").read_bytes() == b"1234"
    assert fs.past() == []


def test_writing_over_needs_no_space(tmp_path: Path) -> None:
    fs = FaultyFileSystem(tmp_path)
    fd = fs.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    fs.pwrite(fd, b"1234", 0)
    fs.arm(Fault("", GROWING, errno.ENOSPC, is_lasting=True), 1)

    assert fs.pwrite(fd, b"ab", 1) == 2
    with pytest.raises(OSError, match="No space left"):
        fs.pwrite(fd, b"56", 3)
    fs.close(fd)


def test_what_lies_elsewhere_never_fails(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    fs = FaultyFileSystem(tmp_path / "inside")
    fs.arm(Fault("", CHANGING | SYNCS, is_lasting=True), 1)

    fd = fs.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"1")
    fs.fsync(fd)
    fs.close(fd)
    fs.replace(tmp_path / "f", tmp_path / "g")
    fs.unlink(tmp_path / "g")

    assert fs.struck == fs.operations == []


def test_an_image_is_put_back_as_it_was(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    (directory / "sub" / "empty").mkdir(parents=True)
    (directory / "sub" / "f").write_bytes(b"1")
    (directory / "g").write_bytes(b"2")
    image = Image.of(directory)

    (directory / "sub" / "f").unlink()
    (directory / "sub" / "empty").rmdir()
    (directory / "g").write_bytes(b"3")
    (directory / "more").mkdir()
    (directory / "more" / "h").write_bytes(b"4")
    assert Image.of(directory).differing(image) == ["g", "more/h", "sub/f"]
    image.restore(directory)

    assert Image.of(directory) == image
    assert image.with_file("g", None).restore(tmp_path / "new").joinpath("sub", "f").exists()
    assert not (tmp_path / "new" / "g").exists()
