"""Real processes killed many times on one directory: nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import random
import select
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.client import Client
from dengine_sm.errors import ClientError
from dengine_sm.kv import CompareAndSwap, encode_command
from dengine_sm.model import Durability

pytestmark = [pytest.mark.storm, pytest.mark.timeout(200)]

CHILD = Path(__file__).with_name("storm_child.py")
SEED = 20240607

_spec = importlib.util.spec_from_file_location("storm_child", CHILD)
assert _spec is not None and _spec.loader is not None
child = importlib.util.module_from_spec(_spec)
sys.modules["storm_child"] = child
_spec.loader.exec_module(child)


@attrs.define
class Reports:
    """What a killed writer said before it died."""

    ready: int | None = None
    begun: set[int] = attrs.field(factory=set)
    applied: int = 0
    flushed: int = 0
    installing: int = 0

    def take(self, line: str) -> None:
        fact, index = line.split()
        match fact:
            case "ready":
                self.ready = int(index)
            case "begin":
                self.begun.add(int(index))
            case "applied" | "flushed" | "installing":
                setattr(self, fact, max(getattr(self, fact), int(index)))


def run_and_kill(
    directory: Path, rng: random.Random, durability: Durability, *, while_opening: bool
) -> Reports:
    """Run a writer and kill it: after so many lines and then so many microseconds."""
    lines = 1 if while_opening else rng.randint(2, 350)
    pause_s = rng.uniform(0, 0.006 if while_opening else 0.001)
    command = [sys.executable, str(CHILD), str(directory), str(rng.random())[2:], durability.value]
    reports = Reports()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            for _ in range(lines):
                line = process.stdout.readline()
                assert line, process.stderr.read().decode()
                reports.take(line.decode())
            select.select([], [], [], pause_s)  # the instant of the kill, nothing waits for it
        finally:
            process.kill()
        for line in process.stdout.read().decode().splitlines():
            reports.take(line)
    return reports


@contextlib.contextmanager
def reopened(directory: Path, durability: Durability) -> Iterator[Any]:
    """Open a copy, so that the next writer recovers from what the kill left."""
    copy = directory.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    machine = child.machine_on(copy, durability)
    machine.start()
    try:
        yield machine
    finally:
        machine.stop()


@pytest.mark.parametrize("durability", [Durability.ON_FLUSH, Durability.PER_APPLY])
def test_killed_writers_lose_nothing_and_tear_nothing(tmp_path, durability):
    directory = tmp_path / "machine"
    model = child.Model()
    promised = installed = 0
    checkpoints, purges = 0, 0

    for kill in range(52):
        seed = f"{SEED}/{durability.value}/{kill}"
        rng = random.Random(seed)
        while_opening = kill % 4 == 3
        before = model.index
        reports = run_and_kill(directory, rng, durability, while_opening=while_opening)
        promised = max(promised, reports.flushed)
        if durability is Durability.PER_APPLY:
            promised = max(promised, reports.applied)
        installed = max(installed, reports.installing)

        with reopened(directory, durability) as machine:
            last = machine.last_applied()
            where = f"seed {seed!r}: recovered {last}, promised {promised}, {reports}"
            assert last.index >= promised, f"CRASH-2: {where}"
            assert last.index in {before, *reports.begun}, f"CRASH-3: {where}"
            assert reports.ready in (None, before), f"CRASH-4: {where}"
            model.advance(last.index)
            observed = machine.scan_prefix(b"")
            assert last == observed.last_applied
            assert model.entries() == observed.entries, f"CRASH-1: {where}"
            assert len(model.state) == machine.len(), f"CRASH-1: {where}"
            for index in range(max(installed, 1), last.index + 1):
                assert child.term_of(index) == machine.entry_term(index), f"LOG-2: {index}, {where}"
            assert machine.entry_term(last.index + 1) is None
        checkpoints += any(directory.glob("checkpoint-*"))
        purges += not any(directory.glob("log/*-00000000000000000001*"))

    assert promised > 500
    assert checkpoints > 10 and purges > 10, "the storm met no checkpoints"


CONFIG = """
[node]
data_dir = "{data_dir}"
[state_machine]
backend = "{backend}"
validate = "structure"
{options}
[log.options]
segment_bytes = 4096
[snapshot]
every_entries = 100
keep_log_entries = 0
[server]
listen = "127.0.0.1:0"
"""
FILE_OPTIONS = """
[state_machine.options]
segment_bytes = 16384
checkpoint_bytes = 32768
"""
WRITERS = 12


@attrs.define
class NodeProcess:
    """A node to be killed."""

    process: subprocess.Popen[bytes]

    async def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, self.process.stderr.read().decode()
        return json.loads(line)

    @classmethod
    @contextlib.contextmanager
    def of(cls, config: Path) -> Iterator[NodeProcess]:
        command = [sys.executable, "-m", "dengine_sm.cli", "run", "--json", "--config", str(config)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
            try:
                yield cls(process)
            finally:
                process.kill()


@attrs.define
class Writes:
    """What the writers tried, and what they were told."""

    proposed: int = 0
    answered: int = 0
    acked: dict[bytes, bytes] = attrs.field(factory=dict)
    """Keys of their own, each written once."""
    counter_tried: int = 0
    counter_acked: int = 0
    chains: dict[int, int] = attrs.field(factory=dict)
    """Per writer, the newest link of its chain that was acknowledged."""
    kill_after: int = 0
    due: asyncio.Event = attrs.field(factory=asyncio.Event)

    def answer(self) -> None:
        self.answered += 1
        self.kill_after -= 1
        if self.kill_after <= 0:
            self.due.set()


class LoadWriter:
    """Creates keys, extends its chain and raises the common counter, until the node is gone."""

    def __init__(self, number: int, run: int, client: Client, writes: Writes) -> None:
        self.number = number
        self.run = run
        self.client = client
        self.writes = writes
        self.rng = random.Random(f"{SEED}/{number}/{run}")

    async def work(self) -> None:
        with contextlib.suppress(ClientError):
            await self.find_link()
            for number in range(1_000_000):
                await self.create(number)
                await self.link()
                await self.count()
                if self.rng.random() < 0.03:
                    await self.client.take_snapshot()

    async def create(self, number: int) -> None:
        key = b"own/%d/%d/%d" % (self.number, self.run, number)
        self.writes.proposed += 1
        if number % 2:
            await self.client.put(key, b"value of " + key)
        else:
            command = encode_command(CompareAndSwap(key, None, b"value of " + key))
            [result] = await self.client.apply([command])
            assert result.succeeded, f"{key!r} was there before it was written"
        self.writes.acked[key] = b"value of " + key
        self.writes.answer()

    async def find_link(self) -> None:
        """The link under way at the kill is there or not; all before it is."""
        value = await self.client.get(b"chain/%d" % self.number)
        self.observed_link = int(value or b"0")
        acked = self.writes.chains.get(self.number, 0)
        assert self.observed_link in (acked, acked + 1), f"writer {self.number}: lost or twice"

    async def link(self) -> None:
        key, link = b"chain/%d" % self.number, self.observed_link
        expected = b"%d" % link if link else None
        self.writes.proposed += 1
        # Before the call: what fails from here on is one link at most.
        self.writes.chains[self.number] = link
        assert await self.client.compare_and_swap(key, expected, b"%d" % (link + 1))
        self.observed_link = self.writes.chains[self.number] = link + 1
        self.writes.answer()

    async def count(self) -> None:
        value = await self.client.get(b"counter")
        self.writes.proposed += 1
        self.writes.counter_tried += 1
        new = b"%d" % (int(value or b"0") + 1)
        if await self.client.compare_and_swap(b"counter", value, new):
            self.writes.counter_acked += 1
        else:
            self.writes.counter_tried -= 1
        self.writes.answer()


@contextlib.asynccontextmanager
async def client_of(ready: dict[str, Any]) -> AsyncIterator[Client]:
    async with Client(ready["listen"], timeout_s=60) as client:
        await client.wait_ready()
        yield client


async def check_everything(client: Client, writes: Writes, where: str) -> dict[str, Any]:
    """Compare the node with what was acknowledged; return its status."""
    entries: dict[bytes, bytes] = {}
    async for page in client.scan_pages(b"", page_entries=10_000):
        entries.update(page.entries)
    lost = [key for key, value in writes.acked.items() if entries.get(key) != value]
    assert not lost, f"{len(lost)} acknowledged writes are lost, as {lost[:3]!r}: {where}"
    counter = int(entries.get(b"counter", b"0"))
    assert writes.counter_acked <= counter <= writes.counter_tried, f"counter {counter}: {where}"
    for number, acked in writes.chains.items():
        link = int(entries.get(b"chain/%d" % number, b"0"))
        assert link in (acked, acked + 1), f"chain {number} is at {link}, acked {acked}: {where}"
    status = await client.status()
    # Each log entry is one proposal: one that was applied twice would be one too many.
    last = status["last_applied"]["index"]
    assert writes.answered <= last <= writes.proposed, f"{last} entries: {where}"
    assert status["failure"] is None
    return status


async def load_until(client: Client, writes: Writes, run: int, process: Any) -> None:
    """Put load on the node, kill it in the midst of it, and wait for the writers to notice."""
    writers = [LoadWriter(number, run, client, writes) for number in range(WRITERS)]
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.work())
        killer = group.create_task(writes.due.wait())
        await killer
        process.kill()


@pytest.mark.parametrize(
    ("backend", "kills"),
    [("file", 63), ("memory", 13), ("rocksdb", 13), ("lmdb", 13), ("sqlite", 13)],
)
async def test_killed_nodes_keep_every_acknowledged_write_once(tmp_path, backend, kills):
    config = tmp_path / "node.toml"
    options = FILE_OPTIONS if backend == "file" else ""
    data_dir = tmp_path / "data"
    config.write_text(CONFIG.format(data_dir=data_dir, backend=backend, options=options))
    writes = Writes()
    terms: list[int] = []
    snapshots = purged = 0

    for run in range(kills):
        rng = random.Random(f"{SEED}/{backend}/{run}")
        where = f"seed '{SEED}/{backend}/{run}', {len(writes.acked)} keys acked"
        with NodeProcess.of(config) as node:
            if run % 5 == 4:
                # While it starts, or recovers.
                wait_s = rng.uniform(0, 0.8)
                select.select([node.process.stdout], [], [], wait_s)
                continue
            ready = await node.ready()
            async with client_of(ready) as client:
                status = await check_everything(client, writes, where)
                # Some live long enough for the policy's own snapshots.
                most = 1500 if run % 10 == 0 else rng.randint(1, 400)
                writes.kill_after, writes.due = most, asyncio.Event()
                await load_until(client, writes, run, node.process)
            snapshots += status["snapshot"] is not None
            purged = max(purged, status["first_index"])
            terms.append(status["last_log_id"]["term"])
            # Each earlier run wrote something, in the term of its own open.
            assert terms == sorted(set(terms)), f"the term did not rise: {terms}, {where}"

    with NodeProcess.of(config) as node:
        async with client_of(await node.ready()) as client:
            await check_everything(client, writes, "at the end")
            [result] = await client.apply([b""])
            after = await client.status()
    assert result.succeeded
    assert after["last_log_id"]["term"] > terms[-1]
    assert after["last_log_id"]["term"] > len(terms), "an open did not raise the term"
    assert len(writes.acked) > 300 and writes.counter_acked > 50
    assert snapshots and purged > 1, "the storm met no snapshot and no purge"
