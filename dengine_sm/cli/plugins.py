"""`backends` and `check`: what is installed, and whether it keeps the contract."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dengine_sm.cli import exit_codes
from dengine_sm.cli.app import example, given_options
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option

if TYPE_CHECKING:
    from dengine_sm.hookspecs import Backend
    from dengine_sm.loader import InstalledBackend

_COLUMNS = ("name", "distribution", "version", "durability", "summary", "error")


@click.command(epilog=example("dengine-sm backends"))
@json_option
def backends(as_json: bool) -> None:
    """List the installed backends, broken ones included; exit code 3 if any is broken."""
    from dengine_sm.loader import installed_backends

    rows = [_row(found) for found in installed_backends()]
    if as_json:
        for row in rows:
            print_json(row)
    else:
        table = Table(*_COLUMNS)
        for row in rows:
            table.add_row(*(Text(str(row[column] or "")) for column in _COLUMNS))
        Console().print(table)
    if any(row["error"] for row in rows):
        raise click.exceptions.Exit(exit_codes.CONFIG)


@click.command(
    epilog=example("dengine-sm check file", "dengine-sm check file --option durability=per_apply")
)
@click.argument("name")
@click.option("--option", "options", multiple=True, metavar="K=V", help="An option of the backend.")
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    help="Also check that this certificate is about the backend as installed.",
)
def check(name: str, options: tuple[str, ...], certificate: Path | None) -> None:
    """Check the backend NAME: its structure, then a run in a temporary directory."""
    given = given_options("--option", options)
    from dengine_sm.loader import create_state_machine

    with tempfile.TemporaryDirectory(prefix="dengine-check-") as directory:
        create_state_machine(
            name,
            Path(directory) / "data",
            given,
            validate="preflight",
            require_certificate="standard" if certificate else "off",
            certificate=certificate,
        )
    click.echo(f"backend {name!r}: no violations found")


def _row(found: InstalledBackend) -> dict[str, Any]:
    backend = found.backend
    return {
        "name": found.name,
        "distribution": found.distribution,
        "version": found.version,
        "durability": _durability(backend) if backend else None,
        "summary": backend.summary if backend else None,
        "error": str(found.error) if found.error else None,
    }


def _durability(backend: Backend) -> str | None:
    """The class under default options; None when the plugin fails to tell."""
    try:
        return backend.durability_for(backend.options()).value
    except Exception:  # a plugin's code; one that fails must not hide the others
        return None
