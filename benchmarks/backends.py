"""The backends of the plugins, each against its bare engine in the same run.

Applying, reading, scanning, snapshots, opening, and whether a store slows down as it grows.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs
import cbor2

from benchmarks.engines import ENGINES, PACKAGES, Engine, Pair
from benchmarks.measure import Figure, Settings, compare, installed, run_in, take_turns
from benchmarks.workload import VALUE_BYTES, entries, pairs
from dengine_sm import StateMachine, create_state_machine
from dengine_sm.kv import Put, encode_command

_APPLY_TARGETS = {"rocksdb": 0.45, "lmdb": 0.45, "sqlite": 0.6}
_BLOCK = 1024
_GROWING = ("rocksdb", "lmdb")


def run_applies(settings: Settings) -> list[Figure]:
    """Measure chunks of 10,000 puts, and single reads of them."""
    return _of_each(settings, _applies_and_reads)


def run_large(settings: Settings) -> list[Figure]:
    """Measure a store of a million keys: scan, snapshot, install, memory, opening."""
    return _of_each(settings, _large)


def run_growth(settings: Settings) -> list[Figure]:
    """Measure the apply rate while a store grows to five million keys."""
    return _of_each(settings, _growth, _GROWING)


def _of_each(
    settings: Settings,
    work: Callable[[Settings, str, Path], list[Figure]],
    names: Iterable[str] = ENGINES,
) -> list[Figure]:
    figures = []
    for name in names:
        if not installed(PACKAGES[name]):
            skipped = f"{PACKAGES[name]} is not installed"
            figures.append(Figure("backends", name, name, "", skipped=skipped))
            continue
        directory = settings.directory / name
        directory.mkdir()
        figures += work(settings, name, directory)
        shutil.rmtree(directory)
    return figures


def _machine(name: str, directory: Path) -> Any:
    machine: StateMachine = create_state_machine(name, directory, validate="structure")
    machine.start()
    return machine


@contextmanager
def _engine(name: str, directory: Path) -> Iterator[Engine]:
    engine = ENGINES[name](directory)
    try:
        yield engine
    finally:
        engine.close()


# Applying and reading


def _applies_and_reads(settings: Settings, name: str, directory: Path) -> list[Figure]:
    size, chunks = settings.pick(10_000, 100), settings.pick(15, 2)
    data = pairs(size * (chunks + 1))
    commands = [encode_command(Put(key, value)) for key, value in data]
    parts = [commands[first : first + size] for first in range(0, len(commands), size)]
    keys = [key for key, _ in random.Random(2).sample(data, settings.pick(20_000, 100))]
    machine = _machine(name, directory / "ours")
    with _engine(name, directory / "bare") as engine:
        writing = {"ours": _applies(machine, parts), "bare": _writes(engine, parts)}
        applied = run_in("asyncio", take_turns(chunks, writing))
        reading = {"ours": _reads(machine.get, keys), "bare": _reads(engine.get, keys)}
        read = run_in("asyncio", take_turns(settings.pick(9, 1), reading))
    machine.stop()
    return [
        _compared(
            f"{name}_apply_chunk",
            f"{name}: apply_chunk, {size:,} x {VALUE_BYTES} B",
            "entries/s",
            applied,
            _APPLY_TARGETS[name],
            "cbor2.loads per command, one write batch of the bare binding",
        ),
        _compared(
            f"{name}_get",
            f"{name}: get, {len(data):,} keys",
            "reads/s",
            read,
            0.5,
            "get of the bare binding",
        ),
    ]


def _applies(machine: Any, parts: Iterable[Sequence[bytes]]) -> Any:
    """Return a program that applies the next part each time."""
    remaining = iter(parts)

    async def run() -> float:
        first_index = machine.last_applied().index + 1
        chunk = entries(next(remaining), first_index=first_index)
        start = perf_counter()
        await machine.apply_chunk(chunk)
        return len(chunk) / (perf_counter() - start)

    return run


def _writes(engine: Engine, parts: Iterable[Sequence[bytes]]) -> Any:
    """Return a program that decodes the next part and writes it as one batch."""
    remaining = iter(parts)

    async def run() -> float:
        payloads = next(remaining)
        start = perf_counter()
        batch: dict[bytes, bytes] = {}
        for payload in payloads:
            _, key, value, _ = cbor2.loads(payload)
            batch[key] = value
        engine.write(list(batch.items()))
        return len(payloads) / (perf_counter() - start)

    return run


def _reads(get: Callable[[bytes], bytes | None], keys: Sequence[bytes]) -> Any:
    async def run() -> float:
        start = perf_counter()
        for key in keys:
            get(key)
        return len(keys) / (perf_counter() - start)

    return run


# A store of a million keys


@attrs.define
class _Memory:
    """The growth of anonymous memory while something runs: mapped files are the kernel's."""

    before: int = 0
    peak: int = 0
    _over: threading.Event = attrs.field(factory=threading.Event)

    @property
    def extra_mib(self) -> float:
        return max(0, self.peak - self.before) / (1 << 20)

    @staticmethod
    def now() -> int:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) << 10
        return 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._over.clear()
        self.before = self.peak = self.now()
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, self.now())


