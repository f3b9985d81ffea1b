"""Exit codes of `dengine-sm`, the only place that defines them."""

from __future__ import annotations

from dengine_sm.errors import (
    ClientError,
    ConfigError,
    DEngineError,
    PluginError,
    ProposalOutcomeUnknown,
    ServerError,
)

OK = 0
NEGATIVE = 1
USAGE = 2
CONFIG = 3
STORAGE = 4
REQUEST = 5
UNKNOWN = 6
INTERRUPTED = 130

MEANINGS = {
    OK: "done; also a node that SIGTERM or Ctrl-C told to stop",
    NEGATIVE: "done, and the answer is no: key absent, swap not matched, lines refused, "
    "clauses not passed",
    USAGE: "the command line is wrong",
    CONFIG: "configuration, a plugin or an extra is wrong or missing",
    STORAGE: "storage refused or is damaged, or a node stopped itself",
    REQUEST: "server unreachable, or request refused; nothing was written",
    UNKNOWN: "the request failed after it was sent; a write may or may not have happened",
    INTERRUPTED: "interrupted by Ctrl-C",
}


def for_error(error: DEngineError) -> int:
    """Return the exit code that belongs to an error."""
    match error:
        case ProposalOutcomeUnknown():
            return UNKNOWN
        case ClientError():
            return REQUEST if error.outcome_known else UNKNOWN
        case ConfigError() | PluginError() | ServerError():
            return CONFIG
    return STORAGE
