"""`status` and `snapshot`: ask a running server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dengine_sm.cli.app import example, run_async
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option, open_client, target_options
from dengine_sm.model import SnapshotMetadata


@click.command(epilog=example("dengine-sm status --json"))
@target_options
@json_option
def status(target: str, timeout_s: float, as_json: bool) -> None:
    """Print what the server says about itself."""

    async def work() -> dict[str, Any]:
        async with open_client(target, timeout_s) as client:
            return await client.status()

    _print(run_async(work()), as_json)


@click.command(epilog=example("dengine-sm snapshot --timeout 60"))
@target_options
@json_option
def snapshot(target: str, timeout_s: float, as_json: bool) -> None:
    """Take a snapshot now, and print what it covers."""

    async def work() -> SnapshotMetadata | None:
        async with open_client(target, timeout_s) as client:
            return await client.take_snapshot()

    taken = run_async(work())
    if taken is not None:
        last_included = {"term": taken.last_included.term, "index": taken.last_included.index}
        answer = {"last_included": last_included, "checksum": taken.checksum.hex()}
        _print({"taken": True, **answer, "format": taken.format}, as_json)
    elif as_json:
        print_json({"taken": False})
    else:
        click.echo("nothing to take: nothing was applied since the newest snapshot")


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    table = Table(show_header=False, box=None)
    for name, value in _flat(answer):
        table.add_row(Text(name), Text(str(value)))
    console = Console()
    console.print(table)
    for name, rows in _tables(answer):
        console.print(f"\n{name}", highlight=False)
        console.print(_table(rows))


def _flat(answer: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in answer.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif not _is_table(value):
            rows.append((prefix + name, value))
    return rows


def _is_table(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def _tables(answer: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield what has many rows, such as the nodes of a shared log."""
    for name, value in answer.items():
        if isinstance(value, dict):
            yield from _tables(value, f"{prefix}{name}.")
        elif _is_table(value):
            yield prefix + name, value


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    return table