def _data(count: int, *, in_order: bool = False) -> Iterator[list[Pair]]:
    """Yield chunks of ten thousand, in key order or at random, without keeping them."""
    value = random.Random(1).randbytes(VALUE_BYTES - 8)
    step = 1 if in_order else 7_919_777  # has no factor in common with round numbers
    for first in range(0, count, 10_000):
        yield [
            (b"key-%012d" % (number * step % count), number.to_bytes(8, "big") + value)
            for number in range(first, min(first + 10_000, count))
        ]


async def _fill(machine: Any, count: int, *, in_order: bool = False) -> list[float]:
    """Apply puts of `_data`; return the rate of every chunk."""
    index, rates = machine.last_applied().index + 1, []
    for part in _data(count, in_order=in_order):
        chunk = entries([encode_command(Put(k, v)) for k, v in part], first_index=index)
        start = perf_counter()
        await machine.apply_chunk(chunk)
        rates.append(len(chunk) / (perf_counter() - start))
        index += len(chunk)
    machine.flush()
    return rates


def _large(settings: Settings, name: str, directory: Path) -> list[Figure]:
    count, small = settings.pick(1_000_000, 2_000), settings.pick(10_000, 200)
    return run_in("asyncio", _measure_large(name, directory, count, small, settings.pick(3, 1)))


async def _measure_large(
    name: str, directory: Path, count: int, small: int, rounds: int
) -> list[Figure]:
    machine = _machine(name, directory / "ours")
    await _fill(machine, count)
    with _engine(name, directory / "bare") as engine:
        for part in _data(count):
            engine.write(part)
        scan = await _scans(machine, engine, count, rounds)
    figures = [_compared(f"{name}_scan", f"{name}: scan of {count:,} keys", "keys/s", scan, 0.5)]
    figures += await _snapshot_figures(name, machine, directory, count)
    machine.stop()
    figures += await _opening_figures(name, directory, count, small, rounds)
    return figures


def _compared(
    name: str, title: str, unit: str, rates: dict[str, list[float]], target: float, bare: str = ""
) -> Figure:
    is_bare = bare or "the bare binding"
    return compare(Figure("backends", name, title, unit, bare_is=is_bare, target=target), rates)


async def _scans(machine: Any, engine: Engine, count: int, rounds: int) -> dict[str, list[float]]:
    async def ours() -> float:
        start = perf_counter()
        found = machine.scan_prefix(b"")
        elapsed = perf_counter() - start
        assert len(found.entries) == count
        return count / elapsed

    async def bare() -> float:
        start = perf_counter()
        found = tuple(engine.scan())
        elapsed = perf_counter() - start
        assert len(found) == count
        return count / elapsed

    return await take_turns(rounds, {"ours": ours, "bare": bare})


async def _snapshot_figures(name: str, machine: Any, directory: Path, count: int) -> list[Figure]:
    """Measure writing and installing a snapshot, in time and memory."""
    memory, snapshot = _Memory(), directory / "snapshot"
    with memory.watched():
        start = perf_counter()
        await machine.generate_snapshot_data(snapshot, machine.last_applied())
        written_s = perf_counter() - start
    written_mib = memory.extra_mib
    bare_write_s = _write_bare(machine, directory / "bare-snapshot")

    other = _machine(name, directory / "other")
    metadata = machine.snapshot_metadata()
    with memory.watched():
        start = perf_counter()
        await other.apply_snapshot_from_file(metadata, snapshot)
        installed_s = perf_counter() - start
    installed_mib = memory.extra_mib
    assert other.len() == count
    other.stop()
    bare_install_s = _install_bare(snapshot, directory / "bare-install")
    shutil.rmtree(directory / "other")
    shutil.rmtree(snapshot)
    return [
        _compared(
            f"{name}_snapshot",
            f"{name}: write a snapshot of {count:,} keys",
            "keys/s",
            {"ours": [count / written_s], "bare": [count / bare_write_s]},
            1 / 3,
            "encode the same entries, write and sync the same bytes",
        ),
        _compared(
            f"{name}_install",
            f"{name}: install a snapshot of {count:,} keys",
            "keys/s",
            {"ours": [count / installed_s], "bare": [count / bare_install_s]},
            1 / 3,
            "read and decode the same entries, write and sync the same bytes",
        ),
        _memory_figure(f"{name}_snapshot_memory", f"{name}: memory to write it", written_mib),
        _memory_figure(f"{name}_install_memory", f"{name}: memory to install it", installed_mib),
    ]


