"""A node on three servers that sync always: proposing, reading, catching up.

The node under load is in this process. Where others are said to run, they are two, in
processes of their own: they apply everything too, and share this machine's cores.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs

from benchmarks.cluster_parts import (
    IN_FLIGHT,
    BarePublisher,
    Traffic,
    make_node,
    missing,
    replicas,
    three_servers,
)
from benchmarks.measure import (
    Figure,
    Program,
    Settings,
    compare,
    installed,
    loops,
    run_in,
    take_turns,
)
from benchmarks.proposals import WORKERS, propose_all
from benchmarks.workload import commands, pairs
from dengine_sm import (
    ApplyResult,
    Entry,
    EntryBlock,
    Node,
    ReadConsistency,
    create_state_machine,
)
from dengine_sm.kv import Put, encode_command

BATCH = 1000
_STORED = 1_000_000
"""Commands that a new node finds: enough for its start, some 30 ms, not to count."""
_STORED_BATCH = 100
"""Commands per message that a new node finds: about what concurrent proposers share."""
_SMALL = WORKERS // IN_FLIGHT
"""Commands per message with which as many proposers have as many messages on their way as the
bare program; the default is faster, with fewer of them."""
_OTHERS = 2
_BACKENDS = ("file", "rocksdb")
_PYSYNCOBJ_IN_FLIGHT = {"propose": WORKERS, "propose_many": 4 * BATCH}
"""With all 16,000 in flight, PySyncObj reports that it truncates entries it has applied."""


def run(settings: Settings) -> list[Figure]:
    """Measure everything but failover."""
    if why := missing():
        return [Figure("cluster", "cluster", "cluster of three", "", skipped=why)]
    figures = [figure for loop in loops() for figure in run_in(loop, _loads(settings, loop))]
    figures += run_in("asyncio", _reads(settings))
    for backend in _BACKENDS:
        figures += _catch_up_figures(settings, backend)
    return figures


# Proposing


Load = Callable[[Node, Sequence[bytes]], Awaitable[float]]


async def _propose_many(node: Node, payloads: Sequence[bytes], size: int = BATCH) -> float:
    """Propose batches, 16 at once; return commands per second."""
    batches = iter([payloads[at : at + size] for at in range(0, len(payloads), size)])

    async def work() -> None:
        for batch in batches:
            results = await node.propose_many(batch)
            assert len(results) == len(batch)

    start = perf_counter()
    await asyncio.gather(*[work() for _ in range(IN_FLIGHT)])
    return len(payloads) / (perf_counter() - start)


_LOADS: dict[str, Load] = {"propose": propose_all, "propose_many": _propose_many}
_TITLES = {
    "propose": f"propose, {WORKERS} proposers",
    "propose_many": f"propose_many, {IN_FLIGHT} at once of {BATCH:,}",
}
_TARGETS = {"propose": 0.4, "propose_many": 0.5}


@attrs.frozen
class _Run:
    """What one run of the loads has that others have not."""

    most: int | None = None
    """Most commands in a message; None for the node's default."""
    is_alone: bool = False


@attrs.define
class _Measured:
    rates: dict[str, list[float]]
    batch: int
    """Commands per message, the node's mean."""


async def _loads(settings: Settings, loop: str) -> list[Figure]:
    payloads = {
        "propose": commands(WORKERS * settings.pick(100, 2)),
        "propose_many": commands(BATCH * settings.pick(100, 2)),
    }
    figures: list[Figure] = []
    # uvloop has lines without a target, and without the slow others.
    runs = (_Run(), _Run(most=_SMALL), _Run(is_alone=True))
    for one in runs if loop == "asyncio" else runs[:1]:
        directory = settings.directory / "cluster"
        with three_servers(directory / "servers") as servers:
            section = {"max_batch_entries": one.most} if one.most else {}
            node = make_node(servers, directory / "node", "loaded", **section)
            async with (
                node,
                BarePublisher(servers) as bare,
                replicas(servers, directory, 0 if one.is_alone else _OTHERS) as others,
            ):
                for name, load in _LOADS.items():
                    if one.most and name != "propose":
                        continue
                    measured = await _turns(
                        settings,
                        name,
                        load,
                        payloads[name],
                        node,
                        bare,
                        others,
                        pysyncobj=loop == "asyncio" and one == _Run(),
                    )
                    figures += _load_figures(name, measured, loop, one)
        shutil.rmtree(directory)
    return figures


