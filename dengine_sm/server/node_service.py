"""Our own service: commands in bulk, bounded scans, status, snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import grpc

from dengine_sm.errors import CommitLogError, NotRunningError, ProposalOutcomeUnknown
from dengine_sm.model import ApplyResult, LogId, Outcome, ReadConsistency, SnapshotMetadata
from dengine_sm.server import node_api_pb2 as pb
from dengine_sm.server import node_api_pb2_grpc as pb_grpc
from dengine_sm.server.failures import InvalidRequestError, failure_of
from dengine_sm.server.sizes import entries_that_fit

if TYPE_CHECKING:
    from dengine_sm.node import Node

_ApplyContext: TypeAlias = (
    "grpc.aio.ServicerContext[pb.ApplyCommandsRequest, pb.ApplyCommandsResponse]"
)
_ScanContext: TypeAlias = "grpc.aio.ServicerContext[pb.ScanRequest, pb.ScanResponse]"
_StatusContext: TypeAlias = "grpc.aio.ServicerContext[pb.StatusRequest, pb.StatusResponse]"
_SnapshotContext: TypeAlias = (
    "grpc.aio.ServicerContext[pb.TakeSnapshotRequest, pb.TakeSnapshotResponse]"
)

_OUTCOMES = {
    Outcome.APPLIED: pb.OUTCOME_APPLIED,
    Outcome.REJECTED: pb.OUTCOME_REJECTED,
    Outcome.DUPLICATE: pb.OUTCOME_DUPLICATE,
}
_CONSISTENCIES = {
    pb.CONSISTENCY_LINEARIZABLE: ReadConsistency.LINEARIZABLE,
    pb.CONSISTENCY_EVENTUAL: ReadConsistency.EVENTUAL,
}
_GREATEST_LIMIT = (1 << 63) - 1


class NodeService(pb_grpc.NodeServiceServicer):
    """What d-engine's service has no call for."""

    def __init__(self, node: Node, *, max_message_bytes: int) -> None:
        self._node = node
        self._max_message_bytes = max_message_bytes

    async def ApplyCommands(  # noqa: N802 - the service's own name
        self, request: pb.ApplyCommandsRequest, context: _ApplyContext
    ) -> pb.ApplyCommandsResponse:
        """Commit and apply commands of any state machine, in order."""
        try:
            results = await self._propose(list(request.commands))
        except Exception as exc:
            failure = failure_of(exc, "ApplyCommands")
            await context.abort(failure.status, failure.message)
        return pb.ApplyCommandsResponse(
            results=[
                pb.CommandResult(index=r.index, outcome=_OUTCOMES[r.outcome], value=r.value)
                for r in results
            ]
        )

    async def _propose(self, commands: list[bytes]) -> Sequence[ApplyResult]:
        if not commands:
            return []
        section = self._node.config.node
        size_bytes = sum(map(len, commands))
        one_append = (
            len(commands) <= section.max_batch_entries and size_bytes <= self._node.max_batch_bytes
        )
        # A refusal of one append, or by a node that does not run, left nothing behind; that of
        # a later append of several did.
        if one_append or not self._node.status().running:
            return await self._node.propose_many(commands)
        try:
            return await self._node.propose_many(commands)
        except (NotRunningError, CommitLogError) as exc:
            raise ProposalOutcomeUnknown(
                f"{len(commands)} commands of {size_bytes} bytes needed several appends, and one "
                f"failed: {exc}; those before it are committed"
            ) from exc

    async def Scan(  # noqa: N802 - the service's own name
        self, request: pb.ScanRequest, context: _ScanContext
    ) -> pb.ScanResponse:
        """Read a sorted range at one point in time, cut where a message is full."""
        try:
            result = await self._node.scan(
                request.prefix,
                limit=_limit_of(request),
                start_after=request.start_after if request.HasField("start_after") else None,
                consistency=_consistency_of(request),
            )
        except Exception as exc:
            failure = failure_of(exc, "Scan")
            await context.abort(failure.status, failure.message)
        # One entry at least, so that a reader who goes page by page gets on.
        fitting = max(1, entries_that_fit(result.entries, self._max_message_bytes))
        return pb.ScanResponse(
            entries=[pb.KeyValue(key=k, value=v) for k, v in result.entries[:fitting]],
            last_applied=_log_id(result.last_applied),
            truncated=fitting < len(result.entries),
        )

    async def Status(  # noqa: N802 - the service's own name
        self, request: pb.StatusRequest, context: _StatusContext
    ) -> pb.StatusResponse:
        """Describe the node, a stopped one too."""
        try:
            status = self._node.status()
            return pb.StatusResponse(
                name=status.name,
                backend=status.backend,
                running=status.running,
                last_applied=_log_id(status.last_applied),
                commit_index=status.commit_index,
                first_index=status.first_index,
                last_log_id=_log_id(status.last_log_id),
                entries=status.entries,
                in_flight=status.in_flight,
                snapshot=_snapshot(status.snapshot),
                failure=status.failure,
            )
        except Exception as exc:
            failure = failure_of(exc, "Status")
            await context.abort(failure.status, failure.message)

    async def TakeSnapshot(  # noqa: N802 - the service's own name
        self, request: pb.TakeSnapshotRequest, context: _SnapshotContext
    ) -> pb.TakeSnapshotResponse:
        """Take a snapshot now, whatever the policy says."""
        try:
            metadata = await self._node.take_snapshot()
        except Exception as exc:
            failure = failure_of(exc, "TakeSnapshot")
            await context.abort(failure.status, failure.message)
        return pb.TakeSnapshotResponse(snapshot=_snapshot(metadata))


def _limit_of(request: pb.ScanRequest) -> int | None:
    if not request.HasField("limit"):
        return None
    if request.limit < 1:
        raise InvalidRequestError("scan: limit: expected at least 1, observed 0; nothing was read")
    return min(request.limit, _GREATEST_LIMIT)


def _consistency_of(request: pb.ScanRequest) -> ReadConsistency:
    if request.consistency not in _CONSISTENCIES:
        raise InvalidRequestError(
            f"scan: consistency: expected 0 (linearizable) or 1 (eventual), "
            f"observed {request.consistency}; nothing was read"
        )
    return _CONSISTENCIES[request.consistency]


def _log_id(log_id: LogId) -> pb.LogId:
    return pb.LogId(term=log_id.term, index=log_id.index)


def _snapshot(metadata: SnapshotMetadata | None) -> pb.SnapshotMetadata | None:
    if metadata is None:
        return None
    return pb.SnapshotMetadata(
        last_included=_log_id(metadata.last_included),
        checksum=metadata.checksum,
        format=metadata.format,
    )
