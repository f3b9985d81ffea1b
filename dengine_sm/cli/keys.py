"""`put`, `get`, `delete`, `cas`, `scan`: one key or a range, on a running server."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dengine_sm.cli import exit_codes
from dengine_sm.cli.app import example, run_async
from dengine_sm.cli.output import argument_bytes, json_fields, print_json, printable
from dengine_sm.cli.target import json_option, open_client, target_options
from dengine_sm.model import ScanResult


@click.command(epilog=example("dengine-sm put greeting hello --ttl 60"))
@click.argument("key")
@click.argument("value")
@click.option(
    "--ttl",
    "ttl_s",
    type=click.FloatRange(min=0.001),
    metavar="SECONDS",
    help="Time to live, in time of the log; without it the key stays.",
)
@target_options
def put(key: str, value: str, ttl_s: float | None, target: str, timeout_s: float) -> None:
    """Set KEY to VALUE; returns once that is committed and applied."""
    ttl_ms = None if ttl_s is None else round(ttl_s * 1000)

    async def work() -> None:
        async with open_client(target, timeout_s) as client:
            await client.put(argument_bytes(key), argument_bytes(value), ttl_ms=ttl_ms)

    run_async(work())


@click.command(epilog=example("dengine-sm get greeting"))
@click.argument("key")
@target_options
@json_option
def get(key: str, target: str, timeout_s: float, as_json: bool) -> None:
    """Print the value of KEY; exit code 1 if it is absent."""

    async def work() -> bytes | None:
        async with open_client(target, timeout_s) as client:
            return await client.get(argument_bytes(key))

    value = run_async(work())
    if as_json:
        found = {"value": None} if value is None else json_fields(value=value)
        print_json({**json_fields(key=argument_bytes(key)), "found": value is not None, **found})
    elif value is None:
        click.echo(f"key {key!r} is absent", err=True)
    else:
        sys.stdout.buffer.write(value + b"\n")
        sys.stdout.buffer.flush()
    if value is None:
        raise click.exceptions.Exit(exit_codes.NEGATIVE)


@click.command(epilog=example("dengine-sm delete greeting"))
@click.argument("key")
@target_options
def delete(key: str, target: str, timeout_s: float) -> None:
    """Make KEY absent; succeeds also when it was."""

    async def work() -> None:
        async with open_client(target, timeout_s) as client:
            await client.delete(argument_bytes(key))

    run_async(work())


@click.command(
    epilog=example(
        "dengine-sm cas leader --absent --new node-1",
        "dengine-sm cas leader --expected node-1 --delete",
    )
)
@click.argument("key")
@click.option("--expected", metavar="V", help="Swap only if the key holds this value.")
@click.option("--absent", is_flag=True, help="Swap only if the key is absent.")
@click.option("--new", metavar="V", help="The value to set.")
@click.option("--delete", "delete_key", is_flag=True, help="Delete the key instead.")
@target_options
@json_option
def cas(
    key: str,
    expected: str | None,
    absent: bool,
    new: str | None,
    delete_key: bool,
    target: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Compare and swap KEY; exit code 1 if it did not hold what was expected."""
    if absent == (expected is not None):
        raise click.UsageError("expected exactly one of --expected and --absent")
    if delete_key == (new is not None):
        raise click.UsageError("expected exactly one of --new and --delete")

    async def work() -> bool:
        async with open_client(target, timeout_s) as client:
            return await client.compare_and_swap(
                argument_bytes(key),
                None if expected is None else argument_bytes(expected),
                None if new is None else argument_bytes(new),
            )

    swapped = run_async(work())
    if as_json:
        print_json({**json_fields(key=argument_bytes(key)), "swapped": swapped})
    elif not swapped:
        click.echo(f"key {key!r} does not hold what was expected; nothing changed", err=True)
    if not swapped:
        raise click.exceptions.Exit(exit_codes.NEGATIVE)


@click.command(epilog=example("dengine-sm scan config/ --limit 20"))
@click.argument("prefix", default="")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Print at most this many entries; `dump` prints all.",
)
@target_options
@json_option
def scan(prefix: str, limit: int, target: str, timeout_s: float, as_json: bool) -> None:
    """Print the entries whose keys begin with PREFIX, at one point in time."""

    async def work() -> ScanResult:
        async with open_client(target, timeout_s) as client:
            # One more than asked, to know whether there is more.
            return await client.scan(argument_bytes(prefix), limit=limit + 1)

    result = run_async(work())
    entries = result.entries[:limit]
    if as_json:
        for key, value in entries:
            print_json(json_fields(key=key, value=value))
    else:
        table = Table("key", "value")
        for key, value in entries:
            table.add_row(Text(printable(key)), Text(printable(value)))
        Console().print(table)
        click.echo(f"{len(entries)} entries at index {result.last_applied.index}")
    if len(result.entries) > limit:
        click.echo(f"there are more than {limit} entries; raise --limit or use dump", err=True)
