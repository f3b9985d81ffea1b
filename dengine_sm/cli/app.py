"""The command group: error messages and exit codes for all commands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dengine_sm.cli import exit_codes
from dengine_sm.errors import ConfigError, DEngineError

Result = TypeVar("Result")


class CommandGroup(click.Group):
    """A group whose commands end with one message on stderr and a documented code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn errors of ours into message and exit code."""
        try:
            return super().invoke(ctx)
        except DEngineError as exc:
            click.echo(f"error: {exc}", err=True)
            ctx.exit(exit_codes.for_error(exc))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(exit_codes.INTERRUPTED)


class ListenAddress(click.ParamType[str]):
    """`HOST:PORT` on the command line."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form; the value stays text."""
        from dengine_sm.config import split_listen

        try:
            split_listen(value, name=self.name)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)
        return str(value)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine in an event loop, uvloop's when installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def example(*lines: str) -> str:
    """Return a help epilog that shows how a command is used."""
    return listing("Example", lines)


def listing(title: str, lines: Sequence[str]) -> str:
    """Return a paragraph whose lines click leaves as they are."""
    # click's mark for "do not rewrap"; as an escape in a docstring it would be invisible.
    return f"\b\n{title}:\n" + "".join(f"  {line}\n" for line in lines) + "\n"


def missing_extra(exc: ModuleNotFoundError, extra: str = "server") -> ConfigError:
    """Return the error for a command whose optional dependency is not installed."""
    message = (
        f"this command needs the module {exc.name!r}, which is not installed; "
        f"install it with: pip install 'dengine-sm[{extra}]'"
    )
    return ConfigError(message, problems=[message])


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failing import of what an extra brings into an error that says so.

    Raises:
        ConfigError: a module that is not ours is missing.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("dengine_sm"):
            raise
        raise missing_extra(exc, extra) from exc


def existing_file() -> click.Path:
    """Return the parameter type of a readable file."""
    return click.Path(exists=True, dir_okay=False, path_type=Path)


def given_options(flag: str, options: Sequence[str]) -> dict[str, Any]:
    """Return the table that a flag's values `K=V` make.

    Raises:
        click.UsageError: one of them is not of that form.
    """
    from dengine_sm.config import parse_options

    try:
        return parse_options(options)
    except ValueError as exc:
        raise click.UsageError(f"{flag}: {exc}") from exc
