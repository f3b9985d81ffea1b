"""The configuration file of one nats-server among several on this machine."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

HOST = "127.0.0.1"
ACCOUNT = "A"
"""The account whose streams the servers keep."""

_NOWHERE = f"{HOST}:1"
"""What a server tells others about its route when they must not find that by themselves."""


@attrs.frozen
class ServerPorts:
    """Where one server listens on loopback."""

    client: int
    monitoring: int
    route: int


@attrs.frozen
class ServerSettings:
    """What is the same for all servers of a cluster."""

    cluster: str
    sync_always: bool = True
    max_payload_bytes: int = 8 << 20
    max_store_bytes: int = 8 << 30
    user: str | None = None
    password: str | None = None
    extra: str = ""
    """Lines for the end of every file, such as a `tls` block."""
    system_password: str = attrs.field(factory=lambda: secrets.token_hex(16), repr=False)


def server_name(index: int) -> str:
    """Return the name of a server, by which its peers know it for good."""
    return f"n{index}"


def free_ports(count: int) -> list[ServerPorts]:
    """Return ports that nothing listens on at the moment."""
    sockets = [socket.socket() for _ in range(3 * count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        numbers = [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
    return [ServerPorts(*numbers[at : at + 3]) for at in range(0, 3 * count, 3)]


def server_config(
    index: int,
    ports: Sequence[ServerPorts],
    settings: ServerSettings,
    store: Path,
    routes: Mapping[tuple[int, int], int],
) -> str:
    """Return the text of a server's configuration file.

    Args:
        index: the server's own.
        ports: of all servers.
        settings: of the cluster.
        store: the server's JetStream directory.
        routes: `(from, to)` to the port by which one server reaches another; not listed
            means directly. When there are any, no server tells others a port of its own.
    """
    mine = ports[index]
    lines = [
        f"server_name: {server_name(index)}",
        f'listen: "{HOST}:{mine.client}"',
        f'http: "{HOST}:{mine.monitoring}"',
        f"max_payload: {settings.max_payload_bytes}",
        *_jetstream(settings, store),
        *(_cluster(index, ports, settings.cluster, routes) if len(ports) > 1 else ()),
        *_accounts(settings),
        settings.extra,
    ]
    return "\n".join(lines) + "\n"


def _jetstream(settings: ServerSettings, store: Path) -> Iterable[str]:
    yield "jetstream {"
    yield f"  store_dir: {json.dumps(str(store))}"
    yield f"  max_file_store: {settings.max_store_bytes}"
    yield f"  max_memory_store: {512 << 20}"
    if settings.sync_always:  # else the server syncs every two minutes
        yield "  sync_interval: always"
    yield "}"


def _cluster(
    index: int,
    ports: Sequence[ServerPorts],
    cluster: str,
    through: Mapping[tuple[int, int], int],
) -> Iterable[str]:
    others = [to for to in range(len(ports)) if to != index]
    urls = [f"nats://{HOST}:{through.get((index, to), ports[to].route)}" for to in others]
    yield "cluster {"
    yield f"  name: {json.dumps(cluster)}"
    yield f'  listen: "{HOST}:{ports[index].route}"'
    if through:
        yield f'  advertise: "{_NOWHERE}"'
        yield "  no_advertise: true"  # to clients, of each other
    yield f"  routes: [{', '.join(urls)}]"
    yield "}"


def _accounts(settings: ServerSettings) -> Iterable[str]:
    user = settings.user or "local"
    password = settings.password or settings.system_password
    yield "accounts {"
    yield f"  $SYS {{ users: [ {_user('sys', settings.system_password)} ] }}"
    yield f"  {ACCOUNT} {{ jetstream: enabled, users: [ {_user(user, password)} ] }}"
    yield "}"
    if settings.user is None:
        yield f"no_auth_user: {json.dumps(user)}"


def _user(name: str, password: str) -> str:
    return f"{{ user: {json.dumps(name)}, password: {json.dumps(password)} }}"
