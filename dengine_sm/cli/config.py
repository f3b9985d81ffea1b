"""`config check` and `config show`."""

from __future__ import annotations

from pathlib import Path

import click

from dengine_sm.cli.app import example
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def config() -> None:
    """Check a configuration, or show what is in effect."""


@config.command("check", epilog=example("dengine-sm config check node.toml"))
@click.argument("file", required=False, type=_FILE)
def config_check(file: Path | None) -> None:
    """Report every problem of FILE and of DENGINE_SM__... variables; exit code 3 if any."""
    from dengine_sm.config import load_config

    load_config(file)
    click.echo(f"{file or 'defaults and environment'}: no problems found")


@config.command("show", epilog=example("dengine-sm config show > node.toml"))
@click.argument("file", required=False, type=_FILE)
@json_option
def config_show(file: Path | None, as_json: bool) -> None:
    """Print the whole configuration in effect, defaults included, as TOML."""
    from dengine_sm.config import config_to_dict, config_to_toml, load_config

    loaded = load_config(file)
    if as_json:
        print_json(config_to_dict(loaded))
    else:
        click.echo(config_to_toml(loaded), nl=False)
