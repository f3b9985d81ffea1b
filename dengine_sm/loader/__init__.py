"""From a name to a validated machine, log or command: entry points, plugins, options, checks."""

from __future__ import annotations

from dengine_sm.loader.creating import (
    CERTIFICATE_LEVELS,
    VALIDATION_LEVELS,
    backend_identity,
    create_command,
    create_commit_log,
    create_state_machine,
    structure_options,
)
from dengine_sm.loader.installed import (
    InstalledBackend,
    InstalledCommand,
    InstalledCommitLog,
    find_backend,
    installed_backends,
    installed_commands,
    installed_commit_logs,
)

__all__ = [
    "CERTIFICATE_LEVELS",
    "VALIDATION_LEVELS",
    "InstalledBackend",
    "InstalledCommand",
    "InstalledCommitLog",
    "backend_identity",
    "create_command",
    "create_commit_log",
    "create_state_machine",
    "find_backend",
    "installed_backends",
    "installed_commands",
    "installed_commit_logs",
    "structure_options",
]
