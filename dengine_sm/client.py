"""The async client of a node; needs the extra `dengine-sm[server]`.

Puts, deletes, comparisons and reads go through d-engine's own client service. What that
cannot express (a time to live that is no whole number of seconds, a comparison that deletes,
bulk, bounded scans, status, snapshots) goes through our `NodeService`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import grpc

from dengine_sm.errors import ClientError, ProposalOutcomeUnknown
from dengine_sm.kv.commands import CompareAndSwap, Put, encode_command
from dengine_sm.model import (
    ApplyResult,
    LogId,
    Outcome,
    ReadConsistency,
    ScanResult,
    SnapshotMetadata,
)
from dengine_sm.server import client_api_pb2 as pb
from dengine_sm.server import client_api_pb2_grpc as pb_grpc
from dengine_sm.server import error_pb2
from dengine_sm.server import node_api_pb2 as node_pb
from dengine_sm.server import node_api_pb2_grpc as node_pb_grpc
from dengine_sm.session import Session, open_session

_CHANNEL_OPTIONS = [
    # The server decides what is too large, so that a refusal always means "not done".
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Find a restarted server soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Otherwise clients of one target share a connection, and its backoff.
    ("grpc.use_local_subchannel_pool", 1),
]

_POLICIES = {
    ReadConsistency.LINEARIZABLE: pb.READ_CONSISTENCY_POLICY_LINEARIZABLE_READ,
    ReadConsistency.EVENTUAL: pb.READ_CONSISTENCY_POLICY_EVENTUAL_CONSISTENCY,
}
_CONSISTENCIES = {
    ReadConsistency.LINEARIZABLE: node_pb.CONSISTENCY_LINEARIZABLE,
    ReadConsistency.EVENTUAL: node_pb.CONSISTENCY_EVENTUAL,
}
_OUTCOMES = {
    node_pb.OUTCOME_APPLIED: Outcome.APPLIED,
    node_pb.OUTCOME_REJECTED: Outcome.REJECTED,
    node_pb.OUTCOME_DUPLICATE: Outcome.DUPLICATE,
}

_REFUSED_CODES = {
    error_pb2.INVALID_REQUEST,
    error_pb2.NOT_LEADER,
    error_pb2.RATE_LIMITED,
    error_pb2.CLUSTER_UNAVAILABLE,
    error_pb2.PROPOSE_FAILED,
}
_REFUSED_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}


class Client:
    """Talks to one node; an async context manager, usable by many tasks at once.

    Never repeats a call, sessions aside. Every failure is a `ClientError`; when
    `outcome_known` is False a write may or may not have happened, and the caller decides.

    Args:
        target: `HOST:PORT` of the node's server.
        client_id: passed on to the server.
        timeout_s: for each call.
    """

    def __init__(self, target: str, *, client_id: int = 0, timeout_s: float = 10.0) -> None:
        self._target = target
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._kv: Any = None
        self._node: Any = None

    async def __aenter__(self) -> Self:
        channel = grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
        self._kv = pb_grpc.RaftClientServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._node = node_pb_grpc.NodeServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._channel = channel
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way fail; idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Return once the server accepts connections.

        Raises:
            ClientError: it did not within the time.
        """
        channel = self._open_channel("wait_ready")
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await channel.channel_ready()
        except TimeoutError as exc:
            raise ClientError(
                f"server {self._target!r}: no connection within {limit_s:g} s",
                code="DEADLINE_EXCEEDED",
            ) from exc

    async def put(self, key: bytes, value: bytes, ttl_ms: int | None = None) -> None:
        """Set a key, for ever or for `ttl_ms` milliseconds of log time.

        Raises:
            ClientError: refused (INVALID_REQUEST for a size over the limits), or unknown.
        """
        if ttl_ms is not None and (ttl_ms < 1 or ttl_ms % 1000):
            [result] = await self.apply([encode_command(Put(key, value, ttl_ms))])
            if not result.succeeded:
                raise ClientError(
                    f"server {self._target!r}: put of a key of {len(key)} bytes, a value of "
                    f"{len(value)} bytes and ttl_ms={ttl_ms} was rejected; state unchanged",
                    code="INVALID_REQUEST",
                )
            return
        insert = pb.WriteCommand.Insert(key=key, value=value, ttl_secs=(ttl_ms or 0) // 1000)
        await self._write(pb.WriteCommand(insert=insert))

    async def delete(self, key: bytes) -> None:
        """Make a key absent; no error when it was."""
        await self._write(pb.WriteCommand(delete=pb.WriteCommand.Delete(key=key)))

    async def compare_and_swap(self, key: bytes, expected: bytes | None, new: bytes | None) -> bool:
        """Set or delete a key if it has the expected value.

        Args:
            key: the key.
            expected: its value now; None if it must be absent.
            new: its value from then on; None deletes it.

        Returns:
            Whether the value was as expected; if not, nothing changed.
        """
        if new is None:
            [result] = await self.apply([encode_command(CompareAndSwap(key, expected, None))])
            return result.succeeded
        swap = pb.WriteCommand.CompareAndSwap(key=key, expected_value=expected, new_value=new)
        return await self._write(pb.WriteCommand(compare_and_swap=swap))

    async def get(
        self, key: bytes, *, consistency: ReadConsistency = ReadConsistency.LINEARIZABLE
    ) -> bytes | None:
        """Return the value, or None for an absent key."""
        [value] = await self.get_many([key], consistency=consistency)
        return value

    async def get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: ReadConsistency = ReadConsistency.LINEARIZABLE,
    ) -> list[bytes | None]:
        """Return the values at one point in time, in the order of the keys."""
        if not keys:
            return []
        request = pb.ClientReadRequest(
            client_id=self._client_id, keys=keys, consistency_policy=_POLICIES[consistency]
        )
        response = await self._call("_kv", "HandleClientRead", request, writes=False)
        self._check(response, "HandleClientRead", writes=False)
        found = {result.key: result.value for result in response.read_data.results}
        return [found.get(key) for key in keys]

    async def scan(
        self,
        prefix: bytes = b"",
        *,
        limit: int | None = None,
        start_after: bytes | None = None,
        consistency: ReadConsistency = ReadConsistency.LINEARIZABLE,
    ) -> ScanResult:
        """Return a sorted range, read at one point in time.

        Args:
            prefix: of the keys; empty is everything.
            limit: greatest number of entries, at least 1.
            start_after: only keys greater than this one.
            consistency: what the read may miss.

        Raises:
            ClientError: RESOURCE_EXHAUSTED when the range does not fit one answer.
        """
        result, truncated = await self._scan(prefix, limit, start_after, consistency)
        if truncated:
            raise ClientError(
                f"server {self._target!r}: scan of {prefix!r} does not fit one answer, only "
                f"{len(result.entries)} entries of it do; use scan_pages, or a limit",
                code="RESOURCE_EXHAUSTED",
            )
        return result

    async def scan_pages(
        self,
        prefix: bytes = b"",
        *,
        page_entries: int = 1000,
        start_after: bytes | None = None,
        consistency: ReadConsistency = ReadConsistency.LINEARIZABLE,
    ) -> AsyncIterator[ScanResult]:
        """Yield a range of any size page by page; each page is a point in time of its own."""
        while True:
            page, truncated = await self._scan(prefix, page_entries, start_after, consistency)
            if page.entries:
                yield page
                start_after = page.entries[-1][0]
            if not truncated and len(page.entries) < page_entries:
                return

    async def apply(
        self, commands: Sequence[bytes], *, timeout_s: float | None = None
    ) -> list[ApplyResult]:
        """Commit and apply encoded commands of any state machine, in order.

        Returns:
            One result per command. A rejected command is a result, not an error.

        Raises:
            ClientError: when `outcome_known` is False, some, all or none may be applied.
        """
        request = node_pb.ApplyCommandsRequest(client_id=self._client_id, commands=commands)
        response = await self._call("_node", "ApplyCommands", request, timeout_s=timeout_s)
        if len(response.results) != len(commands):
            raise ClientError(
                f"server {self._target!r}: ApplyCommands: expected {len(commands)} results, "
                f"observed {len(response.results)}",
                code="INVALID_RESPONSE",
                outcome_known=False,
            )
        return [
            ApplyResult(r.index, _OUTCOMES[r.outcome], r.value if r.HasField("value") else None)
            for r in response.results
        ]

    async def open_session(self, *, timeout_s: float | None = None) -> Session:
        """Open a session, in which no command is executed twice; see `open_session`.

        Args:
            timeout_s: for opening it, and for its commands; that of the client by default.

        Raises:
            ClientError: refused.
            ProposalOutcomeUnknown: no answer in time; the session may be open, unused.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return await open_session(self._propose, timeout_s=limit_s)

    async def _propose(self, command: bytes) -> ApplyResult:
        try:
            [result] = await self.apply([command])
        except ClientError as exc:
            if exc.outcome_known:
                raise
            raise ProposalOutcomeUnknown(str(exc)) from exc
        return result

    async def status(self) -> dict[str, Any]:
        """Return the node's status as values that JSON knows."""
        s = await self._call("_node", "Status", node_pb.StatusRequest(), writes=False)
        return {
            "name": s.name,
            "backend": s.backend,
            "running": s.running,
            "last_applied": {"term": s.last_applied.term, "index": s.last_applied.index},
            "commit_index": s.commit_index,
            "first_index": s.first_index,
            "last_log_id": {"term": s.last_log_id.term, "index": s.last_log_id.index},
            "entries": s.entries,
            "in_flight": s.in_flight,
            "snapshot": _snapshot_dict(s.snapshot) if s.HasField("snapshot") else None,
            "failure": s.failure if s.HasField("failure") else None,
            "shared_log": json.loads(s.shared_log_json) if s.HasField("shared_log_json") else None,
        }

    async def take_snapshot(self, *, timeout_s: float | None = None) -> SnapshotMetadata | None:
        """Take a snapshot now; None when there was nothing to take."""
        request = node_pb.TakeSnapshotRequest()
        response = await self._call("_node", "TakeSnapshot", request, timeout_s=timeout_s)
        if not response.HasField("snapshot"):
            return None
        s = response.snapshot
        last_included = LogId(s.last_included.term, s.last_included.index)
        return SnapshotMetadata(last_included, s.checksum, s.format)

    async def _write(self, command: pb.WriteCommand) -> bool:
        request = pb.ClientWriteRequest(client_id=self._client_id, command=command)
        response = await self._call("_kv", "HandleClientWrite", request)
        self._check(response, "HandleClientWrite", writes=True)
        return bool(response.write_result.succeeded)

    async def _scan(
        self,
        prefix: bytes,
        limit: int | None,
        start_after: bytes | None,
        consistency: ReadConsistency,
    ) -> tuple[ScanResult, bool]:
        request = node_pb.ScanRequest(
            prefix=prefix,
            limit=limit,
            start_after=start_after,
            consistency=_CONSISTENCIES[consistency],
        )
        response = await self._call("_node", "Scan", request, writes=False)
        entries = tuple((entry.key, entry.value) for entry in response.entries)
        last_applied = LogId(response.last_applied.term, response.last_applied.index)
        return ScanResult(entries, last_applied), response.truncated

    def _open_channel(self, call: str) -> grpc.aio.Channel:
        if self._channel is None:
            raise ClientError(
                f"server {self._target!r}: {call}: the client is closed; use it inside "
                f"'async with'; nothing was sent",
                code="CLOSED",
            )
        return self._channel

    async def _call(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        writes: bool = True,
        timeout_s: float | None = None,
    ) -> Any:
        self._open_channel(method)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        call = getattr(getattr(self, service), method)(request, timeout=limit_s)
        try:
            return await call
        except grpc.aio.AioRpcError as exc:
            raise self._failed_call(exc, method, writes=writes) from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling() or self._channel is not None:
                raise
            # gRPC tells the end of a closed channel's calls as a cancellation, which would
            # look as if somebody had cancelled our caller.
            raise ClientError(
                f"server {self._target!r}: {method}: the client was closed meanwhile"
                + _doubt(not writes),
                code="CLOSED",
                outcome_known=not writes,
            ) from exc

    def _failed_call(self, exc: grpc.aio.AioRpcError, method: str, *, writes: bool) -> ClientError:
        details = exc.details() or ""
        known = not writes or exc.code() in _REFUSED_STATUSES or _never_ran(exc.code(), details)
        return ClientError(
            f"server {self._target!r}: {method}: {exc.code().name}: {details}" + _doubt(known),
            code=exc.code().name,
            outcome_known=known,
        )

    def _check(self, response: pb.ClientResponse, method: str, *, writes: bool) -> None:
        if response.error == error_pb2.SUCCESS:
            return
        names = error_pb2.ErrorCode.DESCRIPTOR.values_by_number
        name = names[response.error].name if response.error in names else str(response.error)
        known = not writes or response.error in _REFUSED_CODES
        metadata = response.metadata
        leader = f"; the leader is {metadata.leader_address}" if metadata.leader_address else ""
        raise ClientError(
            f"server {self._target!r}: {method}: {name}: {metadata.debug_message}{leader}"
            + _doubt(known),
            code=name,
            outcome_known=known,
        )


def _never_ran(code: grpc.StatusCode, details: str) -> bool:
    """Whether a status that can mean anything tells that no handler saw the call.

    The texts are gRPC's; should they change, the outcome counts as unknown.
    """
    if code is grpc.StatusCode.UNAVAILABLE:
        return details.startswith("failed to connect to all addresses")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "eceived message larger than max" in details
    return False


def _doubt(known: bool) -> str:
    return "" if known else "; the write may or may not have happened"


def _snapshot_dict(snapshot: node_pb.SnapshotMetadata) -> dict[str, Any]:
    last_included = snapshot.last_included
    return {
        "last_included": {"term": last_included.term, "index": last_included.index},
        "checksum": snapshot.checksum.hex(),
        "format": snapshot.format,
    }
