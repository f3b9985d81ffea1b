"""Start and stop the gRPC server of a node."""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dengine_sm.errors import ServerError
from dengine_sm.server import (
    client_api_pb2,
    client_api_pb2_grpc,
    cluster_api_pb2,
    cluster_api_pb2_grpc,
    node_api_pb2,
    node_api_pb2_grpc,
)
from dengine_sm.server.client_service import ClusterManagementService, RaftClientService
from dengine_sm.server.health import NodeHealth
from dengine_sm.server.node_service import NodeService

if TYPE_CHECKING:
    from dengine_sm.node import Node

MAX_MESSAGE_BYTES = 20 * 1024 * 1024
"""Room for the largest key and value that are usually accepted, and some more."""

_SERVICES = (
    client_api_pb2.DESCRIPTOR.services_by_name["RaftClientService"].full_name,
    cluster_api_pb2.DESCRIPTOR.services_by_name["ClusterManagementService"].full_name,
    node_api_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name,
)

_logger = logging.getLogger("dengine_sm.server")


class NodeServer:
    """Serves a node; the caller starts and stops the node itself.

    Neither encrypts nor asks who is calling: listen on a loopback or private address.

    Args:
        node: answers the calls; may stop and fail while served.
        listen: `HOST:PORT`; port 0 takes any free one.
        advertise: `HOST:PORT` that d-engine's clients are told to connect to; None tells
            the address listened on, which is right unless that is a wildcard.
        max_message_bytes: larger requests and answers are refused with RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        node: Node,
        *,
        listen: str = "127.0.0.1:0",
        advertise: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._node = node
        self._listen = listen
        self._advertise = advertise
        self._max_message_bytes = max_message_bytes
        self._server: grpc.aio.Server | None = None
        self._health: NodeHealth | None = None
        self._address: str | None = None

    @property
    def address(self) -> str | None:
        """`HOST:PORT` listened on, with the real port; None while stopped."""
        return self._address

    async def start(self) -> str:
        """Listen and serve; a no-op when started.

        Returns:
            `HOST:PORT` listened on, with the real port.

        Raises:
            ServerError: the address is malformed, not ours, or in use.
        """
        if self._address is not None:
            return self._address
        server = grpc.aio.server(options=self._options())
        address = self._bind(server)
        checks = NodeHealth(lambda: self._node.status().running, _SERVICES)
        self._add_services(server, address, checks)
        await server.start()
        self._server, self._health, self._address = server, checks, address
        _logger.info("serving on %s", address)
        return address

    async def stop(self, grace_s: float = 5.0) -> None:
        """Refuse new calls, let those under way finish, then cancel them; idempotent.

        Args:
            grace_s: how long calls under way may take. A write cancelled after that may
                or may not be committed.
        """
        server, checks = self._server, self._health
        self._server = self._health = self._address = None
        if server is None or checks is None:
            return
        checks.close()
        await server.stop(grace_s)
        _logger.info("stopped serving on %s", self._listen)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._max_message_bytes),
            # The handlers measure their answers, and say more than gRPC would.
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would each get a part of the clients.
            ("grpc.so_reuseport", 0),
        ]

    def _bind(self, server: grpc.aio.Server) -> str:
        host, colon, _ = self._listen.rpartition(":")
        if not host or not colon:
            raise ServerError(
                f"listen: expected HOST:PORT such as '127.0.0.1:9081', observed {self._listen!r}",
                address=self._listen,
            )
        try:
            port = server.add_insecure_port(self._listen)
        except RuntimeError as exc:
            raise ServerError(
                f"server: cannot listen on {self._listen!r}: {exc}; expected an address of this "
                f"machine and a port that is free; nothing is served",
                address=self._listen,
            ) from exc
        if not _is_loopback(host):
            _logger.warning(
                "listening on %s, beyond this machine, without encryption or authentication",
                self._listen,
            )
        return f"{host}:{port}"

    def _add_services(self, server: grpc.aio.Server, address: str, checks: NodeHealth) -> None:
        size = self._max_message_bytes
        client_api_pb2_grpc.add_RaftClientServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            RaftClientService(self._node, max_message_bytes=size), server
        )
        cluster_api_pb2_grpc.add_ClusterManagementServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            ClusterManagementService(self._advertise or address), server
        )
        node_api_pb2_grpc.add_NodeServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            NodeService(self._node, max_message_bytes=size), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
