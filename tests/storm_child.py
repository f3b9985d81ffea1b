"""A process for `test_storm.py` to kill, and the log that it and the tests derive from indices.

Run as `python storm_child.py DIRECTORY SEED DURABILITY`; it reports on stdout, one line for
each fact: `opening`, `ready I`, `begin I` (the chunk that ends with I is handed over),
`applied I` (it returned), `flushed I`, `installing I`.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
from pathlib import Path

import attrs

from dengine_sm.backends.file import FileOptions, create_file
from dengine_sm.kv import CompareAndSwap, Delete, KeyValueStateMachine, Put, encode_command
from dengine_sm.model import Durability, Entry, LogId

KEYS = [b"", *(b"key-%d" % number for number in range(300))]


def machine_on(directory: Path, durability: Durability) -> KeyValueStateMachine:
    """Return a machine whose segments roll and whose checkpoints run all the time."""
    options = FileOptions(durability, segment_bytes=4096 * 4, checkpoint_bytes=4096 * 8)
    return create_file(directory, options)


def term_of(index: int) -> int:
    return 1 + index // 37


def entry_at(index: int) -> Entry:
    """Return the one entry that every process derives for an index."""
    if index % 29 == 0:
        # No command and no new time, so that it may also be skipped by its id.
        return Entry(index, term_of(index), entry_at(index - 1).timestamp_ms, b"")
    rng = random.Random(index)
    timestamp_ms = 1_000_000 + index * 10 - rng.choice((0, 0, 0, 500))
    return Entry(index, term_of(index), timestamp_ms, _command(index, rng))


def _command(index: int, rng: random.Random) -> bytes:
    key = rng.choice(KEYS)
    value = rng.choice((b"", b"%d" % (index % 3), b"%d" % index * rng.randint(1, 60)))
    match rng.randrange(12):
        case 0 | 1:
            return encode_command(Delete(key))
        case 2 | 3:
            return encode_command(CompareAndSwap(key, rng.choice((None, b"0", b"1")), value))
        case 4:
            return encode_command(CompareAndSwap(key, rng.choice((b"1", b"2")), None))
        case 5 | 6:
            return encode_command(Put(key, value, rng.choice((1, 50, 700, 5000, 0))))
        case 7:
            return b"\xff no command"
    return encode_command(Put(key, value))


@attrs.define
class Model:
    """What the contract says the state is, by the simplest means (CONTRACT §4, DET-3)."""

    index: int = 0
    clock_ms: int = 0
    state: dict[bytes, tuple[bytes, int | None]] = attrs.field(factory=dict)

    def advance(self, index: int) -> None:
        for step in range(self.index + 1, index + 1):
            self._apply(entry_at(step))
        self.index = index

    def _apply(self, entry: Entry) -> None:
        self.clock_ms = max(self.clock_ms, entry.timestamp_ms)
        for key, (_, deadline) in list(self.state.items()):
            if deadline is not None and deadline <= self.clock_ms:
                del self.state[key]
        match _decoded(entry.data):
            case Put(key, value, None):
                self.state[key] = value, None
            case Put(key, value, int(ttl_ms)) if ttl_ms >= 1:
                self.state[key] = value, self.clock_ms + ttl_ms
            case Delete(key):
                self.state.pop(key, None)
            case CompareAndSwap(key, expected, new) if self.value(key) == expected:
                self.state.pop(key, None)
                if new is not None:
                    self.state[key] = new, None

    def value(self, key: bytes) -> bytes | None:
        return self.state[key][0] if key in self.state else None

    def entries(self) -> tuple[tuple[bytes, bytes], ...]:
        return tuple((key, self.state[key][0]) for key in sorted(self.state))


def _decoded(data: bytes):
    from dengine_sm.kv import decode_command

    try:
        return decode_command(data)
    except ValueError:
        return None


def report(fact: str, index: int) -> None:
    """One write, so that a kill never cuts a line."""
    os.write(1, f"{fact} {index}\n".encode())


class Writer:
    """Applies, flushes and installs at random, until it is killed."""

    def __init__(self, machine: KeyValueStateMachine, directory: Path, seed: int) -> None:
        self.machine = machine
        self.aside = directory.with_name(f"{directory.name}-snapshot")
        self.rng = random.Random(seed)

    async def work(self) -> None:
        while True:
            await self.apply()
            match self.rng.randrange(120):
                case 0 | 1 | 2 | 3 | 4 | 5:
                    await self.flush()
                case 6:
                    await self.install()

    async def apply(self) -> None:
        first = self.machine.last_applied().index + 1
        if first % 29 == 0:
            report("begin", first)
            self.machine.persist_last_applied(LogId(term_of(first), first))
            report("flushed", first)
            return
        last = first + self.rng.choice((0, 0, 1, 3, 20))
        # Duplicates in front, now and then.
        start = max(1, first - self.rng.choice((0, 0, 0, 2)))
        report("begin", last)
        await self.machine.apply_chunk([entry_at(index) for index in range(start, last + 1)])
        report("applied", last)

    async def flush(self) -> None:
        last = self.machine.last_applied().index
        match self.rng.randrange(4):
            case 0:
                self.machine.flush()
            case 1:
                await self.machine.flush_async()
            case 2:
                self.machine.save_hard_state()
            case 3:
                self.machine.persist_last_applied(self.machine.last_applied())
        report("flushed", last)

    async def install(self) -> None:
        """Install a snapshot of the state as it is: everything is replaced by its equal."""
        shutil.rmtree(self.aside, ignore_errors=True)
        last_applied = self.machine.last_applied()
        await self.machine.generate_snapshot_data(self.aside, last_applied)
        metadata = self.machine.snapshot_metadata()
        report("installing", last_applied.index)
        await self.machine.apply_snapshot_from_file(metadata, self.aside)
        report("flushed", last_applied.index)


def main() -> None:
    directory, seed, durability = Path(sys.argv[1]), int(sys.argv[2]), Durability(sys.argv[3])
    machine = machine_on(directory, durability)
    report("opening", 0)
    machine.start()
    report("ready", machine.last_applied().index)
    asyncio.run(Writer(machine, directory, seed).work())


if __name__ == "__main__":
    main()
