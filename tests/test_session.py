"""The session of a client: retries until the outcome is known, and never twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dengine_sm import (
    ApplyResult,
    CommitLogError,
    DEngineError,
    Entry,
    Node,
    NodeConfig,
    NotRunningError,
    Outcome,
    ProposalOutcomeUnknown,
    Session,
    SessionBusyError,
    SessionExpiredError,
    open_session,
)
from dengine_sm.backends import create_memory
from dengine_sm.config import NodeSection
from dengine_sm.kv import (
    SESSION_UNKNOWN,
    CompareAndSwap,
    InSession,
    OpenSession,
    Put,
    decode_command,
    encode_command,
)
from dengine_sm.log.embedded import EmbeddedLog

LOST = ProposalOutcomeUnknown("the answer is lost")
REFUSED = CommitLogError("no leader; nothing was committed")
SWAP = CompareAndSwap(b"a", None, b"1")


class Server:
    """A key-value machine on a line that does what the script says, then works.

    "ok": applied and answered; "lost": applied, no answer; "dropped": not applied, no
    answer; an exception: not applied, and that; "hangs": applied, and no end.
    """

    def __init__(self, *script: Any) -> None:
        self.machine = create_memory()
        self.machine.start()
        self.script = list(script)
        self.sent: list[Any] = []

    async def propose(self, data: bytes) -> ApplyResult:
        self.sent.append(decode_command(data))
        act = self.script.pop(0) if self.script else "ok"
        if isinstance(act, BaseException):
            raise act
        if act == "dropped":
            raise LOST
        index = self.machine.last_applied().index + 1
        (result,) = await self.machine.apply_chunk([Entry(index, 1, 0, data)])
        if act == "hangs":
            await asyncio.Event().wait()
        if act == "lost":
            raise LOST
        if act == "from a snapshot":
            return ApplyResult(index, Outcome.DUPLICATE)
        return result

    async def session(self, *script: Any) -> Session:
        session = await open_session(self.propose)
        self.sent.clear()
        self.script = list(script)
        return session


async def test_every_command_has_a_sequence_of_its_own():
    server = Server()
    session = await server.session()

    results = [await session.propose(SWAP), await session.propose(SWAP)]

    assert [result.outcome for result in results] == [Outcome.APPLIED, Outcome.REJECTED]
    assert [InSession(1, 1, SWAP), InSession(1, 2, SWAP)] == server.sent
    assert session.is_settled


@pytest.mark.parametrize(
    "script",
    [
        ["lost"],
        ["dropped"],
        ["lost", "lost", "dropped"],
        ["dropped", "lost", REFUSED],
        ["from a snapshot"],
    ],
)
async def test_a_command_without_an_answer_is_sent_again_under_its_sequence(script):
    server = Server()
    session = await server.session(*script)

    result = await session.propose(SWAP)

    assert result.outcome is Outcome.APPLIED
    assert [InSession(1, 1, SWAP)] * (len(script) + 1) == server.sent


async def test_a_refusal_is_raised_and_its_sequence_not_used_again():
    server = Server()
    session = await server.session(REFUSED)

    with pytest.raises(CommitLogError) as refusal:
        await session.propose(Put(b"a", b"refused"))
    await session.propose(SWAP)

    assert refusal.value is REFUSED
    assert server.sent[-1] == InSession(1, 2, SWAP)


async def test_a_refusal_does_not_settle_what_was_sent_before():
    server = Server()
    session = await server.session("lost", *[REFUSED] * 1000)

    with pytest.raises(ProposalOutcomeUnknown, match=r"sequence 1: no answer within 0\.05 s"):
        await session.propose(SWAP, timeout_s=0.05)

    assert not session.is_settled


async def test_a_stopped_node_is_not_waited_for():
    server = Server()
    session = await server.session("lost", NotRunningError("node 'n' is not running"))

    with pytest.raises(ProposalOutcomeUnknown, match="is not running"):
        await session.propose(SWAP)

    assert (await session.settle()).outcome is Outcome.APPLIED


@pytest.mark.parametrize("act", ["hangs", "lost"])
async def test_an_unsettled_command_blocks_the_session_until_it_is_settled(act):
    server = Server()
    session = await server.session(*[act] * 1000)
    with pytest.raises(ProposalOutcomeUnknown):
        await session.propose(SWAP, timeout_s=0.05)
    assert not session.is_settled

    with pytest.raises(SessionBusyError, match=r"sequence 1 is unknown: expected a call of settle"):
        await session.propose(SWAP)
    server.script = []
    result = await session.settle()

    assert result is not None and result.outcome is Outcome.APPLIED
    assert await session.settle() is None
    assert (await session.propose(SWAP)).outcome is Outcome.REJECTED


async def test_a_cancelled_command_is_unsettled():
    server = Server()
    session = await server.session("hangs")
    proposing = asyncio.ensure_future(session.propose(SWAP))
    while not server.sent:
        await asyncio.sleep(0)

    with pytest.raises(SessionBusyError, match="sequence 1 is under way"):
        await session.propose(SWAP)
    proposing.cancel()
    await asyncio.wait([proposing])

    assert proposing.cancelled() and not session.is_settled
    assert (await session.settle()).outcome is Outcome.APPLIED


@pytest.mark.parametrize(("script", "known"), [([], True), (["dropped"], False)])
async def test_an_evicted_session_raises_and_stays_expired(script, known):
    server = Server()
    session = await server.session()
    limits = server.machine._limits
    await server.machine.apply_chunk(
        [Entry(n, 1, 0, encode_command(OpenSession())) for n in range(2, limits.max_sessions + 2)]
    )
    server.script = list(script)

    with pytest.raises(SessionExpiredError, match="session 1: the state does not know it") as gone:
        await session.propose(SWAP)
    with pytest.raises(SessionExpiredError, match="it has expired"):
        await session.propose(SWAP)

    assert (gone.value.session_id, gone.value.outcome_known) == (1, known)
    assert server.machine.get(b"a") is None
    assert len(server.sent) == 1 + len(script)


async def test_a_session_that_somebody_else_uses_is_refused():
    server = Server()
    session = await server.session()
    await server.propose(encode_command(InSession(1, 9, SWAP)))

    with pytest.raises(SessionExpiredError, match="somebody else uses it"):
        await session.propose(Put(b"a", b"2"))

    assert server.machine.get(b"a") == b"1"


async def test_opening_goes_on_until_it_is_known():
    server = Server("lost", "dropped")

    session = await open_session(server.propose)

    assert session.session_id == 2
    assert repr(session) == "Session(2)"


async def test_opening_ends_in_time():
    server = Server(*["lost"] * 1000)

    with pytest.raises(ProposalOutcomeUnknown, match="opening a session: no answer within"):
        await open_session(server.propose, timeout_s=0.05)


@pytest.mark.parametrize("result", [(Outcome.REJECTED, None), (Outcome.APPLIED, b"something")])
async def test_a_machine_without_sessions_is_refused(result):
    async def propose(_: bytes) -> ApplyResult:
        return ApplyResult(1, *result)

    with pytest.raises(CommitLogError, match="does not know sessions"):
        await open_session(propose)


async def test_wrong_commands_take_no_sequence():
    server = Server()
    session = await server.session()

    with pytest.raises(TypeError):
        await session.propose(Put(b"a", "text"))
    with pytest.raises(TypeError, match=r"InSession\.command"):
        await session.propose(OpenSession())
    await session.propose(SWAP)

    assert server.sent == [InSession(1, 1, SWAP)]


class ForgetfulLog(EmbeddedLog):
    """Commits, and raises that it may not have; every so many appends, and now and then twice."""

    appends = 0

    async def append(self, payloads: Sequence[bytes]) -> Any:
        ids = await super().append(payloads)
        self.appends += 1
        if self.appends % 3:
            raise ProposalOutcomeUnknown(f"entries from {ids.first_index} on: no answer")
        return ids


async def counted(node: Node, propose: Callable[[Any], Any], times: int) -> None:
    """Add one to a counter again and again, by swaps of what was read."""
    for _ in range(times):
        value = await node.read(b"count")
        new = b"%d" % (int(value or b"0") + 1)
        result = await propose(CompareAndSwap(b"count", value, new))
        assert result.outcome is Outcome.APPLIED, "rejected although nobody else counts"


async def test_a_node_whose_log_forgets_to_answer_executes_nothing_twice(tmp_path):
    config = NodeConfig(node=NodeSection(data_dir=tmp_path / "node"))
    log = ForgetfulLog(tmp_path / "log")
    async with Node(create_memory(), log, config) as node:
        session = await node.open_session()

        await counted(node, session.propose, times=20)

        assert await node.read(b"count") == b"20"
        entries = node.status().last_applied.index
    assert log.appends == entries > 40, "each command was committed more than once"


async def test_without_a_session_that_log_makes_a_client_count_wrong(tmp_path):
    config = NodeConfig(node=NodeSection(data_dir=tmp_path / "node"))

    async with Node(create_memory(), ForgetfulLog(tmp_path / "log"), config) as node:

        async def propose(command: Any) -> ApplyResult:
            while True:
                try:
                    return await node.propose(encode_command(command))
                except ProposalOutcomeUnknown:
                    await node.handler.wait_applied(node._log.last_log_id().index)

        with pytest.raises(AssertionError, match="nobody else counts"):
            await counted(node, propose, times=20)


async def test_a_session_lives_on_when_its_node_is_started_again(tmp_path):
    config = NodeConfig(node=NodeSection(data_dir=tmp_path / "node"))
    node = Node(create_memory(), EmbeddedLog(tmp_path / "log"), config)
    async with node:
        session = await node.open_session()
        await session.propose(SWAP)
    with pytest.raises(NotRunningError):
        await session.propose(SWAP)

    async with node:
        assert (await session.propose(SWAP)).outcome is Outcome.REJECTED


def test_the_errors_are_in_the_tree():
    assert issubclass(SessionExpiredError, CommitLogError)
    assert issubclass(SessionBusyError, CommitLogError)
    assert issubclass(CommitLogError, DEngineError)
    assert SESSION_UNKNOWN == b"session unknown"
