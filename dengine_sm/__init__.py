"""Write, prove and run a replicated state machine in Python.

What only a node needs is loaded when it is first used: half of all processes have no node,
such as commands that call one, and those in which the kit kills machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dengine_sm.contract import (
    CONTRACT_VERSION,
    StateMachine,
    SupportsGetMulti,
    SupportsQuery,
    SupportsScanPrefix,
)
from dengine_sm.entries import EntryBlock
from dengine_sm.errors import (
    BackendConflictError,
    BackendLoadError,
    BackendNotFoundError,
    CertificateError,
    ClientError,
    CommitLogError,
    ConcurrentApplyError,
    ConfigError,
    ContractViolationError,
    CorruptionError,
    DEngineError,
    LogGapError,
    LogOrderError,
    NotRunningError,
    PluginError,
    ProposalOutcomeUnknown,
    ServerError,
    SessionBusyError,
    SessionExpiredError,
    SnapshotCorruptionError,
    SnapshotError,
    SnapshotFormatError,
    SnapshotLabelError,
    StaleSnapshotError,
    StateDivergenceError,
    StateMachinePoisonedError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.hookspecs import Backend, CliCommand, LogEngine, NoOptions, hookimpl, not_transient
from dengine_sm.late import late_names
from dengine_sm.log.contract import CommitLog, LogIdRange, SharedCommitLog, SnapshotMark
from dengine_sm.model import (
    ApplyResult,
    Durability,
    Entry,
    Limits,
    LogId,
    Outcome,
    ReadConsistency,
    ScanResult,
    SnapshotMetadata,
)

if TYPE_CHECKING:
    from dengine_sm.config import NodeConfig, load_config
    from dengine_sm.handler import StateMachineHandler
    from dengine_sm.loader import create_commit_log, create_state_machine, installed_backends
    from dengine_sm.node import Node, NodeBuilder, NodeStatus
    from dengine_sm.session import Session, open_session

__all__ = [
    "CONTRACT_VERSION",
    "ApplyResult",
    "Backend",
    "BackendConflictError",
    "BackendLoadError",
    "BackendNotFoundError",
    "CertificateError",
    "CliCommand",
    "ClientError",
    "CommitLog",
    "CommitLogError",
    "ConcurrentApplyError",
    "ConfigError",
    "ContractViolationError",
    "CorruptionError",
    "DEngineError",
    "Durability",
    "Entry",
    "EntryBlock",
    "Limits",
    "LogEngine",
    "LogGapError",
    "LogId",
    "LogIdRange",
    "LogOrderError",
    "NoOptions",
    "Node",
    "NodeBuilder",
    "NodeConfig",
    "NodeStatus",
    "NotRunningError",
    "Outcome",
    "PluginError",
    "ProposalOutcomeUnknown",
    "ReadConsistency",
    "ScanResult",
    "ServerError",
    "Session",
    "SessionBusyError",
    "SessionExpiredError",
    "SharedCommitLog",
    "SnapshotCorruptionError",
    "SnapshotError",
    "SnapshotFormatError",
    "SnapshotLabelError",
    "SnapshotMark",
    "SnapshotMetadata",
    "StaleSnapshotError",
    "StateDivergenceError",
    "StateMachine",
    "StateMachineHandler",
    "StateMachinePoisonedError",
    "StorageError",
    "StorageFormatError",
    "StorageLockedError",
    "SupportsGetMulti",
    "SupportsQuery",
    "SupportsScanPrefix",
    "create_commit_log",
    "create_state_machine",
    "hookimpl",
    "installed_backends",
    "load_config",
    "not_transient",
    "open_session",
]

_HOMES = {
    "Node": "node",
    "NodeBuilder": "node",
    "NodeConfig": "config",
    "NodeStatus": "node",
    "Session": "session",
    "StateMachineHandler": "handler",
    "create_commit_log": "loader",
    "create_state_machine": "loader",
    "installed_backends": "loader",
    "load_config": "config",
    "open_session": "session",
}

__getattr__, __dir__ = late_names(__name__, _HOMES)
