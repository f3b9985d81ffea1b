"""d-engine's client service, answered by one node, so that its clients work unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import grpc

from dengine_sm.kv.commands import Change, CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import Limits, ReadConsistency
from dengine_sm.server import client_api_pb2 as pb
from dengine_sm.server import client_api_pb2_grpc as pb_grpc
from dengine_sm.server import cluster_api_pb2 as cluster_pb
from dengine_sm.server import cluster_api_pb2_grpc as cluster_pb_grpc
from dengine_sm.server.failures import AnswerTooLargeError, InvalidRequestError, failure_of
from dengine_sm.server.sizes import entries_that_fit

if TYPE_CHECKING:
    from dengine_sm.node import Node

NODE_ID = 1
"""d-engine numbers its nodes; a single one is its own leader."""

_LEADER_ROLE = 2
_ACTIVE_STATUS = 2
_GREATEST_TTL_MS = (1 << 64) - 1

_WriteContext: TypeAlias = "grpc.aio.ServicerContext[pb.ClientWriteRequest, pb.ClientResponse]"
_ReadContext: TypeAlias = "grpc.aio.ServicerContext[pb.ClientReadRequest, pb.ClientResponse]"
_ScanContext: TypeAlias = "grpc.aio.ServicerContext[pb.ScanRequest, pb.ScanResponse]"
_MembersContext: TypeAlias = (
    "grpc.aio.ServicerContext[cluster_pb.MetadataRequest, cluster_pb.ClusterMembership]"
)
_LeaderContext: TypeAlias = (
    "grpc.aio.ServicerContext[cluster_pb.LeaderDiscoveryRequest, "
    "cluster_pb.LeaderDiscoveryResponse]"
)

_POLICIES = {
    # A lease promises less than a linearizable read and costs the same on one node.
    pb.READ_CONSISTENCY_POLICY_LEASE_READ: ReadConsistency.LINEARIZABLE,
    pb.READ_CONSISTENCY_POLICY_LINEARIZABLE_READ: ReadConsistency.LINEARIZABLE,
    pb.READ_CONSISTENCY_POLICY_EVENTUAL_CONSISTENCY: ReadConsistency.EVENTUAL,
}


class RaftClientService(pb_grpc.RaftClientServiceServicer):
    """Writes, reads and scans over the key-value commands."""

    def __init__(self, node: Node, *, max_message_bytes: int) -> None:
        self._node = node
        self._max_message_bytes = max_message_bytes

    async def HandleClientWrite(  # noqa: N802 - the service's own name
        self, request: pb.ClientWriteRequest, context: _WriteContext
    ) -> pb.ClientResponse:
        """Commit and apply one command; a failed comparison is no error."""
        try:
            command = _command_of(request)
            result = await self._node.propose(encode_command(command))
            if not result.succeeded and not isinstance(command, CompareAndSwap):
                raise InvalidRequestError(_rejection(command))
        except Exception as exc:
            return _failed(exc, "HandleClientWrite")
        return pb.ClientResponse(write_result=pb.WriteResult(succeeded=result.succeeded))

    async def HandleClientRead(  # noqa: N802 - the service's own name
        self, request: pb.ClientReadRequest, context: _ReadContext
    ) -> pb.ClientResponse:
        """Return the keys that exist, in the order of the request, as d-engine does."""
        try:
            keys = list(request.keys)
            consistency = _consistency_of(request)
            values = await self._node.read_many(keys, consistency=consistency) if keys else []
            found = [(k, v) for k, v in zip(keys, values, strict=True) if v is not None]
            if entries_that_fit(found, self._max_message_bytes) < len(found):
                raise AnswerTooLargeError(self._too_large("read", "ask for fewer keys"))
        except Exception as exc:
            return _failed(exc, "HandleClientRead")
        results = [pb.ClientResult(key=key, value=value) for key, value in found]
        return pb.ClientResponse(read_data=pb.ReadResults(results=results))

    async def HandleClientScan(  # noqa: N802 - the service's own name
        self, request: pb.ScanRequest, context: _ScanContext
    ) -> pb.ScanResponse:
        """Return everything under a prefix, sorted; the empty prefix is everything."""
        try:
            result = await self._node.scan(request.prefix)
            if entries_that_fit(result.entries, self._max_message_bytes) < len(result.entries):
                hint = "use a longer prefix, or Scan of dengine_sm.v1.NodeService with a limit"
                raise AnswerTooLargeError(self._too_large(f"scan of {request.prefix!r}", hint))
        except Exception as exc:
            failure = failure_of(exc, "HandleClientScan")
            await context.abort(failure.status, failure.message)
        entries = [pb.KvEntry(key=key, value=value) for key, value in result.entries]
        return pb.ScanResponse(entries=entries, revision=result.last_applied.index)

    def _too_large(self, what: str, hint: str) -> str:
        return f"{what}: the answer is larger than {self._max_message_bytes} bytes; {hint}"


class ClusterManagementService(cluster_pb_grpc.ClusterManagementServiceServicer):
    """Who the members are: this node, the leader."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def GetClusterMetadata(  # noqa: N802 - the service's own name
        self, request: cluster_pb.MetadataRequest, context: _MembersContext
    ) -> cluster_pb.ClusterMembership:
        """Name this node as the only member."""
        node = cluster_pb.NodeMeta(
            id=NODE_ID, address=self._address, role=_LEADER_ROLE, status=_ACTIVE_STATUS
        )
        return cluster_pb.ClusterMembership(version=1, nodes=[node], current_leader_id=NODE_ID)

    async def DiscoverLeader(  # noqa: N802 - the service's own name
        self, request: cluster_pb.LeaderDiscoveryRequest, context: _LeaderContext
    ) -> cluster_pb.LeaderDiscoveryResponse:
        """Name this node as the leader."""
        return cluster_pb.LeaderDiscoveryResponse(leader_id=NODE_ID, leader_address=self._address)


