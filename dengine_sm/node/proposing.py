"""Propose commands: who comes together shares an append, and each learns what applying gave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence

from dengine_sm.config import NodeSection
from dengine_sm.errors import DEngineError, NotRunningError, ProposalOutcomeUnknown
from dengine_sm.futures import look_at_error
from dengine_sm.log.contract import CommitLog
from dengine_sm.model import ApplyResult
from dengine_sm.node.proposals import Block, ProposalTracker, Singles, Waiter


class Proposer:
    """Appends what is proposed to a log, and counts what is in flight.

    Args:
        log: may be opened later, before `begin`.
        sizes: of batches, and of what may be in flight.
        on_appended: told the last index of every append.
        refusal: returns what is raised while nothing can be proposed.
    """

    def __init__(
        self,
        log: CommitLog,
        sizes: NodeSection,
        on_appended: Callable[[int], None],
        refusal: Callable[[], NotRunningError],
    ) -> None:
        self._log = log
        self._sizes = sizes
        self._on_appended = on_appended
        self._refusal = refusal
        self._commands: list[bytes] = []
        self._futures: list[asyncio.Future[ApplyResult]] = []
        self._wake = asyncio.Event()
        self._max_in_flight = sizes.max_in_flight
        self._slots: list[asyncio.Future[None]] = []
        self._appends: set[asyncio.Task[None]] = set()
        self._unknown: ProposalOutcomeUnknown | None = None
        self.tracker = ProposalTracker()
        """Is to be told what was applied."""
        self.in_flight = 0
        """Commands that wait for commit and apply."""
        self.accepting = False
        self.max_batch_bytes = sizes.max_batch_bytes
        """Most bytes of commands in one append: as configured, or what the log takes if less."""

    # Life

    def begin(self) -> None:
        """Accept commands; the log is open, and `run` is about to."""
        self.max_batch_bytes = min(self._sizes.max_batch_bytes, self._log.max_append_bytes)
        self._unknown = None
        self.resume()

    def resume(self) -> None:
        """Accept commands again; who was kept waiting goes on."""
        self.accepting = True
        self._free_slots()

    def pause(self) -> None:
        """Refuse commands from now on; what is in flight goes on."""
        self.accepting = False

    async def drain(self) -> None:
        """Wait until every accepted command has its result, or all were rejected."""
        while self.in_flight and self._unknown is None:
            slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._slots.append(slot)
            with contextlib.suppress(NotRunningError):
                await slot

    def reject(self, unknown: ProposalOutcomeUnknown) -> None:
        """Fail what waits: with an unknown outcome what is being appended or applied."""
        self._unknown = unknown
        self.tracker.fail(unknown)
        Singles(self._futures).fail(self._refusal())
        self._commands, self._futures = [], []
        for slot in self._slots:
            if not slot.done():
                slot.set_exception(self._refusal())
        self._slots.clear()

    async def wait_appended(self) -> None:
        """Wait until no append is under way."""
        await asyncio.gather(*self._appends, return_exceptions=True)

    # Proposing

    async def propose(self, command: bytes) -> ApplyResult:
        """Commit a command; see `Node.propose`."""
        if not self.accepting or self.in_flight >= self._max_in_flight:
            await self._take_slots()
        self.in_flight += 1
        future: asyncio.Future[ApplyResult] = asyncio.get_running_loop().create_future()
        self._commands.append(command)
        self._futures.append(future)
        if len(self._futures) == 1:
            self._wake.set()
        try:
            return await future
        finally:
            self.in_flight -= 1
            if self._slots:
                self._free_slots()

    async def propose_many(self, commands: Sequence[bytes]) -> Sequence[ApplyResult]:
        """Commit commands in order; see `Node.propose_many`."""
        waiting: list[asyncio.Future[Sequence[ApplyResult]]] = []
        results: list[ApplyResult] = []
        try:
            for block in self._blocks(commands):
                await self._take_slots()
                waiting.append(self._block_future(len(block)))
                await self._append(block, Block(len(block), waiting[-1]))
            if len(waiting) == 1:
                return await asyncio.shield(waiting[0])
            for future in waiting:
                results += await asyncio.shield(future)
        finally:
            for future in waiting:
                # Whoever fails first is raised; nobody asks for the others.
                future.add_done_callback(look_at_error)
        return results

    def _block_future(self, count: int) -> asyncio.Future[Sequence[ApplyResult]]:
        """Return a future that holds slots until it is done, whoever still waits for it."""
        future: asyncio.Future[Sequence[ApplyResult]] = asyncio.get_running_loop().create_future()
        self.in_flight += count

        def release(_: object) -> None:
            self.in_flight -= count
            self._free_slots()

        future.add_done_callback(release)
        return future

    def _blocks(self, commands: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
        most, most_bytes = self._sizes.max_batch_entries, self.max_batch_bytes
        if 0 < len(commands) <= most and sum(map(len, commands)) <= most_bytes:
            yield commands
            return
        start = size = 0
        for position, command in enumerate(commands):
            if position > start and (position - start >= most or size + len(command) > most_bytes):
                yield commands[start:position]
                start, size = position, 0
            size += len(command)
        if start < len(commands):
            yield commands[start:]

    async def _take_slots(self) -> None:
        while self.accepting and self.in_flight >= self._max_in_flight:
            slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._slots.append(slot)
            await slot
        if not self.accepting:
            raise self._refusal()

    def _free_slots(self) -> None:
        free = self._max_in_flight - self.in_flight if self.accepting else len(self._slots)
        for slot in self._slots[:free]:
            if not slot.done():
                slot.set_result(None)
        del self._slots[:free]

    # Appending

    async def run(self) -> None:
        """Append everything that waits, again and again; what comes meanwhile waits."""
        most, most_bytes = self._sizes.max_batch_entries, self.max_batch_bytes
        turns = asyncio.Semaphore(self._log.appends_in_flight)
        while True:
            # Taken before the batch: what arrives while all are busy shares the next one.
            await turns.acquire()
            turns.release()
            if not self._futures:
                self._wake.clear()
                await self._wake.wait()
                # One turn of the loop: proposers that are ready now share the append.
                await asyncio.sleep(0)
                continue
            commands, futures = self._commands, self._futures
            count = min(len(commands), most)
            if sum(map(len, commands[:count])) > most_bytes:
                count = len(next(iter(self._blocks(commands))))
            self._commands, self._futures = commands[count:], futures[count:]
            await turns.acquire()
            task = self._begin_append(commands[:count], Singles(futures[:count]))
            task.add_done_callback(lambda ended: _end_turn(turns, ended))

    async def _append(self, commands: Sequence[bytes], waiter: Waiter) -> None:
        """Append, and have the waiter told; goes on when the caller is cancelled."""
        await asyncio.shield(self._begin_append(commands, waiter))

    def _begin_append(self, commands: Sequence[bytes], waiter: Waiter) -> asyncio.Task[None]:
        task = asyncio.create_task(self._append_tracked(commands, waiter))
        self._appends.add(task)
        task.add_done_callback(self._appends.discard)
        return task

    async def _append_tracked(self, commands: Sequence[bytes], waiter: Waiter) -> None:
        append = self.tracker.begin_append()
        try:
            ids = await self._log.append(commands)
        except BaseException as exc:
            self.tracker.end_append(append)
            error: BaseException = exc
            if not isinstance(exc, DEngineError):
                error = ProposalOutcomeUnknown(
                    f"the commit log failed while {len(commands)} commands were appended: {exc!r}; "
                    "they may be committed"
                )
            waiter.fail(error)
            if error is exc:
                raise
            raise error from exc
        self.tracker.end_append(append, ids, waiter)
        self._on_appended(ids.last_index)
        if self._unknown is not None:
            self.tracker.fail(self._unknown)


def _end_turn(turns: asyncio.Semaphore, append: asyncio.Task[None]) -> None:
    turns.release()
    # The proposers were told.
    look_at_error(append)
