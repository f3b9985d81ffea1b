"""TCP proxies that stop passing anything on, as a network does that is cut in two.

A cut connection stays open and says nothing; what was sent meanwhile arrives when it is
healed. The proxies have a thread and an event loop of their own, so that a test may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterable
from typing import Any

from dengine_sm_nats.server_config import HOST
from dengine_sm_nats.servers import LocalServers


class Link:
    """A proxy in front of one port."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.passing = asyncio.Event()
        self.passing.set()
        self.connections: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    async def listen(self) -> int:
        self.server = await asyncio.start_server(self.accept, HOST, 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self.port

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            await self.passing.wait()
            with contextlib.suppress(OSError):
                await self.join(reader, writer)
        except asyncio.CancelledError:
            pass  # the end of the proxies; asyncio's server would report it
        finally:
            writer.transport.abort()
            self.connections.discard(task)

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self.target)
        both = [asyncio.create_task(self.pump(reader, back))]
        both.append(asyncio.create_task(self.pump(there, writer)))
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.transport.abort()
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self.passing.wait()
            writer.write(data)
            await writer.drain()
        await self.passing.wait()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for task in self.connections:
            task.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)


class Proxies:
    """Links by the port on which each listens."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._links: dict[int, Link] = {}

    def add(self, target: int) -> int:
        """Begin to pass connections on to a port; return where to connect instead."""
        return self._run(self._add(target))

    async def _add(self, target: int) -> int:
        link = Link(target)
        self._links[await link.listen()] = link
        return link.port

    def cut(self, ports: Iterable[int]) -> None:
        """Pass nothing on that comes through these ports, in either direction."""
        self._run(self._set(ports, passing=False))

    def heal(self, ports: Iterable[int] | None = None) -> None:
        """Pass everything on again; None for all."""
        self._run(self._set(self._links if ports is None else ports, passing=True))

    async def _set(self, ports: Iterable[int], *, passing: bool) -> None:
        for port in ports:
            event = self._links[port].passing
            event.set() if passing else event.clear()

    def close(self) -> None:
        """Break all connections, and end the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for link in self._links.values():
            await link.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)


class Network:
    """The routes between servers that do not run yet, each pair's in both directions.

    `clients[i]` is a proxied port for clients of server `i`; `cut_off` leaves it alone unless
    told otherwise.
    """

    def __init__(self, servers: LocalServers) -> None:
        self.proxies = Proxies()
        indexes = range(servers.count)
        self.routes = {
            (here, there): self.proxies.add(servers.ports[there].route)
            for here in indexes
            for there in indexes
            if here != there
        }
        self.clients = [self.proxies.add(ports.client) for ports in servers.ports]
        servers.route_through(self.routes)

    def cut_off(self, *indexes: int, clients: bool = False) -> None:
        """Part some servers from the others; those within a part still reach each other."""
        apart = set(indexes)
        crossing = [port for ends, port in self.routes.items() if len(apart & set(ends)) == 1]
        self.proxies.cut(crossing)
        if clients:
            self.proxies.cut(self.clients[index] for index in indexes)

    def heal(self) -> None:
        """Join everything again."""
        self.proxies.heal()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxies.close()
