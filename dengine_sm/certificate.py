"""Certificates: that the conformance kit passed a backend exactly as it is installed.

A certificate is a JSON file. It is no signature: it guards against mistakes (another
version, other options, a patched file), not against someone who wants to deceive.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path, PurePath
from typing import Any

import attrs

from dengine_sm.config import format_scalar
from dengine_sm.distribution import distribution_digest, requirement_versions
from dengine_sm.errors import CertificateError, ConfigError
from dengine_sm.files import make_directories, replace_file
from dengine_sm.structuring import structure

SCHEMA = "dengine-sm-certificate/1"
PROFILES = ("standard", "deep")
"""Profiles of the kit that a certificate can be about, weaker first."""

_KIT = "dengine-sm"
_MAX_BYTES = 1024 * 1024
_GOOD = ("passed", "not bound")


@attrs.frozen
class BackendIdentity:
    """A backend under its options, as installed: everything a certificate is bound to."""

    backend: str
    distribution: str
    version: str
    contract_version: int
    kit_version: str
    """Version of dengine-sm, which the kit is part of."""
    requirements: dict[str, str]
    """What the distribution itself requires, such as a native engine: name to version."""
    options: dict[str, Any]
    """Every option, defaults included, as JSON values."""
    distribution_digest: str
    """SHA-256 over the distribution's files."""

    @property
    def label(self) -> str:
        """How messages name the backend."""
        return f"backend {self.backend!r} ({self.distribution} {self.version})"


@attrs.frozen
class Certificate:
    """A run of the kit in which every clause passed or did not bind the machine."""

    identity: BackendIdentity
    profile: str
    seed: int
    issued_at: str
    """ISO 8601, UTC."""
    python: str
    """Major and minor version; it need not match."""
    platform: str
    """Operating system and processor; they need not match."""


def identify(
    name: str, entry_point: EntryPoint, contract_version: int, options: Any
) -> BackendIdentity:
    """Return the identity of an installed backend.

    Args:
        name: the backend's.
        entry_point: the plugin's, already loaded.
        contract_version: the one it was made for.
        options: an instance of the backend's options class.

    Raises:
        CertificateError: its files cannot be read as files, or an option has a value
            that no file could hold.
    """
    distribution = entry_point.dist
    try:
        if distribution is None:
            raise ValueError(f"entry point {entry_point.name!r} belongs to no distribution")
        requirements = requirement_versions(distribution)
        requirements.pop(_KIT, None)  # that is the kit's version
        return BackendIdentity(
            backend=name,
            distribution=distribution.name,
            version=distribution.version,
            contract_version=contract_version,
            kit_version=importlib.metadata.version(_KIT),
            requirements=requirements,
            options=canonical_options(options),
            distribution_digest=distribution_digest(distribution, entry_point.module),
        )
    except (ValueError, TypeError, OSError) as exc:
        raise CertificateError(
            f"backend {name!r} cannot have a certificate: {exc}", name=name
        ) from exc


def canonical_options(options: Any) -> dict[str, Any]:
    """Return an options instance as JSON values: paths as text, enums by value.

    Raises:
        TypeError: a value has no such form.
    """
    return {
        field.alias: _canonical(getattr(options, field.name), field.alias)
        for field in attrs.fields(type(options))
        if field.init
    }


def issue_certificate(
    before: BackendIdentity,
    after: BackendIdentity,
    *,
    profile: str,
    seed: int,
    is_complete: bool,
    clauses: Mapping[str, str],
    path: Path,
) -> Certificate:
    """Write the certificate of a run, replacing an earlier one; missing directories too.

    Args:
        before: the backend before the run.
        after: the backend after it.
        profile: `standard` or `deep`.
        seed: the run's.
        is_complete: False if the run was interrupted or covered some clauses only.
        clauses: what became of each clause: `passed`, `not bound`, or anything else.
        path: the file.

    Raises:
        CertificateError: the run proves too little; an earlier file is unchanged.
        StorageError: the file cannot be written.
    """
    if problem := _unproven(before, after, profile, is_complete, clauses):
        raise CertificateError(
            f"{before.label}: no certificate was written: {problem}",
            name=before.backend,
            path=path,
            problems=[problem],
        )
    certificate = Certificate(
        identity=before,
        profile=profile,
        seed=seed,
        issued_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        python=".".join(platform.python_version_tuple()[:2]),
        platform=f"{platform.system()} {platform.machine()}",
    )
    make_directories(path.parent)
    replace_file(path, _to_bytes(certificate))
    return certificate


def check_certificate(
    identity: BackendIdentity, defaults: Any, *, profile: str, path: Path
) -> Certificate:
    """Return the certificate in a file if it is about exactly this backend.

    Args:
        identity: the backend as installed, under the options it is to run with.
        defaults: an instance of its options class, as it is when nothing is chosen.
        profile: `standard`, which a deep run proves as well, or `deep`.
        path: the certificate's.

    Raises:
        CertificateError: the file is absent, damaged, edited, or about something else;
            the message has the command that produces the right one.
    """
    path = path.absolute()
    try:
        certificate = _from_bytes(_read(path))
        problems = _differences(identity, certificate, profile)
        if not problems:
            return certificate
    except ValueError as exc:
        problems = [str(exc)]
    command = conformance_command(identity, defaults, profile=profile, path=path)
    found = problems[0]
    if len(problems) > 1:
        found = f"it differs in {len(problems)} places:" + "".join(f"\n  - {p}" for p in problems)
    raise CertificateError(
        f"{identity.label} needs a certificate of profile {profile!r}; "
        f"certificate {str(path)!r}: {found}\nto produce it, run: {command}",
        name=identity.backend,
        path=path,
        problems=problems,
        command=command,
    )


