"""The standard gRPC health service, answered from the node's own word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Context: TypeAlias = (
    "grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]"
)

WATCH_INTERVAL_S = 0.25
"""How soon a watcher learns of a change; `Check` is always exact."""


class NodeHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # not annotated
    """SERVING while the node runs and the server is not about to stop.

    Our own rather than the library's: that one's watchers never end, so that a stopping
    server would wait for them until its grace is over.

    Args:
        is_serving: asked at every check.
        services: names that may be asked for; the empty one is the server as a whole.
    """

    def __init__(self, is_serving: Callable[[], bool], services: Collection[str]) -> None:
        self._is_serving = is_serving
        self._services = frozenset({"", *services})
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Answer NOT_SERVING from now on and end the watchers."""
        self._closing.set()

    async def Check(  # noqa: N802 - the service's own name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the status now."""
        if request.service not in self._services:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no service named {request.service!r} here"
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 - the service's own name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status now and at every change, until the server stops."""
        told = None
        while True:
            closing = self._closing.is_set()
            status = self._status(request.service)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if closing:
                return
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._closing.is_set() or not self._is_serving():
            return health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse.SERVING
