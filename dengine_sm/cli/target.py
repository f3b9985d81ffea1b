"""How client commands find and reach a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dengine_sm.cli.app import ListenAddress, missing_extra

if TYPE_CHECKING:
    from dengine_sm.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])


def target_options(command: Function) -> Function:
    """Add `--target` and `--timeout`."""
    command = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for an answer.",
    )(command)
    return click.option(
        "--target",
        type=ListenAddress(),
        envvar="DENGINE_SM_TARGET",
        default="127.0.0.1:9081",
        show_default=True,
        show_envvar=True,
        help="The server to talk to.",
    )(command)


def json_option(command: Function) -> Function:
    """Add `--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, one object a line, for scripts."
    )(command)


def open_client(target: str, timeout_s: float) -> Client:
    """Return a client, to be used as an async context manager.

    Raises:
        ConfigError: grpc is not installed.
    """
    try:
        from dengine_sm.client import Client
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("dengine_sm"):
            raise
        raise missing_extra(exc) from exc
    return Client(target, timeout_s=timeout_s)
