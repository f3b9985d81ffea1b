"""The commit log `nats` of dengine_sm: replicated by NATS JetStream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dengine_sm import CliCommand, CommitLog, LogEngine, hookimpl
from dengine_sm_nats.options import NatsLogOptions

__all__ = [
    "NatsLogOptions",
    "create_cluster_command",
    "create_nats_log",
    "dengine_sm_commands",
    "dengine_sm_commit_logs",
]


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


def create_cluster_command() -> Any:
    """Return the group `dengine-sm cluster`."""
    from dengine_sm_nats.cli import cluster

    return cluster


@hookimpl
def dengine_sm_commands() -> list[CliCommand]:
    """Describe the commands to the loader."""
    summary = "run servers and nodes on this machine, check a cluster, or begin one with a state"
    return [CliCommand("cluster", create_cluster_command, summary=summary)]