def _failed(exc: Exception, call: str) -> pb.ClientResponse:
    failure = failure_of(exc, call)
    return pb.ClientResponse(error=failure.error_code, metadata=failure.metadata())


def _command_of(request: pb.ClientWriteRequest) -> Change:
    write = request.command
    match write.WhichOneof("operation"):
        case "insert":
            seconds = write.insert.ttl_secs
            ttl_ms = min(seconds * 1000, _GREATEST_TTL_MS) if seconds else None
            return Put(write.insert.key, write.insert.value, ttl_ms)
        case "delete":
            return Delete(write.delete.key)
        case "compare_and_swap":
            swap = write.compare_and_swap
            expected = swap.expected_value if swap.HasField("expected_value") else None
            return CompareAndSwap(swap.key, expected, swap.new_value)
    raise InvalidRequestError(
        "write: expected a command with insert, delete or compare_and_swap, observed none; "
        "nothing was proposed"
    )


def _consistency_of(request: pb.ClientReadRequest) -> ReadConsistency:
    if not request.HasField("consistency_policy"):
        return ReadConsistency.LINEARIZABLE
    policy = request.consistency_policy
    if policy not in _POLICIES:
        raise InvalidRequestError(
            f"read: consistency_policy: expected 0 (lease), 1 (linearizable) or 2 (eventual), "
            f"observed {policy}; nothing was read"
        )
    return _POLICIES[policy]


def _rejection(command: Put | Delete) -> str:
    usual = Limits()
    value = f" and a value of {len(command.value)} bytes" if isinstance(command, Put) else ""
    return (
        f"{type(command).__name__.lower()}: a key of {len(command.key)} bytes{value} was rejected "
        f"by the state machine; expected sizes within its limits (key {usual.max_key_bytes} and "
        f"value {usual.max_value_bytes} bytes unless the backend says otherwise); state unchanged"
    )
