"""Every exception of the package; callers catch `DEngineError` or a branch.

    DEngineError
    ├── NotRunningError                 the machine (or node) is stopped
    ├── ConcurrentApplyError            a second apply while one is under way
    ├── StateMachinePoisonedError       an I/O failure happened; stop and start again
    ├── LogGapError                     an entry does not follow the applied id
    ├── LogOrderError                   a term or an applied id would go back
    ├── StateDivergenceError            this node's state is not that of the other nodes
    ├── StorageError                    the disk refused
    │   ├── StorageLockedError          another machine has the directory open
    │   ├── StorageFormatError          another backend's directory, or a newer format
    │   └── CorruptionError             damage found on disk
    ├── SnapshotError
    │   ├── SnapshotLabelError          last_included is not the applied id
    │   ├── SnapshotCorruptionError     a snapshot is damaged
    │   ├── SnapshotFormatError         an unknown snapshot layout
    │   └── StaleSnapshotError          older than what is applied
    ├── PluginError
    │   ├── BackendNotFoundError
    │   ├── BackendConflictError
    │   ├── BackendLoadError
    │   ├── ContractViolationError      carries every finding
    │   └── CertificateError            a required certificate is missing or does not match
    ├── ConfigError                     carries every problem
    ├── CommitLogError
    │   ├── ProposalOutcomeUnknown      the command may or may not be committed
    │   ├── SessionBusyError            a session's earlier command is not settled
    │   └── SessionExpiredError         the state does not know a session any more
    ├── ServerError                     a server could not begin to listen
    └── ClientError                     a server answered with an error, or not at all

Source: CONTRACT §5. Every class keeps the values of its message as attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class DEngineError(Exception):
    """Base of all errors raised on purpose by dengine_sm."""


class NotRunningError(DEngineError):
    """The machine or node is stopped; nothing was read or changed (LIFE-3)."""


class ConcurrentApplyError(DEngineError):
    """`apply_chunk` was called while another call was under way (APPLY-10)."""


class StateMachinePoisonedError(DEngineError):
    """A write failed earlier; the machine refuses applies until restarted (APPLY-3)."""


class LogGapError(DEngineError):
    """An entry does not follow the last applied one; nothing was applied (APPLY-6)."""

    def __init__(
        self,
        message: str,
        *,
        expected_index: int | None = None,
        observed_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.expected_index = expected_index
        self.observed_index = observed_index


class LogOrderError(DEngineError):
    """A term or an applied id would go back; nothing changed (APPLY-6, LOG-1)."""

    def __init__(self, message: str, *, last_applied: Any = None, observed: Any = None) -> None:
        super().__init__(message)
        self.last_applied = last_applied
        self.observed = observed


class StateDivergenceError(DEngineError):
    """Nodes that applied the same entries hold different states; this one must not serve.

    `log_id` is the first id known to differ, `last_equal` the last one known to be equal.
    """

    def __init__(self, message: str, *, log_id: Any, last_equal: Any = None) -> None:
        super().__init__(message)
        self.log_id = log_id
        self.last_equal = last_equal


class StorageError(DEngineError):
    """The storage refused: disk full, I/O error, missing permission (CRASH-8)."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class StorageLockedError(StorageError):
    """Another machine has the directory open; nothing was changed (LIFE-6)."""


class StorageFormatError(StorageError):
    """The directory belongs to another backend or a newer format; unchanged (LIFE-7)."""

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        expected: str | None = None,
        observed: str | None = None,
    ) -> None:
        super().__init__(message, path=path)
        self.expected = expected
        self.observed = observed


class CorruptionError(StorageError):
    """Stored bytes are damaged; nothing was read as data (CRASH-5).

    `path` is the damaged file, `offset` the first byte in doubt.
    """

    def __init__(self, message: str, *, path: Path, offset: int) -> None:
        super().__init__(message, path=path)
        self.offset = offset


class SnapshotError(DEngineError):
    """Base of the snapshot errors; the live state is unchanged."""

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        expected: Any = None,
        observed: Any = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.expected = expected
        self.observed = observed


class SnapshotLabelError(SnapshotError):
    """`last_included` is not the applied id (SNAP-1)."""


class SnapshotCorruptionError(SnapshotError):
    """A snapshot differs from its checksum or manifest (SNAP-4)."""


class SnapshotFormatError(SnapshotError):
    """A snapshot has a layout this machine cannot read (SNAP-4)."""


class StaleSnapshotError(SnapshotError):
    """A snapshot is older than what is applied (SNAP-6)."""


class PluginError(DEngineError):
    """Base of the errors about finding and loading plugins."""


class BackendNotFoundError(PluginError):
    """No installed plugin registers this name."""

    def __init__(self, message: str, *, name: str, installed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.installed = tuple(installed)


class BackendConflictError(PluginError):
    """Two distributions register one name."""

    def __init__(self, message: str, *, name: str, distributions: Sequence[str]) -> None:
        super().__init__(message)
        self.name = name
        self.distributions = tuple(distributions)


class BackendLoadError(PluginError):
    """A plugin could not be imported, misuses the hook, or its factory failed."""

    def __init__(self, message: str, *, name: str, distribution: str | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.distribution = distribution


class ContractViolationError(PluginError):
    """A machine breaks the contract; `findings` holds every place."""

    def __init__(self, message: str, *, name: str, findings: Sequence[Any]) -> None:
        super().__init__(message)
        self.name = name
        self.findings = tuple(findings)


class CertificateError(PluginError):
    """A certificate is missing, does not match, or cannot be issued.

    `problems` holds every difference, `command` the command line that produces it.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str,
        path: Path | None = None,
        problems: Sequence[str] = (),
        command: str | None = None,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.path = path
        self.problems = tuple(problems)
        self.command = command


class ConfigError(DEngineError):
    """Configuration is wrong; `problems` holds every place, one sentence each."""

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class CommitLogError(DEngineError):
    """The commit log refused or failed; nothing of the call was committed."""


class ProposalOutcomeUnknown(CommitLogError):  # noqa: N818 - names an outcome, not a failure
    """The command may or may not be committed; it was not acknowledged."""


class SessionBusyError(CommitLogError):
    """A session's earlier command is under way or not settled; nothing was proposed."""


class SessionExpiredError(CommitLogError):
    """The state does not know a session any more, or somebody else uses it.

    `outcome_known` is True when the command was not executed and never will be; False when
    an earlier attempt of it may have been.
    """

    def __init__(self, message: str, *, session_id: int, outcome_known: bool) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.outcome_known = outcome_known


class ServerError(DEngineError):
    """A server could not begin to listen; the node is as before.

    `address` is what it was told to listen on.
    """

    def __init__(self, message: str, *, address: str) -> None:
        super().__init__(message)
        self.address = address


class ClientError(DEngineError):
    """A server answered with an error, or did not answer in time.

    `code` is the gRPC status or d-engine error code's name; `outcome_known` is False
    when a write may or may not have happened.
    """

    def __init__(self, message: str, *, code: str, outcome_known: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.outcome_known = outcome_known
