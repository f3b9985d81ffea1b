"""Framed logs for tests: opened without waiting for the disk, and their segments."""

from __future__ import annotations

from pathlib import Path

from dengine_sm.files import FramedLog, OsFileSystem


class Unsynced(OsFileSystem):
    """The real file system without its waits; power loss has its own test."""

    def fsync(self, fd: int) -> None:
        pass

    def fdatasync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


def opened(directory: Path, segment_bytes: int = 64 << 20, first_sequence: int = 1) -> FramedLog:
    log = FramedLog(directory, segment_bytes=segment_bytes, fs=Unsynced())
    log.open(first_sequence)
    return log


def segments_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))