async def _turns(
    settings: Settings,
    name: str,
    load: Load,
    payloads: Sequence[bytes],
    node: Node,
    bare: BarePublisher,
    others: Sequence[Any],
    *,
    pysyncobj: bool,
) -> _Measured:
    measured = _Measured({}, 1)

    async def ours() -> float:
        before = await Traffic.of(node)
        rate = await load(node, payloads)
        after = await Traffic.of(node)
        measured.batch = after.mean_since(before)
        # What they have left to do must not fall into another program's time.
        for other in others:
            await other.wait_applied(after.commands)
        return rate

    async def bare_program(in_flight: int = IN_FLIGHT) -> float:
        return await bare.rate(payloads, measured.batch, in_flight)

    programs: dict[str, Program] = {"ours": ours, "bare": bare_program}
    if name == "propose":
        # No more than all proposers wait in: that is what is in flight of ours.
        programs["waiting"] = lambda: bare_program(max(1, WORKERS // measured.batch))
    if pysyncobj and installed("pysyncobj"):
        directory = settings.directory / "pysyncobj"
        # Its nodes need a second or two to find a leader.
        for mode in settings.pick(("default", "notified"), ("default",)):
            count = settings.pick(10_000, 300)
            in_flight = _PYSYNCOBJ_IN_FLIGHT[name]
            programs[mode] = partial(_pysyncobj, directory, count, in_flight, mode)
    measured.rates = await take_turns(settings.pick(5, 1), programs)
    return measured


async def _pysyncobj(directory: Path, count: int, in_flight: int, mode: str) -> float:
    directory.mkdir(parents=True)
    with (directory / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.pysyncobj_cluster"),
            *(str(directory), str(count), str(in_flight), mode),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
        output, _ = await process.communicate()
    shutil.rmtree(directory)
    if process.returncode:
        raise RuntimeError(f"benchmarks.pysyncobj_cluster: exit code {process.returncode}")
    return float(json.loads(output)["rate"])


def _load_figures(name: str, measured: _Measured, loop: str, run: _Run) -> list[Figure]:
    suffix = "_alone" * run.is_alone + f"_{loop}" * (loop != "asyncio")
    where = "no other node" if run.is_alone else f"{_OTHERS} other nodes"
    title = _TITLES[name]
    if run.most:
        suffix += f"_{run.most}"
        title += f", at most {run.most} per message"
    main = Figure(
        "cluster",
        f"cluster_{name}{suffix}",
        f"{title} ({loop}, {where})",
        "commands/s",
        bare_is=f"nats-py, the same frames, {IN_FLIGHT} in flight, nobody reads them",
        target=_TARGETS[name] if loop == "asyncio" and not run.is_alone else None,
        loop=loop,
        note=f"{measured.batch} commands per message",
    )
    figures = [compare(main, measured.rates)]
    if "waiting" in measured.rates and not run.most:
        in_flight = max(1, WORKERS // measured.batch)
        waiting = attrs.evolve(
            main,
            name=f"{main.name}_waiting",
            title=f"the same to {WORKERS} commands in flight",
            bare_is=f"nats-py, the same frames, {in_flight} in flight",
            target=None,
        )
        figures.append(compare(waiting, measured.rates, "waiting"))
    if suffix:
        return figures
    skipped = "" if installed("pysyncobj") else "pysyncobj is not installed"
    in_flight = _PYSYNCOBJ_IN_FLIGHT[name]
    for mode, how in {
        "default": "as its documentation starts it",
        "notified": "every command wakes its thread",
    }.items():
        against = attrs.evolve(
            main,
            name=f"{main.name}_pysyncobj_{mode}",
            title=f"{_TITLES[name]} to PySyncObj, {mode}",
            bare_is=f"PySyncObj, three nodes, journal never synced, {in_flight:,} in flight, {how}",
            target=5.0 if mode == "default" else None,
            skipped=skipped,
            note="",
        )
        figures.append(compare(against, measured.rates, mode))
    return figures


# Reading


async def _reads(settings: Settings) -> list[Figure]:
    """Measure 256 readers, which share barriers."""
    state = dict(pairs(settings.pick(10_000, 100)))
    keys = random.Random(2).choices(list(state), k=settings.pick(100_000, 1_000))
    directory = settings.directory / "cluster"
    with three_servers(directory / "servers") as servers:
        node = make_node(servers, directory / "node", "loaded")
        async with node, replicas(servers, directory, _OTHERS):
            puts = [encode_command(Put(key, value)) for key, value in state.items()]
            await node.propose_many(puts)
            assert await node.read(keys[0]) == state[keys[0]]
            programs: dict[str, Program] = {
                "ours": partial(_read_all, node.read, keys, ReadConsistency.LINEARIZABLE),
                "bare": partial(_read_all, node.read, keys, ReadConsistency.EVENTUAL),
                "turns": partial(
                    _read_all, node.read, keys, ReadConsistency.EVENTUAL, in_turns=True
                ),
                "round": partial(_rounds, node, settings.pick(300, 5)),
            }
            rates = await take_turns(settings.pick(7, 1), programs)
            through_client = await _reads_through_client(settings, node, keys)
    shutil.rmtree(directory)
    main = Figure(
        "cluster",
        "cluster_read",
        f"linearizable read, {WORKERS} readers",
        "reads/s",
        bare_is="eventual reads by the same readers, which then never wait for anything",
        target=0.3,
    )
    turns = attrs.evolve(
        main,
        name="cluster_read_turns",
        title="the same to readers that let others have their turn",
        bare_is="eventual reads by the same readers, a turn of the event loop after each",
        target=None,
    )
    bound = attrs.evolve(
        main,
        name="cluster_read_bound",
        title=f"the same to {WORKERS} per read barrier",
        bare_is=f"{WORKERS} times the rate of read barriers, one after the other",
        target=None,
    )
    served = attrs.evolve(
        main,
        name="cluster_read_client",
        title=f"linearizable read through a client, {WORKERS} readers",
        bare_is="eventual reads through the same client",
        skipped="" if through_client else "dengine-sm[server] is not installed",
    )
    figures = [compare(main, rates), compare(turns, rates, "turns"), compare(bound, rates, "round")]
    return [*figures, compare(served, through_client) if through_client else served]


async def _reads_through_client(
    settings: Settings, node: Node, keys: Sequence[bytes]
) -> dict[str, list[float]]:
    """Measure readers that are not in the node's process, but call its server."""
    if not installed("grpc"):
        return {}
    from dengine_sm.client import Client
    from dengine_sm.server import NodeServer

    few = keys[: settings.pick(10_000, 200)]
    async with NodeServer(node) as server, Client(str(server.address)) as client:
        programs: dict[str, Program] = {
            "ours": partial(_read_all, client.get, few, ReadConsistency.LINEARIZABLE),
            "bare": partial(_read_all, client.get, few, ReadConsistency.EVENTUAL),
        }
        return await take_turns(settings.pick(5, 1), programs)


async def _read_all(
    read: Callable[..., Awaitable[bytes | None]],
    keys: Sequence[bytes],
    consistency: ReadConsistency,
    *,
    in_turns: bool = False,
) -> float:
    waiting = iter(keys)

    async def work() -> None:
        for key in waiting:
            await read(key, consistency=consistency)
            if in_turns:
                await asyncio.sleep(0)

    start = perf_counter()
    await asyncio.gather(*[work() for _ in range(WORKERS)])
    return len(keys) / (perf_counter() - start)


async def _rounds(node: Node, count: int) -> float:
    """Return how many reads a second there can be when every round serves all readers."""
    log: Any = node._log  # the node has no call for a barrier without a read
    start = perf_counter()
    for _ in range(count):
        await log.read_barrier()
    return WORKERS * count / (perf_counter() - start)


# Catching up


def _catch_up_figures(settings: Settings, backend: str) -> list[Figure]:
    figure = Figure(
        "cluster",
        f"cluster_catch_up_{backend}",
        f"{backend}: a new node catches up",
        "commands/s",
        bare_is="apply_chunk of the same entries in the same chunks",
        target=0.5,
    )
    if backend == "rocksdb" and not installed("rocksdict"):
        return [attrs.evolve(figure, skipped="rocksdict is not installed")]
    return [run_in("asyncio", _catch_up(settings, backend, figure))]


async def _catch_up(settings: Settings, backend: str, figure: Figure) -> Figure:
    payloads = commands(settings.pick(_STORED, 2_000))
    directory = settings.directory / "cluster"
    sizes: list[int] = []
    with three_servers(directory / "servers") as servers:
        async with make_node(servers, directory / "node", "first") as node:
            await _propose_many(node, payloads, _STORED_BATCH)

        async def ours() -> float:
            late = make_node(servers, directory / "late", "late", backend)
            sizes[:] = []
            _record_chunks(late, sizes)
            start = perf_counter()
            async with late:
                elapsed = perf_counter() - start
                assert late.handler.last_applied.index == len(payloads)
            shutil.rmtree(directory / "late")
            return len(payloads) / elapsed

        async def bare() -> float:
            try:
                return await _apply_directly(backend, directory / "bare", payloads, sizes)
            finally:
                shutil.rmtree(directory / "bare")

        rates = await take_turns(settings.pick(5, 1), {"ours": ours, "bare": bare})
    shutil.rmtree(directory)
    mean = round(len(payloads) / len(sizes))
    return compare(attrs.evolve(figure, note=f"{mean} entries per chunk"), rates)


def _record_chunks(node: Node, sizes: list[int]) -> None:
    machine: Any = node.handler.machine
    apply_chunk = machine.apply_chunk

    async def recording(chunk: Sequence[Entry]) -> Sequence[ApplyResult]:
        sizes.append(len(chunk))
        return await apply_chunk(chunk)  # type: ignore[no-any-return]  # the machine's own

    machine.apply_chunk = recording


async def _apply_directly(
    backend: str, directory: Path, payloads: Sequence[bytes], sizes: Sequence[int]
) -> float:
    machine: Any = create_state_machine(backend, directory, validate="structure")
    machine.start()
    # In the shape that a log hands on, which is the fastest one.
    stored = EntryBlock.stamped(1, 1, 1_700_000_000_000, payloads)
    ends = accumulate(sizes, initial=0)
    chunks = [stored[first:end] for first, end in pairwise(ends)]
    try:
        start = perf_counter()
        for chunk in chunks:
            await machine.apply_chunk(chunk)
        return len(payloads) / (perf_counter() - start)
    finally:
        machine.stop()
