"""An interpreter that has imported what every nursery needs, and forks nurseries.

To import the contract and the kit costs some 0.3 s of processor time, and the kit wants a
nursery for nearly every check: a forked one has it for nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping

from dengine_sm.conformance.processes.wire import NURSERY_VARIABLE, ask_for_process

_PROGRAM = (
    "import json, sys; sys.path[:], modules = json.loads(sys.argv[1]); "
    "from dengine_sm.conformance.processes.nursery import incubate; incubate(modules)"
)

_IMPORTED_EARLY = ("dengine_sm.loader", "dengine_sm.kv", "dengine_sm.backends.file")
"""What most factories need."""

_IMPORTED_IN_TESTS = "dengine_sm.conformance.suite"
"""What every test file needs, and brings pytest and hypothesis: only where the kit has it too."""

_READ_AT_BIRTH = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "TZ")
"""How variables begin that an interpreter, or its C library, reads when it starts."""


def kit_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables of the kit's processes: ours, with changes; None removes one."""
    changes = {"PYTHONDONTWRITEBYTECODE": "1", NURSERY_VARIABLE: "1", **changes}
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


class Incubator:
    """An interpreter that forks nurseries, and ends with all of them when it is closed.

    Args:
        environment: its variables.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._born_with = _read_at_birth(environment)
        self._kit = os.getpid()
        self._control, theirs = socket.socketpair()
        """Its other end is the process's stdin."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - until it is closed itself
        modules = [*_IMPORTED_EARLY, *({_IMPORTED_IN_TESTS} & sys.modules.keys())]
        # Not a shim: strace would count the shim's system calls too.
        is_venv = sys.prefix != sys.base_prefix
        python = sys.executable if is_venv else os.path.realpath(sys.executable)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [python, "-c", _PROGRAM, json.dumps([sys.path, modules])],
                stdin=theirs.fileno(),
                stdout=self._output,
                stderr=self._output,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for the kit, which then ends it
            )

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Tell whether a nursery with these variables may come from here."""
        return self._born_with == _read_at_birth(environment)

    def is_usable(self) -> bool:
        """Tell whether it lives and is this process's own, which it is not after a fork."""
        return self._kit == os.getpid() and self._process.poll() is None

    def hatch(self) -> socket.socket:
        """Return a socket at whose other end a new nursery waits for its order.

        Raises:
            OSError: the interpreter is gone.
        """
        return ask_for_process(self._control)

    def output(self) -> str:
        """Return the end of what the interpreter itself wrote."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), 4000, max(0, size - 4000)).decode().strip()

    def close(self) -> None:
        """End the interpreter and its nurseries; idempotent, and nothing after a fork."""
        if self._kit != os.getpid():
            return
        self._control.close()
        self._process.kill()  # it has nothing to finish
        self._process.wait()
        self._output.close()


def _read_at_birth(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_BIRTH)}


@contextlib.contextmanager
def lend_incubator(environment: Mapping[str, str]) -> Iterator[Incubator]:
    """Lend the interpreter that all share, or one born with these variables."""
    shared = _shared_incubator()
    if shared.serves(environment):
        yield shared
        return
    own = Incubator(environment)
    try:
        yield own
    finally:
        own.close()


_shared: Incubator | None = None
_sharing = threading.Lock()


def _shared_incubator() -> Incubator:
    """Return the shared one; it ends with this process."""
    global _shared
    with _sharing:
        if _shared is None or not _shared.is_usable():
            if _shared is not None:
                _shared.close()
            _shared = Incubator(kit_environment({}))
            atexit.register(_shared.close)
        return _shared
