"""What `[log.options]` of the engine `nats` may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

_STREAM_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
DUPLICATE_WINDOW_S = 120.0
"""How long the servers know the id of a message; a retry must not come later."""
LATEST_ARRIVAL_S = DUPLICATE_WINDOW_S / 2
"""Age at which a message is rejected by all nodes. The rest of the window is for the servers'
clocks to differ by."""


def _some_servers(_: Any, attribute: attrs.Attribute[list[str]], value: list[str]) -> None:
    if not value:
        raise ValueError(f"{attribute.name}: expected at least one nats://HOST:PORT, observed none")
    for url in value:
        if not url.startswith(("nats://", "tls://")):
            raise ValueError(
                f"{attribute.name}: expected nats://HOST:PORT or tls://HOST:PORT, observed {url!r}"
            )


def _stream_name(_: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if not value or not _STREAM_LETTERS.issuperset(value):
        raise ValueError(
            f"{attribute.name}: expected letters, digits, '-' and '_', observed {value!r}"
        )


def _node_name(_: Any, attribute: attrs.Attribute[str], value: str) -> None:
    if value:
        _stream_name(_, attribute, value)


def _replicas(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    if value not in (1, 3, 5):
        raise ValueError(f"{attribute.name}: expected 1, 3 or 5, observed {value!r}")


def _one_of(*allowed: str) -> Any:
    def check(_: Any, attribute: attrs.Attribute[str], value: str) -> None:
        if value not in allowed:
            raise ValueError(
                f"{attribute.name}: expected one of {', '.join(allowed)}, observed {value!r}"
            )

    return check


def _more_than_publish(options: NatsLogOptions, attribute: Any, value: float) -> None:
    longest_s = LATEST_ARRIVAL_S / 2
    if not options.publish_timeout_s < value <= longest_s:
        raise ValueError(
            f"{attribute.name}: expected more than publish_timeout_s "
            f"({options.publish_timeout_s}) and at most {longest_s}, half of the age at which "
            f"a message is rejected; observed {value!r}"
        )


def _more_than(limit: float) -> Any:
    def check(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
        # `not >` rather than `<=`, so that nan is refused too.
        if not value > limit:
            raise ValueError(f"{attribute.name}: expected more than {limit}, observed {value!r}")

    return check


@attrs.frozen
class NatsLogOptions:
    """`[log.options]` of the engine `nats`."""

    servers: list[str] = attrs.field(
        factory=lambda: ["nats://127.0.0.1:4222"], validator=_some_servers
    )
    """Client addresses of all servers of the cluster."""
    stream: str = attrs.field(default="dengine", validator=_stream_name)
    """Name of the stream that is the log; made by the first node that opens it."""
    node: str = attrs.field(default="", validator=_node_name)
    """This node's id among those that follow the stream; empty: host name and a random part."""
    replicas: int = attrs.field(default=3, validator=_replicas)
    """Servers that hold the stream; 1 is for development, without any promise."""
    max_bytes: int = attrs.field(default=8 << 30, validator=attrs.validators.ge(1 << 20))
    """Most that the stream stores; from 7/8 of it on commands are refused, and the nodes take a
    snapshot that lets it be purged. `snapshot.keep_log_entries` must take far less."""
    monitoring: list[str] = attrs.field(factory=list)
    """Monitoring addresses (http://HOST:PORT) of the servers, to see how they sync."""
    sync: str = attrs.field(default="verified", validator=_one_of("verified", "unverified"))
    """`verified` refuses servers that do not sync before they acknowledge."""
    user: str | None = None
    """User name at the servers."""
    password: str | None = attrs.field(default=None, repr=False)
    """Password at the servers; better in DENGINE_SM__LOG__OPTIONS__PASSWORD than in a file."""
    credentials: Path | None = None
    """A .creds file with JWT and seed, in place of user and password."""
    tls_ca: Path | None = None
    """Certificates of the authority that signed the servers'; switches TLS on."""
    tls_cert: Path | None = None
    """This node's own certificate, if the servers ask for one."""
    tls_key: Path | None = None
    """The key of `tls_cert`."""
    connect_timeout_s: float = attrs.field(default=10.0, validator=_more_than(0))
    """Seconds until `open` gives up on servers that do not answer."""
    publish_timeout_s: float = attrs.field(default=2.0, validator=_more_than(0))
    """Seconds until a publish without an answer is sent again, under the same id."""
    outcome_timeout_s: float = attrs.field(default=30.0, validator=_more_than_publish)
    """Seconds of sending again, after which the outcome is told to be unknown."""
    appends_in_flight: int = attrs.field(default=16, validator=attrs.validators.ge(1))
    """Messages of commands on their way at once."""
    silence_s: float = attrs.field(default=3.0, validator=_more_than(1))
    """Seconds without a word from the consumer until it is made anew; it speaks every second."""
    forget_node_s: float = attrs.field(default=300.0, validator=_more_than(0))
    """Seconds of silence after which a node no longer holds back a purge."""
