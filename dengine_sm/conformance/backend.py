"""An installed backend as the kit sees it: found by name, with what it declares of itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dengine_sm.config import parse_options
from dengine_sm.conformance.abilities import header_line
from dengine_sm.conformance.key_value import KeyValueWorkload
from dengine_sm.conformance.maker import Maker
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.workload import Workload
from dengine_sm.errors import BackendLoadError, ConfigError, DEngineError
from dengine_sm.hookspecs import Backend
from dengine_sm.loader import (
    InstalledBackend,
    create_state_machine,
    find_backend,
    installed_backends,
    structure_options,
)
from dengine_sm.model import Durability

_WORKLOAD = ("name", "is_key_value", "commands", "model", "observe", "observe_at_once")


def subject_of_backend(name: str, options: Mapping[str, Any] | None = None) -> Subject:
    """Return an installed backend as the kit's subject.

    Args:
        name: the backend's.
        options: a table, as in `[state_machine.options]`.

    Raises:
        BackendNotFoundError: no plugin registers the name.
        BackendConflictError: two distributions do.
        BackendLoadError: the plugin does not load, or one of its functions failed.
        ContractViolationError: a method is missing or cannot be called as the contract
            calls it, or the backend was made for another version of the contract.
        ConfigError: the options are wrong, or the backend is not key-value and registers
            no workload.
    """
    given = dict(options or {})
    with tempfile.TemporaryDirectory(prefix="dengine-sm-kit-") as directory:
        create_state_machine(name, Path(directory) / "data", given, validate="structure")
    backend = find_backend(name)
    built = structure_options(backend, given)
    installed = _installed(backend)
    return Subject(
        name=name,
        open_state_machine=lambda data_dir: backend.factory(data_dir, built),
        workload=_workload(backend, installed),
        durability=_durability(backend, built, installed),
        limits=backend.limits,
        maker=Maker("installed", name, options=given) if _is_json(given) else None,
        keeps_state_in_memory=backend.keeps_state_in_memory,
        detects_damage=backend.detects_damage,
        version=installed.version,
        distribution=installed.distribution,
        options=given,
    )


def header_of_backend(name: str, options: Iterable[str] = ()) -> str:
    """Return one line about an installed backend, or about why it cannot be used.

    Args:
        name: the backend's.
        options: `K=V`, as on a command line.
    """
    try:
        return header_line(subject_of_backend(name, parse_options(options)))
    except (DEngineError, ValueError) as exc:
        return f"state machine: {name}: {exc}"


def _installed(backend: Backend) -> InstalledBackend:
    return next(item for item in installed_backends() if item.name == backend.name)


def _durability(backend: Backend, options: Any, installed: InstalledBackend) -> Durability:
    try:
        return backend.durability_for(options)
    except Exception as exc:
        raise _load_error(installed, "its durability function failed", exc) from exc


def _workload(backend: Backend, installed: InstalledBackend) -> Workload:
    if backend.workload is not None:
        return _registered_workload(backend.workload, installed)
    if backend.limits is not None:
        return KeyValueWorkload(backend.limits)
    problem = (
        f"{_label(installed)} is not key-value and registers no workload, so the kit has "
        "nothing to apply to it; expected Backend(workload=FUNCTION), which returns a "
        "dengine_sm.conformance.Workload, or Backend(limits=Limits()) for a key-value machine"
    )
    raise ConfigError(problem, problems=[problem])


def _registered_workload(function: Any, installed: InstalledBackend) -> Workload:
    try:
        workload: Workload = function()
    except Exception as exc:
        raise _load_error(installed, "its workload function failed", exc) from exc
    missing = [part for part in _WORKLOAD if not hasattr(workload, part)]
    if missing:
        raise BackendLoadError(
            f"{_label(installed)}: its workload {workload!r:.80} has no {', '.join(missing)}; "
            "expected a dengine_sm.conformance.Workload",
            name=installed.name,
            distribution=f"{installed.distribution} {installed.version}",
        )
    return workload


def _load_error(installed: InstalledBackend, what: str, exc: Exception) -> BackendLoadError:
    return BackendLoadError(
        f"{_label(installed)}: {what}: {type(exc).__name__}: {exc}; nothing was checked",
        name=installed.name,
        distribution=f"{installed.distribution} {installed.version}",
    )


def _label(installed: InstalledBackend) -> str:
    return f"backend {installed.name!r} ({installed.distribution} {installed.version})"


def _is_json(options: Mapping[str, Any]) -> bool:
    """Tell whether a new process can be given the options on its command line."""
    try:
        json.dumps(options)
    except (TypeError, ValueError):
        return False
    return True
