"""Run under strace: a store at work, in a process that ends without closing it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dengine_sm_sqlite.store import SQLiteStore

from dengine_sm.errors import StorageError
from dengine_sm.kv import WriteBatch


def say(text: str) -> None:
    """Leave a mark in the trace."""
    os.write(1, text.encode())


def main(directory: Path, script: str) -> None:
    store = SQLiteStore(directory, sync_every_write=script == "per_apply")
    store.open()
    say("opened")
    store.write(WriteBatch({b"a": b"1"}))
    say("written a")
    try:
        store.write(WriteBatch({b"b": b"2"}))
        say("written b")
    except StorageError:
        say("refused b")
    if script == "on_flush":
        store.flush()
        say("flushed")
        store.close()
        say("closed")
    os._exit(0)


main(Path(sys.argv[1]), sys.argv[2])
