"""A node: one state machine on one commit log, with reads, proposals and snapshots."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import attrs

from dengine_sm.config import NodeConfig
from dengine_sm.contract import StateMachine, SupportsGetMulti, SupportsQuery, SupportsScanPrefix
from dengine_sm.errors import (
    DEngineError,
    LogGapError,
    NotRunningError,
    ProposalOutcomeUnknown,
)
from dengine_sm.files import make_directories
from dengine_sm.handler import StateMachineHandler
from dengine_sm.log.contract import CommitLog, SharedCommitLog, SnapshotMark
from dengine_sm.model import (
    ApplyResult,
    LogId,
    ReadConsistency,
    ScanResult,
    SnapshotMetadata,
)
from dengine_sm.node.proposing import Proposer
from dengine_sm.node.read_rounds import ReadRounds
from dengine_sm.node.snapshot_taking import SnapshotTaker
from dengine_sm.session import Session, open_session
from dengine_sm.snapshot import SnapshotStore

logger = logging.getLogger("dengine_sm.node")

_LINEARIZABLE = ReadConsistency.LINEARIZABLE

Value = TypeVar("Value")


@attrs.frozen
class NodeStatus:
    """What a node knows of itself."""

    name: str
    backend: str
    """Name of the backend, or of the machine's class."""
    running: bool
    last_applied: LogId
    commit_index: int
    first_index: int
    """Oldest entry the log keeps."""
    last_log_id: LogId
    entries: int
    """Live entries in the state."""
    in_flight: int
    """Proposals that wait for commit and apply."""
    snapshot: SnapshotMetadata | None
    """The newest snapshot that the state machine has taken or installed."""
    failure: str | None
    """Why the node stopped, if it failed."""


