"""Framed logs for tests: opened without waiting for the disk, and their segments."""

from __future__ import annotations

from pathlib import Path

from dengine_sm.conformance.power import UnsyncedFileSystem
from dengine_sm.files import FramedLog


def opened(directory: Path, segment_bytes: int = 64 << 20, first_sequence: int = 1) -> FramedLog:
    log = FramedLog(directory, segment_bytes=segment_bytes, fs=UnsyncedFileSystem())
    log.open(first_sequence)
    return log


def segments_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))
