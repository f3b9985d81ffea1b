"""Print the directory in which the tests work: `make test` passes it as `TMPDIR`.

The tests sync all the time. A killed process loses as little of what a disk has as of what
memory has, and what a power loss would take is laid out from the calls, not from a disk. So
memory proves the same, in little more than half the time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
NEEDED_BYTES = 8 << 30


def scratch() -> Path:
    """Return what `TMPDIR` says, else a file system in memory with room, else the default."""
    if "TMPDIR" not in os.environ and is_fit(MEMORY):
        return MEMORY
    return Path(tempfile.gettempdir())


def is_fit(directory: Path) -> bool:
    """Tell whether a directory has room, and programs may be run from it, as some tests do."""
    if not os.access(directory, os.W_OK | os.X_OK):
        return False
    no_programs = os.statvfs(directory).f_flag & os.ST_NOEXEC
    return not no_programs and shutil.disk_usage(directory).free >= NEEDED_BYTES


if __name__ == "__main__":
    print(scratch())
