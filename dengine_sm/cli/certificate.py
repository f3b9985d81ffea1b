"""`conformance --certificate`: what has to be right before the run, and the file after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dengine_sm.certificate import BackendIdentity
    from dengine_sm.conformance.results import Report


def identity_before(
    name: str, options: dict[str, Any], profile: str, only: tuple[str, ...]
) -> BackendIdentity:
    """Return what the certificate would be about; refuse a run that cannot lead to one."""
    from dengine_sm.certificate import PROFILES
    from dengine_sm.loader import backend_identity

    if profile not in PROFILES:
        raise click.UsageError(
            f"--certificate: expected --profile {' or '.join(PROFILES)}, observed {profile!r}"
        )
    if only:
        raise click.UsageError("--certificate needs all clauses and takes no '--clause'")
    return backend_identity(name, options)


def write_certificate(
    path: Path, before: BackendIdentity, options: dict[str, Any], report: Report
) -> None:
    """Keep a run as a certificate if it passed; say on stderr what became of it."""
    from dengine_sm.certificate import issue_certificate
    from dengine_sm.loader import backend_identity

    if not report.is_passed:
        click.echo("certificate: not written, as not every clause passed", err=True)
        return
    issue_certificate(
        before,
        backend_identity(before.backend, options),
        profile=report.profile,
        seed=report.seed,
        is_complete=report.is_complete,
        clauses={result.clause: result.status.value for result in report.clauses},
        path=path,
    )
    click.echo(f"certificate: {path}", err=True)
