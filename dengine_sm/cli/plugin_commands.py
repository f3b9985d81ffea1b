"""The commands that plugins add, looked up only when a name is not a built-in one."""

from __future__ import annotations

import click

from dengine_sm.cli.app import CommandGroup
from dengine_sm.errors import BackendLoadError, BackendNotFoundError


class PluginCommandGroup(CommandGroup):
    """A group of built-in commands; then those of plugins, none of which can be in their way."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a built-in command, or else a plugin's.

        Raises:
            BackendConflictError: two plugins have the command.
            BackendLoadError: the plugin does not load, or returned no command.
            click.UsageError: nobody has it; plugins that did not load are named.
        """
        return super().get_command(ctx, cmd_name) or _plugin_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the built-in commands, and below them what plugins bring."""
        super().format_commands(ctx, formatter)
        rows = _help_rows(set(self.commands))
        if rows:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(rows)


def _plugin_command(ctx: click.Context, name: str) -> click.Command | None:
    from dengine_sm.loader import create_command

    try:
        found = create_command(name)
    except BackendNotFoundError:
        _refuse_when_plugins_are_missing(ctx, name)
        return None
    if not isinstance(found, click.Command):
        raise BackendLoadError(
            f"command {name!r}: its factory returned {found!r:.80}; expected a click.Command",
            name=name,
        )
    return found


def _refuse_when_plugins_are_missing(ctx: click.Context, name: str) -> None:
    from dengine_sm.loader import installed_commands

    broken = [str(item.error) for item in installed_commands() if item.command is None]
    if broken and not ctx.resilient_parsing:
        bullets = "".join(f"\n  - {error}" for error in broken)
        raise click.UsageError(f"No such command {name!r}. Not loaded:{bullets}", ctx)


def _help_rows(built_in: set[str]) -> list[tuple[str, str]]:
    from dengine_sm.loader import installed_commands

    rows = {}
    for item in installed_commands():
        if item.command is None:
            continue
        if item.name in built_in:
            rows[item.name] = f"not available: {item.distribution} took the name of a built-in one"
        else:
            rows[item.name] = f"not available: {item.error}" if item.error else item.command.summary
    return list(rows.items())
