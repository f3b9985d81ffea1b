"""A sound store that many broken ones are made of: what is not flushed is in memory only."""

from __future__ import annotations

import threading

from broken_base import LIMITS

from dengine_sm.backends.file_store import FileStore, _encode_batch
from dengine_sm.kv import KeyValueStateMachine


class BufferedStore(FileStore):
    """Writes to its log when it is flushed or closed."""

    def __init__(self, directory):
        super().__init__(directory, segment_bytes=8192)
        self.pending = []
        self.draining = threading.Lock()

    def write(self, batch):
        self._open_log()
        with self.draining:
            self._ram.write(batch)
            self.pending.append(_encode_batch(batch))

    def drain(self):
        with self.draining:
            log = self._open_log()
            for record in self.pending:
                log.append(record)
            self.pending.clear()

    def flush(self):
        self.drain()
        super().flush()

    def close(self):
        if self._log is not None:
            self.drain()
        super().close()

    def replace_all(self, batches):
        self.drain()
        super().replace_all(batches)


class SoundBufferedMachine(KeyValueStateMachine):
    """A key-value machine that loses more in a crash than others, and no more than it may."""

    def __init__(self, directory):
        super().__init__(BufferedStore(directory), limits=LIMITS)