def conformance_command(
    identity: BackendIdentity, defaults: Any, *, profile: str, path: Path
) -> str:
    """Return the command line that produces a certificate, ready for a shell."""
    usual = canonical_options(defaults)
    words = ["dengine-sm", "conformance", identity.backend, "--profile", profile]
    for name, value in identity.options.items():
        if _encoded(value) != _encoded(usual.get(name)):
            words += ["--option", f"{name}={format_scalar(value)}"]
    return shlex.join([*words, "--certificate", str(path)])


def _unproven(
    before: BackendIdentity,
    after: BackendIdentity,
    profile: str,
    is_complete: bool,
    clauses: Mapping[str, str],
) -> str | None:
    """Return why a run cannot be kept as a certificate, if it cannot."""
    if profile not in PROFILES:
        return f"expected a run of profile {' or '.join(PROFILES)}, observed {profile!r}"
    if not is_complete or not clauses:
        return "the run was interrupted, or covered some clauses only"
    bad = [f"{clause} {status}" for clause, status in clauses.items() if status not in _GOOD]
    if bad:
        return f"{len(bad)} of {len(clauses)} clauses did not pass: {', '.join(bad)}"
    if before != after:
        return "what is installed, or its options, changed during the run"
    return None


def _differences(identity: BackendIdentity, certificate: Certificate, profile: str) -> list[str]:
    """Return where a certificate is not about this backend, one sentence each."""
    other = certificate.identity
    if other.backend != identity.backend:
        return [_difference("backend", identity.backend, other.backend)]
    expected, observed = _flat(identity), _flat(other)
    problems = [
        _difference(name, expected.get(name), observed.get(name))
        for name in {**expected, **observed}
        if _encoded(expected.get(name)) != _encoded(observed.get(name))
    ]
    if not problems and other.distribution_digest != identity.distribution_digest:
        problems.append(f"the files of {identity.distribution} have changed since it was issued")
    if PROFILES.index(certificate.profile) < PROFILES.index(profile):
        problems.append(_difference("profile", profile, certificate.profile))
    return problems


def _flat(identity: BackendIdentity) -> dict[str, Any]:
    plain = attrs.asdict(identity, filter=lambda field, _: field.name != "distribution_digest")
    requirements, options = plain.pop("requirements"), plain.pop("options")
    return {
        **plain,
        **{f"requirements.{name}": version for name, version in requirements.items()},
        **{f"options.{name}": value for name, value in options.items()},
    }


def _difference(name: str, expected: Any, observed: Any) -> str:
    return f"{name}: expected {expected!r}, observed {observed!r}"


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except OSError as exc:
        raise ValueError(f"it cannot be read: {exc.strerror}") from exc


def _to_bytes(certificate: Certificate) -> bytes:
    content = {"schema": SCHEMA, **attrs.asdict(certificate)}
    document = {**content, "certificate_digest": _digest(content)}
    return json.dumps(document, indent=2).encode() + b"\n"


def _from_bytes(data: bytes) -> Certificate:
    """Return the certificate of a file.

    Raises:
        ValueError: it is damaged, edited, or of another schema.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"it is damaged, not JSON: {exc}") from exc
    if not isinstance(document, dict) or "schema" not in document:
        raise ValueError("it is JSON, but no certificate")
    if document["schema"] != SCHEMA:
        raise ValueError(_difference("schema", SCHEMA, document["schema"]))
    digest = document.pop("certificate_digest", None)
    if digest != _digest(document):
        raise ValueError("it was edited or damaged: its digest does not match its content")
    del document["schema"]
    try:
        certificate = structure(Certificate, document, where="")
    except ConfigError as exc:
        raise ValueError(f"it is no certificate: {exc}") from exc
    if certificate.profile not in PROFILES:
        raise ValueError(f"it is of profile {certificate.profile!r}, which proves too little")
    return certificate


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encoded(content)).hexdigest()


def _encoded(value: Any) -> bytes:
    """Return the one spelling of a JSON value: equal exactly if type and value are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _canonical(value: Any, where: str) -> Any:
    match value:
        case enum.Enum():
            return _canonical(value.value, where)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case PurePath():
            return str(value)
        case bytes():
            return value.hex()
        case Mapping():
            return {str(key): _canonical(item, where) for key, item in value.items()}
        case set() | frozenset():
            return sorted((_canonical(item, where) for item in value), key=_encoded)
        case list() | tuple():
            return [_canonical(item, where) for item in value]
        case datetime.date() | datetime.time():  # a datetime is a date
            return value.isoformat()
    if attrs.has(type(value)):
        return canonical_options(value)
    raise TypeError(f"option {where!r} is a {type(value).__name__}, which no file can hold")
