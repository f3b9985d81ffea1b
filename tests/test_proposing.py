"""The proposer on a real log, without a node: what becomes of commands that nobody applies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dengine_sm import LogIdRange, NotRunningError, ProposalOutcomeUnknown
from dengine_sm.config import NodeSection
from dengine_sm.log.embedded import EmbeddedLog
from dengine_sm.node.proposing import Proposer

STOPPED = ProposalOutcomeUnknown("the node stopped")


class HeldLog(EmbeddedLog):
    """Appends only once it may: as a shared log whose node reads nothing back any more."""

    def __init__(self, directory: Path, *, may_append: bool) -> None:
        super().__init__(directory)
        self.may_append = asyncio.Event()
        if may_append:
            self.may_append.set()

    async def append(self, payloads: Sequence[bytes]) -> LogIdRange:
        await self.may_append.wait()
        return await super().append(payloads)


@contextlib.asynccontextmanager
async def proposing(
    directory: Path, *, may_append: bool = True, **sizes: int
) -> AsyncIterator[Proposer]:
    log = HeldLog(directory, may_append=may_append)
    await log.open()
    proposer = Proposer(
        log, NodeSection(**sizes), lambda index: None, lambda: NotRunningError("nothing proposed")
    )
    proposer.begin()
    running = asyncio.create_task(proposer.run())
    try:
        async with asyncio.timeout(20):
            yield proposer
    finally:
        running.cancel()
        log.may_append.set()
        await proposer.wait_appended()
        await log.close()


async def until_appending(proposer: Proposer) -> None:
    while not proposer._appends:
        await asyncio.sleep(0)


async def test_an_append_that_ends_after_all_were_rejected_tells_its_proposer(tmp_path: Path):
    async with proposing(tmp_path) as proposer:
        proposal = asyncio.create_task(proposer.propose(b"command"))
        await until_appending(proposer)

        proposer.reject(STOPPED)

        with pytest.raises(ProposalOutcomeUnknown):
            await proposal


async def test_draining_ends_when_all_are_rejected_whatever_the_log_does(tmp_path: Path):
    async with proposing(tmp_path, may_append=False) as proposer:
        proposal = asyncio.create_task(proposer.propose_many([b"command"] * 10))
        await until_appending(proposer)
        assert proposer.in_flight == 10

        proposer.pause()
        draining = asyncio.create_task(proposer.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        proposer.reject(STOPPED)

        await draining
    with pytest.raises(ProposalOutcomeUnknown):
        await proposal


async def test_who_waits_for_a_slot_is_refused_when_all_are_rejected(tmp_path: Path):
    async with proposing(tmp_path, max_in_flight=1) as proposer:
        first = asyncio.create_task(proposer.propose(b"first"))
        await until_appending(proposer)
        second = asyncio.create_task(proposer.propose(b"second"))
        await asyncio.sleep(0)
        assert proposer.in_flight == 1

        proposer.reject(STOPPED)

        with pytest.raises(NotRunningError):
            await second
        with pytest.raises(ProposalOutcomeUnknown):
            await first
