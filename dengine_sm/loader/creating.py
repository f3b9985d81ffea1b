"""From a name to a validated machine, log or command: options, factory, checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.certificate import PROFILES, BackendIdentity, check_certificate, identify
from dengine_sm.contract import CONTRACT_VERSION, StateMachine
from dengine_sm.errors import BackendLoadError, ConfigError
from dengine_sm.hookspecs import Backend, CliCommand, LogEngine
from dengine_sm.loader.installed import Plugin, find, told
from dengine_sm.log.contract import CommitLog
from dengine_sm.preflight import key_value_commands, run_preflight
from dengine_sm.structuring import structure
from dengine_sm.validation import Finding, check_structure, violation

logger = logging.getLogger("dengine_sm.loader")

VALIDATION_LEVELS = ("structure", "preflight", "off")
CERTIFICATE_LEVELS = ("off", *PROFILES)


def create_command(name: str) -> Any:
    """Return what the factory of a plugin's command returns; it should be a `click.Command`.

    Raises:
        BackendNotFoundError: no plugin registers the name.
        BackendConflictError: two distributions do.
        BackendLoadError: the plugin does not load, or its factory failed.
    """
    command, plugin = find(name, lambda plugin: plugin.commands, "command")
    try:
        return command.factory()
    except Exception as exc:
        raise _factory_error(command, plugin, exc, "command") from exc


def create_state_machine(
    name: str,
    data_dir: Path,
    options: Any = None,
    *,
    validate: str = "preflight",
    require_certificate: str = "off",
    certificate: Path | None = None,
) -> StateMachine:
    """Return a validated machine of a backend, not started.

    Args:
        name: the backend's.
        data_dir: the machine's directory; not touched before `start`.
        options: a table, an instance of the backend's options class, or None.
        validate: `structure` compares methods with the contract; `preflight` also runs
            the backend, under the same options, in a temporary directory; `off` trusts.
        require_certificate: `standard` or `deep` refuses a backend that is not certified
            to have passed that profile of the conformance kit; `off` asks for none.
        certificate: the certificate's file.

    Raises:
        BackendNotFoundError: no plugin registers the name.
        BackendConflictError: two distributions do.
        BackendLoadError: the plugin does not load, or its factory failed.
        ContractViolationError: the machine breaks the contract, or the backend was
            made for another version of it.
        CertificateError: the certificate is missing or about something else.
        ConfigError: options, `validate` or `require_certificate` are wrong.
    """
    _check_level("validate", validate, VALIDATION_LEVELS)
    _check_level("require_certificate", require_certificate, CERTIFICATE_LEVELS)
    backend, plugin = find(name, lambda plugin: plugin.backends, "backend")
    _check_version(backend, plugin)
    built = structure_options(backend, options)
    if require_certificate != "off":
        _check_certificate(backend, plugin, built, require_certificate, certificate)
    machine: StateMachine = _construct(backend, plugin, Path(data_dir), built, "backend")
    if validate == "off":
        logger.warning("backend %r (%s) is used without validation", name, plugin.label)
        return machine
    findings = check_structure(machine)
    if not findings and validate == "preflight":
        findings = _preflight(backend, plugin, built)
    if findings:
        raise violation(name, plugin.label, findings)
    return machine


def backend_identity(name: str, options: Any = None) -> BackendIdentity:
    """Return what a certificate of a backend under these options is bound to.

    Args:
        name: the backend's.
        options: as for `create_state_machine`.

    Raises:
        BackendNotFoundError, BackendConflictError, BackendLoadError, ConfigError: as for
            `create_state_machine`.
        CertificateError: the backend cannot have a certificate.
    """
    backend, plugin = find(name, lambda plugin: plugin.backends, "backend")
    return _identity(backend, plugin, structure_options(backend, options))


def create_commit_log(name: str, log_dir: Path, options: Any = None) -> CommitLog:
    """Return a commit log, not opened.

    Raises:
        BackendNotFoundError: no plugin registers the name.
        BackendConflictError: two distributions do.
        BackendLoadError: the plugin does not load, or its factory failed.
        ConfigError: the options are wrong.
    """
    engine, plugin = find(name, lambda plugin: plugin.engines, "commit log")
    built = structure_options(engine, options)
    log: CommitLog = _construct(engine, plugin, Path(log_dir), built, "commit log")
    return log


def structure_options(plug: Backend | LogEngine, options: Any = None) -> Any:
    """Return options as an instance of the class that a backend or log declares.

    Raises:
        ConfigError: a table that does not fit; every problem at once.
        BackendLoadError: the options class itself cannot be used.
    """
    is_backend = isinstance(plug, Backend)
    where = "state_machine.options" if is_backend else "log.options"
    subject = f"{'backend' if is_backend else 'commit log'} {plug.name!r}"
    if attrs.has(plug.options) and isinstance(options, plug.options):
        return options
    if options is not None and not isinstance(options, Mapping):
        problem = f"{where}: expected a table for {subject}, observed {options!r:.80}"
        raise ConfigError(problem, problems=[problem])
    if options and attrs.has(plug.options) and not attrs.fields(plug.options):
        given = ", ".join(repr(key) for key in options)
        problem = f"{where}: {subject} takes no options, observed {given}"
        raise ConfigError(problem, problems=[problem])
    try:
        return structure(plug.options, options or {}, where=where)
    except ConfigError:
        raise
    except Exception as exc:
        raise BackendLoadError(
            f"{subject}: options class {plug.options!r} cannot be structured: {told(exc)}; "
            "expected an attrs class whose fields have types and defaults",
            name=plug.name,
        ) from exc


def _check_level(field: str, level: str, levels: Sequence[str]) -> None:
    if level not in levels:
        expected = ", ".join(levels)
        problem = f"state_machine.{field}: expected one of {expected}, observed {level!r}"
        raise ConfigError(problem, problems=[problem])


def _check_certificate(
    backend: Backend, plugin: Plugin, built: Any, profile: str, path: Path | None
) -> None:
    if path is None:
        problem = f"state_machine.certificate: expected a path, as {profile!r} is required"
        raise ConfigError(problem, problems=[problem])
    defaults = structure_options(backend)
    check_certificate(_identity(backend, plugin, built), defaults, profile=profile, path=path)


def _identity(backend: Backend, plugin: Plugin, built: Any) -> BackendIdentity:
    return identify(backend.name, plugin.entry_point, backend.contract_version, built)


def _check_version(backend: Backend, plugin: Plugin) -> None:
    if backend.contract_version == CONTRACT_VERSION:
        return
    finding = Finding(
        "CONTRACT_VERSION",
        f"contract {CONTRACT_VERSION}",
        f"contract {backend.contract_version!r}",
        f"entry point {plugin.entry_point.value}",
    )
    raise violation(backend.name, plugin.label, [finding])


def _construct(
    plug: Backend | LogEngine, plugin: Plugin, directory: Path, options: Any, kind: str
) -> Any:
    try:
        return plug.factory(directory, options)
    except Exception as exc:
        raise _factory_error(plug, plugin, exc, kind) from exc


def _factory_error(
    plug: Backend | LogEngine | CliCommand, plugin: Plugin, exc: Exception, kind: str
) -> BackendLoadError:
    return BackendLoadError(
        f"{kind} {plug.name!r} ({plugin.label}): its factory failed: {told(exc)}; "
        "nothing was created",
        name=plug.name,
        distribution=plugin.label,
    )


def _preflight(backend: Backend, plugin: Plugin, options: Any) -> list[Finding]:
    try:
        durability = backend.durability_for(options)
    except Exception as exc:
        raise BackendLoadError(
            f"backend {backend.name!r} ({plugin.label}): its durability function failed: "
            f"{told(exc)}; nothing was created",
            name=backend.name,
            distribution=plugin.label,
        ) from exc
    return run_preflight(
        lambda directory: backend.factory(directory, options),
        durability=durability,
        commands=None if backend.limits is None else key_value_commands(),
    )
