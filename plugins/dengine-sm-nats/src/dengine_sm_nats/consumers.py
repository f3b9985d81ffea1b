"""Consumers that read one server's own copy of the stream."""

from __future__ import annotations

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy


async def make_consumer(
    js: JetStreamContext, stream: str, inbox: str, first_sequence: int, *, heartbeat_s: float
) -> ConsumerInfo:
    """Make a consumer that pushes messages to an inbox, on a server that the cluster draws.

    It goes away by itself when nobody listens, some seconds later.

    Args:
        js: of a connected client.
        stream: which stream.
        inbox: subscribed already.
        first_sequence: of the first message wanted.
        heartbeat_s: after so long without a message it says that it is there.

    Raises:
        nats.errors.Error, TimeoutError: the servers refused, or did not answer.
    """
    config = ConsumerConfig(
        deliver_subject=inbox,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first_sequence,
        ack_policy=AckPolicy.NONE,
        flow_control=True,
        idle_heartbeat=heartbeat_s,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=5.0,
    )
    return await js.add_consumer(stream, config, timeout=2.0)


def is_status(msg: Msg) -> bool:
    """Tell whether a delivery is no message of the stream, but a word of the server's."""
    return msg.headers is not None and msg.headers.get("Status") == "100"


def question_of(status: Msg) -> str | None:
    """Return where a status wants an answer, without which the server sends no more.

    Flow control asks in its reply subject; a heartbeat, which has none, repeats a question that
    was lost in `Nats-Consumer-Stalled`. Source: NATS ADR-15.
    """
    headers = status.headers or {}
    return status.reply or headers.get("Nats-Consumer-Stalled") or None


async def drop_consumer(client: Client, stream: str, name: str) -> None:
    """Have a consumer deleted, without waiting for it."""
    await client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")
