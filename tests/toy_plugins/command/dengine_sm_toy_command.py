"""A plugin that adds commands: a sound group, and some that cannot be used."""

from __future__ import annotations

from typing import Any

from dengine_sm import CliCommand, hookimpl


def create_toy() -> Any:
    """Return a group with one command."""
    import click

    from dengine_sm.errors import ConfigError

    @click.group()
    def toy() -> None:
        """Play."""

    @toy.command()
    @click.argument("name")
    def greet(name: str) -> None:
        """Greet NAME, who must not be empty."""
        if not name:
            raise ConfigError("toy: nobody to greet", problems=["toy: nobody to greet"])
        click.echo(f"hello {name}")

    return toy


def create_failing() -> Any:
    """Fail, as a missing library does."""
    raise ImportError("no module for this toy")


@hookimpl
def dengine_sm_commands() -> list[CliCommand]:
    """Offer them."""
    return [
        CliCommand("toy", create_toy, summary="play with toys"),
        CliCommand("failing-toy", create_failing, summary="does not work"),
        CliCommand("no-toy", lambda: "a text", summary="is none"),
        CliCommand("run", create_toy, summary="wants a name that is taken"),
    ]
