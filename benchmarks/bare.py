"""The bare programs: only the unavoidable work, with the same libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import cbor2

from dengine_sm.files import FramedLog


def apply_chunk(directory: Path, payloads: Sequence[bytes]) -> float:
    """Decode each command, put it into a dict, write one framed record; return the rate."""
    log = FramedLog(directory)
    log.open(1)
    try:
        state: dict[bytes, bytes] = {}
        start = perf_counter()
        for payload in payloads:
            _, key, value, _ = cbor2.loads(payload)
            state[key] = value
        log.append(cbor2.dumps([list(state), list(state.values())]))
        elapsed = perf_counter() - start
    finally:
        log.close()
    return len(payloads) / elapsed


async def _resolve(future: asyncio.Future[None]) -> None:
    future.set_result(None)


async def tasks_and_futures(workers: int, operations: int) -> float:
    """Make a future and a task per operation, from concurrent workers; return the rate."""
    loop = asyncio.get_running_loop()

    async def work() -> None:
        for _ in range(operations):
            future: asyncio.Future[None] = loop.create_future()
            loop.create_task(_resolve(future))  # noqa: RUF006 - the future outlives the task
            await future

    start = perf_counter()
    await asyncio.gather(*[work() for _ in range(workers)])
    return workers * operations / (perf_counter() - start)


async def futures_only(workers: int, operations: int) -> float:
    """Make a future per operation that the loop resolves: stricter than the target asks."""
    loop = asyncio.get_running_loop()

    async def work() -> None:
        for _ in range(operations):
            future: asyncio.Future[None] = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    start = perf_counter()
    await asyncio.gather(*[work() for _ in range(workers)])
    return workers * operations / (perf_counter() - start)


def batches(directory: Path, batched: Sequence[Sequence[tuple[bytes, bytes]]]) -> float:
    """Encode, write and sync one record, decode and put, per batch; return the rate."""
    log = FramedLog(directory)
    log.open(1)
    try:
        state: dict[bytes, bytes] = {}
        start = perf_counter()
        for batch in batched:
            payloads = [cbor2.dumps([1, key, value, None]) for key, value in batch]
            log.append(cbor2.dumps(payloads))
            log.sync()
            for payload in payloads:
                _, key, value, _ = cbor2.loads(payload)
                state[key] = value
        elapsed = perf_counter() - start
    finally:
        log.close()
    return sum(map(len, batched)) / elapsed


async def reads(state: dict[bytes, bytes], keys: Sequence[bytes]) -> float:
    """Await a coroutine around a dict get, from one task; return the rate."""

    async def get(key: bytes) -> bytes | None:
        return state.get(key)

    start = perf_counter()
    for key in keys:
        await get(key)
    return len(keys) / (perf_counter() - start)