class Node:
    """Runs a state machine; built by `NodeBuilder`, used as an async context manager.

    All methods belong to the event loop that started the node.
    """

    def __init__(
        self,
        machine: StateMachine,
        log: CommitLog,
        config: NodeConfig,
        *,
        backend: str = "",
        shutdown_event: asyncio.Event | None = None,
    ) -> None:
        self.config = config
        self.backend = backend or type(machine).__name__
        self._machine = machine
        self._log = log
        self._shutdown_event = shutdown_event
        self.handler = StateMachineHandler(
            machine,
            log,
            SnapshotStore(config.node.data_dir / "snapshots", config.snapshot.cleanup_retain_count),
            policy=config.snapshot.policy(),
            keep_log_entries=config.snapshot.keep_log_entries,
            apply_chunk_entries=config.node.apply_chunk_entries,
        )
        self._get = machine.get
        self._shared = cast("SharedCommitLog", log) if log.is_shared else None
        self._read_rounds = ReadRounds(self._reach_barrier, self._refusal)
        self._proposer = Proposer(log, config.node, self.handler.update_pending, self._refusal)
        self._snapshots = SnapshotTaker(
            self.handler, self._shared, self._spawn, self._fail, self._refusal
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._stopped.set()

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open log and machine, restore, and apply what the log holds; idempotent.

        Raises:
            DEngineError: what could not be opened or applied; everything is closed again.
        """
        if not self._stopped.is_set():
            return
        self._stopped.clear()
        self._failure = None
        self._stopping = None
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        self._proposer.begin()
        self._spawn(self._proposer.run(), "batch")
        self._spawn(self._snapshots.run(), "snapshot")
        if self._shutdown_event is not None:
            self._spawn(self._watch(self._shutdown_event), "shutdown")

    async def _open(self) -> None:
        await asyncio.to_thread(make_directories, self.config.node.data_dir)
        await self._log.open()
        await asyncio.to_thread(self._machine.start)
        await asyncio.to_thread(self.handler.snapshots.open)
        await self.handler.restore()
        self._applying = self._spawn(self._apply_loop(), "apply")
        await self._catch_up()

    async def _catch_up(self) -> None:
        """Apply what the log holds by now; the apply loop's failure ends the waiting."""
        last = self._log.last_log_id().index
        if self._shared is not None:
            last = await self._first_to_end(self._shared.read_barrier())
        await self._first_to_end(self.handler.wait_applied(last))

    async def _first_to_end(self, work: Coroutine[object, object, Value]) -> Value:
        task = asyncio.ensure_future(work)
        await asyncio.wait((task, self._applying), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if self._failure is not None:
                raise self._failure
        return task.result()

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"dengine-sm-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self, event: asyncio.Event) -> None:
        await event.wait()
        # In a task of its own: stopping cancels this one.
        self._begin_stop()

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stopping is None:
            self._proposer.pause()
            self._stopping = asyncio.create_task(self._stop(), name="dengine-sm-stop")
        return self._stopping

    async def stop(self) -> None:
        """Finish what is in flight, close machine and log; idempotent.

        Raises:
            StorageError: closing failed; what was acknowledged is in the log.
        """
        if not self._stopped.is_set():
            await asyncio.shield(self._begin_stop())

    async def _stop(self) -> None:
        if self._failure is None:
            await self._proposer.drain()
        await self._close()

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            # Before the appends have ended: nobody reads back any more what they wait for.
            await self._log.close()
        finally:
            try:
                await self._proposer.wait_appended()
                await asyncio.to_thread(self._machine.stop)
            finally:
                self._reject_waiting()
                self._stopped.set()

    async def wait_stopped(self) -> None:
        """Wait until the node has stopped.

        Raises:
            DEngineError: the failure that stopped it.
        """
        await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    async def run_until_signal(
        self, signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM)
    ) -> None:
        """Serve until a signal, the shutdown event or a failure; then stop cleanly."""
        loop = asyncio.get_running_loop()
        signals = tuple(signals)
        for number in signals:
            loop.add_signal_handler(number, self._begin_stop)
        try:
            await self.wait_stopped()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _fail(self, error: BaseException) -> None:
        """Stop because the machine or the log failed; nothing is skipped to go on."""
        if self._failure is not None:
            return
        logger.error("node %s stops: %s", self.config.node.name, error)
        self._failure = error
        self._reject_waiting()
        self._begin_stop()

    def _reject_waiting(self) -> None:
        why = self._failure or "it was stopped"
        unknown = ProposalOutcomeUnknown(
            f"the node stopped ({why}) before the command was applied; it may be committed, and is "
            "then applied after a restart"
        )
        self._proposer.reject(unknown)
        self.handler.fail_waiters(self._failure or self._refusal())

    def _refusal(self) -> NotRunningError:
        name = self.config.node.name
        if self._failure is not None:
            return NotRunningError(
                f"node {name!r} has failed: {self._failure}; nothing was proposed"
            )
        return NotRunningError(f"node {name!r} is not running; nothing was proposed")

    # Proposals

    async def propose(self, command: bytes) -> ApplyResult:
        """Commit a command and return what applying it gave.

        Waits while `max_in_flight` proposals are under way. Cancelling does not take the
        command back.

        Raises:
            NotRunningError: the node is stopped; nothing was proposed.
            CommitLogError: the log refused; nothing was committed.
            ProposalOutcomeUnknown: the command may or may not be committed.
        """
        return await self._proposer.propose(command)

    async def propose_many(self, commands: Sequence[bytes]) -> Sequence[ApplyResult]:
        """Commit commands in order and return their results.

        They are appended in blocks of `max_batch_entries`; other proposals may come
        between blocks.

        Raises:
            NotRunningError, CommitLogError, ProposalOutcomeUnknown: as for `propose`;
                blocks before the failed one are committed.
        """
        return await self._proposer.propose_many(commands)

    async def open_session(self, *, timeout_s: float = 30.0) -> Session:
        """Open a session, in which no command is executed twice; see `open_session`."""
        return await open_session(self.propose, timeout_s=timeout_s)

    @property
    def max_batch_bytes(self) -> int:
        """Most bytes of commands in one append: as configured, or what the log takes if less."""
        return self._proposer.max_batch_bytes

    # Applying, and what snapshots change

    async def _apply_loop(self) -> None:
        try:
            while not await self._follow():
                pass
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._fail(exc)

    async def _follow(self) -> bool:
        """Apply what the log yields until it ends; False after an install over a gap."""
        try:
            async for item in self._log.follow(self.handler.last_applied.index + 1):
                if isinstance(item, SnapshotMark):
                    await self._snapshots.at_mark()
                    continue
                self.handler.update_pending(item[-1].index)
                index = item[0].index
                async for results in self.handler.apply_in_chunks(item):
                    self._proposer.tracker.applied(index, results)
                    index += len(results)
        except LogGapError as gap:
            if self._shared is None or not await self.handler.install_published():
                raise
            last = self.handler.last_applied
            logger.warning(
                "node %s: %s; installed the snapshot at %s", self.config.node.name, gap, last
            )
            self._proposer.tracker.skipped(
                last.index,
                ProposalOutcomeUnknown(
                    f"the command is committed at or below index {last.index}, but this node "
                    "installed a snapshot over it and does not know its result"
                ),
            )
            return False
        return True

    async def take_snapshot(self) -> SnapshotMetadata | None:
        """Take a snapshot now, clean up and purge.

        Returns:
            Its metadata; the newest one's when it holds the same state already.

        Raises:
            StorageError, SnapshotError: nothing was published; the node goes on.
        """
        self._require_running()
        await self._snapshots.take()
        newest = await asyncio.to_thread(self.handler.snapshots.newest)
        return newest.metadata if newest else None

    async def install_snapshot(self, archive: Path) -> SnapshotMetadata:
        """Install a snapshot archive that is newer than the state.

        Proposals are refused meanwhile, and those in flight are finished first: the log
        goes on behind the snapshot.

        Raises:
            SnapshotError, StorageError: nothing changed.
        """
        self._require_running()
        self._proposer.pause()
        try:
            await self._proposer.drain()
            await self._stop_applying()
            return await self.handler.install_snapshot(archive)
        finally:
            if self._stopping is None:
                self._applying = self._spawn(self._apply_loop(), "apply")
                self._proposer.resume()

    async def _stop_applying(self) -> None:
        self._applying.cancel()
        await asyncio.wait([self._applying])

    # Reads

    def _require_running(self) -> None:
        if self._stopped.is_set() or self._failure is not None:
            raise self._refusal()

    async def _barrier(self, consistency: ReadConsistency) -> None:
        """Wait for a barrier that begins after this call; all who wait share it."""
        if self._shared is None or consistency is not _LINEARIZABLE:
            return
        self._require_running()
        await self._read_rounds.wait()

    async def _reach_barrier(self) -> None:
        await self._first_to_end(self._applied_behind_barrier())

    async def _applied_behind_barrier(self) -> None:
        await self.handler.wait_applied(await self._log.read_barrier())

    async def read(
        self, key: bytes, *, consistency: ReadConsistency = _LINEARIZABLE
    ) -> bytes | None:
        """Read one value; None when the key is absent.

        Raises:
            NotRunningError: the node is stopped.
            StorageError: the storage failed.
        """
        if self._shared is not None and consistency is _LINEARIZABLE:
            await self._barrier(consistency)
        return self._get(key)

    async def read_many(
        self, keys: Sequence[bytes], *, consistency: ReadConsistency = _LINEARIZABLE
    ) -> list[bytes | None]:
        """Read several values, at one point in time if the machine SupportsGetMulti."""
        await self._barrier(consistency)
        if hasattr(self._machine, "get_multi"):
            return cast("SupportsGetMulti", self._machine).get_multi(keys)
        return [self._get(key) for key in keys]

    async def scan(
        self,
        prefix: bytes = b"",
        *,
        limit: int | None = None,
        start_after: bytes | None = None,
        consistency: ReadConsistency = _LINEARIZABLE,
    ) -> ScanResult:
        """List entries in key order, at one point in time; runs in a thread.

        Raises:
            NotRunningError: the node is stopped, or the machine has no `scan_prefix`.
        """
        await self._barrier(consistency)
        self._require_running()
        if not hasattr(self._machine, "scan_prefix"):
            raise DEngineError(f"backend {self.backend!r} does not support scans")
        machine = cast("SupportsScanPrefix", self._machine)
        return await asyncio.to_thread(
            machine.scan_prefix, prefix, limit=limit, start_after=start_after
        )

    async def query(self, request: bytes, *, consistency: ReadConsistency = _LINEARIZABLE) -> bytes:
        """Answer a request in the machine's own language; runs in a thread."""
        await self._barrier(consistency)
        self._require_running()
        if not hasattr(self._machine, "query"):
            raise DEngineError(f"backend {self.backend!r} does not support queries")
        return await asyncio.to_thread(cast("SupportsQuery", self._machine).query, request)

    async def describe_log(self) -> Mapping[str, Any] | None:
        """Return what a shared log knows of its servers, replicas and nodes.

        Returns:
            None for a log of this node alone, or while the node is stopped; a mapping with
            nothing but `error` when the servers do not answer.
        """
        if self._shared is None or self._stopped.is_set():
            return None
        try:
            return await self._shared.describe()
        except DEngineError as exc:
            return {"error": str(exc)}

    def status(self) -> NodeStatus:
        """Return what the node knows of itself; answers also while stopped."""
        running = self._proposer.accepting and self._failure is None
        opened = not self._stopped.is_set()
        newest = self._machine.snapshot_metadata() if self._machine.is_running() else None
        return NodeStatus(
            name=self.config.node.name,
            backend=self.backend,
            running=running,
            last_applied=self.handler.last_applied,
            commit_index=self.handler.commit_index,
            first_index=self._log.first_index() if opened else 0,
            last_log_id=self._log.last_log_id(),
            entries=self._machine.len() if self._machine.is_running() else 0,
            in_flight=self._proposer.in_flight,
            snapshot=newest,
            failure=None if self._failure is None else str(self._failure),
        )
