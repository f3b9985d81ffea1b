"""The commit log `nats` of dengine_sm: replicated by NATS JetStream."""

from __future__ import annotations

from pathlib import Path

from dengine_sm import CommitLog, LogEngine, hookimpl
from dengine_sm_nats.options import NatsLogOptions

__all__ = ["NatsLogOptions", "create_nats_log", "dengine_sm_commit_logs"]


def create_nats_log(log_dir: Path, options: NatsLogOptions | None = None) -> CommitLog:
    """Return a log on a stream; nothing is touched before `open`."""
    # Here, not above: listing commit logs must not load the client library.
    from dengine_sm_nats.log import NatsLog

    return NatsLog(log_dir, options)


@hookimpl
def dengine_sm_commit_logs() -> list[LogEngine]:
    """Describe the commit log to the loader."""
    return [
        LogEngine(
            "nats",
            create_nats_log,
            options=NatsLogOptions,
            summary="replicated by a NATS JetStream stream on three or five servers",
        )
    ]
