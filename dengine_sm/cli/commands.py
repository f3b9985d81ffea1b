"""Puts the commands of all groups under `dengine-sm`."""

from __future__ import annotations

import click

from dengine_sm.cli.app import example, listing
from dengine_sm.cli.config import config
from dengine_sm.cli.conformance import conformance
from dengine_sm.cli.copy import copy
from dengine_sm.cli.dump import dump
from dengine_sm.cli.exit_codes import MEANINGS
from dengine_sm.cli.keys import cas, delete, get, put, scan
from dengine_sm.cli.load import load
from dengine_sm.cli.new import new
from dengine_sm.cli.plugin_commands import PluginCommandGroup
from dengine_sm.cli.plugins import backends, check
from dengine_sm.cli.run import run
from dengine_sm.cli.server_info import snapshot, status


@click.group(
    cls=PluginCommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example("dengine-sm run --data-dir /var/lib/dengine", "dengine-sm put greeting hello")
    + listing("Exit codes", [f"{code:>3}  {meaning}" for code, meaning in MEANINGS.items()]),
)
@click.version_option(package_name="dengine-sm", prog_name="dengine-sm")
def main() -> None:
    """Run a replicated state machine, and talk to a running one."""


for _command in (
    run,
    put,
    get,
    delete,
    cas,
    scan,
    load,
    dump,
    status,
    snapshot,
    new,
    backends,
    check,
    conformance,
    copy,
    config,
):
    main.add_command(_command)
