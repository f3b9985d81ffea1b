"""The stream that is the log: made once, and refused when its shape breaks a promise."""

from __future__ import annotations

import uuid
from typing import Any

import attrs
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)

from dengine_sm import CommitLogError
from dengine_sm_nats.checks import check_stream
from dengine_sm_nats.connection import patiently, server_errors
from dengine_sm_nats.options import DUPLICATE_WINDOW_S, NatsLogOptions

_ID, _TERM = "dengine-sm-id", "dengine-sm-term"
_BASE, _BASE_TIME = "dengine-sm-base", "dengine-sm-base-time"


@attrs.frozen
class LogStream:
    """What identifies a stream, and what it held when asked."""

    stream_id: str
    """Drawn when the stream was made: one made anew under the same name is another log."""
    term: int
    """The term of every entry; a stream made from a backup has a higher one."""
    base_index: int
    """Index before the first command; not 0 in a stream made from a backup."""
    base_timestamp_ms: int
    """The backup's clock: log time does not go back behind it."""
    first_sequence: int
    """Of the oldest message kept; a hint, never too high."""
    last_sequence: int
    """Of the newest message; a hint, never too high."""
    size_bytes: int
    """Of all messages; a hint."""


def subject_of(stream: str) -> str:
    """Return the subject that a stream takes its messages from."""
    return f"dengine.{stream}.log"


def stream_config(
    options: NatsLogOptions, *, term: int = 1, base_index: int = 0, base_timestamp_ms: int = 0
) -> StreamConfig:
    """Return the shape that a stream must have."""
    return StreamConfig(
        name=options.stream,
        description="commit log of dengine-sm",
        subjects=[subject_of(options.stream)],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        num_replicas=options.replicas,
        # A full stream must refuse; the default would drop its oldest messages in silence.
        discard=DiscardPolicy.NEW,
        max_bytes=options.max_bytes,
        max_msgs=-1,
        max_age=0,
        deny_delete=True,
        allow_direct=True,
        duplicate_window=DUPLICATE_WINDOW_S,
        metadata={
            _ID: uuid.uuid4().hex,
            _TERM: str(term),
            _BASE: str(base_index),
            _BASE_TIME: str(base_timestamp_ms),
        },
    )


async def open_stream(js: JetStreamContext, options: NatsLogOptions) -> LogStream:
    """Find the stream, or make it; refuse one of another shape.

    Raises:
        CommitLogError: refused, with every reason; or the servers did not answer.
    """
    name = options.stream
    config = stream_config(options)
    with server_errors(f"open the stream {name!r}", "nothing was changed"):
        info = await patiently(lambda: _find_or_make(js, config), options.outcome_timeout_s)
    refuse_other_shape(info, options)
    return log_stream(info)


async def ask_for_stream(js: JetStreamContext, options: NatsLogOptions) -> StreamInfo:
    """Return what a leader says of the stream; waits while the servers elect one.

    Raises:
        nats.js.errors.NotFoundError: there is no such stream.
        nats.errors.Error, TimeoutError: no leader answered within `outcome_timeout_s`.
    """
    return await patiently(lambda: js.stream_info(options.stream), options.outcome_timeout_s)


async def _find_or_make(js: JetStreamContext, config: StreamConfig) -> StreamInfo:
    try:
        return await js.stream_info(str(config.name))
    except nats.js.errors.NotFoundError:
        pass
    try:
        return await js.add_stream(config)
    except nats.js.errors.BadRequestError as refused:
        # Another node was faster, with another id in its metadata; or the servers have a reason.
        try:
            return await js.stream_info(str(config.name))
        except nats.js.errors.NotFoundError:
            raise refused from None


def refuse_other_shape(info: StreamInfo, options: NatsLogOptions) -> None:
    """Refuse a stream that cannot keep our promises.

    Raises:
        CommitLogError: with every reason.
    """
    findings = check_stream(
        info.config, expected_replicas=options.replicas, subject=subject_of(options.stream)
    )
    problems = [str(finding) for finding in findings]
    metadata = info.config.metadata or {}
    if not (_ID in metadata and metadata.get(_TERM, "").isdigit()):
        problems.append("it was not made by dengine-sm: its metadata has no id and term")
    if problems:
        bullets = "".join(f"\n  - {problem}" for problem in problems)
        raise CommitLogError(
            f"stream {options.stream!r} cannot be the log, for {len(problems)} reasons:{bullets}\n"
            "nothing was changed"
        )


def log_stream(info: StreamInfo) -> LogStream:
    """Return what a stream of the right shape says of itself."""
    metadata = info.config.metadata or {}
    return LogStream(
        stream_id=metadata[_ID],
        term=int(metadata[_TERM]),
        base_index=int(metadata.get(_BASE, "0")),
        base_timestamp_ms=int(metadata.get(_BASE_TIME, "0")),
        first_sequence=max(1, info.state.first_seq),
        last_sequence=info.state.last_seq,
        size_bytes=info.state.bytes,
    )


def describe_stream(info: StreamInfo) -> dict[str, Any]:
    """Return what people want to know of a log's stream, for JSON."""
    cluster, state = info.cluster, info.state
    return {
        "stream": info.config.name,
        "term": log_stream(info).term,
        "leader": cluster.leader if cluster else None,
        "replicas": [
            {"server": peer.name, "current": bool(peer.current), "lag": peer.lag or 0}
            for peer in (cluster.replicas if cluster and cluster.replicas else [])
        ],
        "first_sequence": state.first_seq,
        "last_sequence": state.last_seq,
        "bytes": state.bytes,
        "holes": state.num_deleted or 0,
    }
