"""A machine that does odd things in its own process, and how to look at processes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dengine_sm.conformance.maker import maker_of_callable
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.errors import StorageError


class DerivedError(StorageError):
    """A backend's own kind of StorageError."""


class PanicError(BaseException):
    """What a native library raises when it panics."""


class Odd:
    """Does as a key says; the methods have the contract's names, not its meaning."""

    def __init__(self, directory: Path) -> None:
        if directory.name == "refused":
            raise StorageError("refused", path=directory)
        self.directory = directory
        self.waiting: asyncio.Event | None = None

    def start(self) -> None:
        self.lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def get(self, key: bytes) -> Any:
        return getattr(self, f"_{key.decode()}")()

    async def apply_chunk(self, chunk: Any) -> Any:
        self.waiting = asyncio.Event()
        await self.waiting.wait()
        return chunk

    def flush(self) -> None:
        assert self.waiting is not None
        self.waiting.set()

    def _value(self) -> Any:
        return b"value"

    def _die(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def _hang(self) -> Any:
        while True:
            time.sleep(3600)

    def _close_everything(self) -> Any:
        os.closerange(3, 100)
        time.sleep(3600)

    def _panic(self) -> Any:
        raise PanicError("native code panicked")

    def _exit(self) -> Any:
        sys.exit(3)

    def _derived(self) -> Any:
        raise DerivedError("no space", path=Path("/d"))

    def _unpackable(self) -> Any:
        return object()

    def _unencodable(self) -> Any:
        return "\udcff"

    def _print(self) -> Any:
        for _ in range(4000):
            print("x" * 100)
        sys.stdout.flush()
        return b"printed"

    def _read_stdin(self) -> Any:
        return os.read(0, 100)

    def _thread(self) -> Any:
        return threading.current_thread() is threading.main_thread()

    def _inline(self) -> Any:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(threading.get_ident()))
        thread.start()
        thread.join()
        return seen == [threading.get_ident()]

    def _write(self) -> Any:
        with (self.directory / "file").open("wb") as file:
            file.write(bytes(10_000))

    def _hash(self) -> Any:
        return hash("odd")

    def _environment(self) -> Any:
        return [os.environ.get("ODD_SET"), os.environ.get("ODD_UNSET")]


def make_odd(directory: Path) -> Odd:
    return Odd(directory)


def nursery_of(factory: Any, environment: Any = None) -> Nursery:
    maker = maker_of_callable(factory)
    assert maker is not None
    return Nursery(maker, environment)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 30)[0], f"{pid} lives on"
        finally:
            os.close(pidfd)
