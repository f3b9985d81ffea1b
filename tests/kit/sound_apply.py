"""Sound machines that do what a check could take for a defect."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import logging
import os
import random
import tempfile
import threading
import time

from broken_base import SoundMemoryMachine, SoundSyncedMachine

_logger = logging.getLogger(__name__)


class SerialisesCalls(SoundMemoryMachine):
    """Lets overlapping applies wait instead of refusing them."""

    def __init__(self, directory):
        super().__init__(directory)
        self._turn = asyncio.Lock()

    async def apply_chunk(self, chunk):
        async with self._turn:
            await asyncio.sleep(0)
            return await super().apply_chunk(chunk)


class AppliesInAThreadOfItsOwn(SoundSyncedMachine):
    """Serialises the applies of all threads in one of its own."""

    def __init__(self, directory):
        super().__init__(directory)
        self._pool = concurrent.futures.ThreadPoolExecutor(1)

    async def apply_chunk(self, chunk):
        def apply():
            return asyncio.run(super(AppliesInAThreadOfItsOwn, self).apply_chunk(chunk))

        return await asyncio.wrap_future(self._pool.submit(apply))


class ReadsOneKeyAtATime(SoundMemoryMachine):
    """Has none of the optional methods."""

    get_multi = None
    scan_prefix = None


class IsExcused(SoundSyncedMachine):
    """Logs, waits with a timeout, imports, makes temporary directories, while it applies.

    A thread of its own looks at clock, environment and dice all the time.
    """

    def __init__(self, directory):
        super().__init__(directory)
        self._seeded = random.Random(7)
        self._over = threading.Event()
        self._thread = None

    def start(self):
        super().start()
        if self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._fidget, daemon=True)
            self._thread.start()

    def stop(self):
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super().stop()

    def _fidget(self):
        while not self._over.wait(0.001):
            time.time()
            os.environ.get("HOME")
            random.random()

    async def apply_chunk(self, chunk):
        import colorsys  # noqa: F401 - late, and perhaps for the first time
        import plistlib  # noqa: F401

        _logger.warning("%d entries", len(chunk))
        self._seeded.random()
        random.Random(len(chunk)).randint(1, 6)
        time.strftime("%H", time.gmtime(chunk[0].timestamp_ms / 1000))
        moment = datetime.datetime.fromtimestamp(5, datetime.UTC)
        assert isinstance(moment, datetime.datetime) and isinstance(moment, datetime.date)
        assert type(datetime.datetime(2024, 6, 7)) is type(moment)
        with tempfile.TemporaryDirectory():
            await asyncio.sleep(0.0001)
        async with asyncio.timeout(60):
            await asyncio.wait_for(asyncio.to_thread(len, chunk), 60)
        condition = threading.Condition()
        with condition:
            condition.wait(0.0001)
        return tuple(await super().apply_chunk(chunk))