def _memory_figure(name: str, title: str, extra_mib: float) -> Figure:
    return Figure(
        "backends",
        name,
        title,
        "MiB, limit / extra as ratio",
        ours=extra_mib,
        bare=64.0,
        bare_is="the limit of 64 MiB",
        ratio=64.0 / max(extra_mib, 0.1),
        target=1.0,
        rounds=1,
    )


def _write_bare(machine: Any, path: Path) -> float:
    """Encode blocks of the same entries, write and sync them; return the seconds."""
    rows = machine.scan_prefix(b"").entries
    start = perf_counter()
    with path.open("wb") as file:
        for first in range(0, len(rows), _BLOCK):
            block = rows[first : first + _BLOCK]
            file.write(cbor2.dumps([[k for k, _ in block], [v for _, v in block], []]))
        file.flush()
        os.fsync(file.fileno())
    elapsed = perf_counter() - start
    path.unlink()
    return elapsed


def _install_bare(snapshot: Path, path: Path) -> float:
    """Read and decode a snapshot's entries, write and sync the same bytes."""
    [source] = snapshot.glob("entries.*")
    start = perf_counter()
    with source.open("rb") as file, path.open("wb") as copy:
        decoder = cbor2.CBORDecoder(file)
        while True:
            try:
                block = decoder.decode()
            except (EOFError, cbor2.CBORDecodeEOF):
                break
            if len(block) == 3:
                copy.write(b"".join(block[0]) + b"".join(block[1]))
        copy.flush()
        os.fsync(copy.fileno())
    elapsed = perf_counter() - start
    path.unlink()
    return elapsed


async def _opening_figures(
    name: str, directory: Path, count: int, small: int, rounds: int
) -> list[Figure]:
    """Measure starting on many and on few keys, after a clean stop."""
    few = _machine(name, directory / "few")
    await _fill(few, small)
    few.stop()

    async def ours() -> float:
        return 1 / await _starting(name, directory / "ours")

    async def ours_few() -> float:
        return 1 / await _starting(name, directory / "few")

    async def bare() -> float:
        start = perf_counter()
        engine = ENGINES[name](directory / "bare")
        engine.get(b"key-%012d" % 1)
        for _ in range(2):  # as a start does: of what a kill may have left in the directory
            _sync(directory / "bare")
        elapsed = perf_counter() - start
        engine.close()
        return 1 / elapsed

    programs = {"ours": ours, "bare": bare, "few": ours_few}
    rates = await take_turns(3 * rounds, programs)
    growth = statistics.median(rates["ours"]) / statistics.median(rates["few"])
    return [
        _compared(
            f"{name}_open",
            f"{name}: start on {count:,} keys",
            "starts/s",
            rates,
            1 / 3,
            "open of the bare engine, one get, two syncs of its directory",
        ),
        Figure(
            "backends",
            f"{name}_open_growth",
            f"{name}: start on {small:,} keys / on {count:,}",
            "quotient of seconds",
            ours=statistics.median(rates["ours"]),
            bare=statistics.median(rates["few"]),
            bare_is=f"the same on {small:,} keys",
            ratio=growth,
            rounds=3 * rounds,
        ),
    ]


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _starting(name: str, directory: Path) -> float:
    machine: Any = create_state_machine(name, directory, validate="structure")
    start = perf_counter()
    machine.start()
    machine.get(b"key-%012d" % 1)
    elapsed = perf_counter() - start
    machine.stop()
    return elapsed


# Growth


def _growth(settings: Settings, name: str, directory: Path) -> list[Figure]:
    count = settings.pick(5_000_000, 20_000)
    return [
        _growth_figure(name, directory / f"in-order-{in_order}", count, in_order=in_order)
        for in_order in (True, False)
    ]


def _growth_figure(name: str, directory: Path, count: int, *, in_order: bool) -> Figure:
    machine, memory = _machine(name, directory), _Memory()
    with memory.watched():
        rates = asyncio.run(_fill(machine, count, in_order=in_order))
    assert machine.len() == count
    machine.stop()
    shutil.rmtree(directory)
    tenth = max(1, len(rates) // 10)
    first = statistics.median(islice(rates, tenth))
    last = statistics.median(rates[-tenth:])
    order = "in order" if in_order else "at random"
    return Figure(
        "backends",
        f"{name}_growth_{'in_order' if in_order else 'at_random'}",
        f"{name}: apply rate towards {count:,} keys {order} / at the start",
        "entries/s",
        ours=last,
        bare=first,
        bare_is="the rate of the first tenth",
        ratio=last / first,
        target=0.5,
        rounds=1,
        note=f"memory grew by {memory.extra_mib:.0f} MiB, mapped files not counted",
    )
