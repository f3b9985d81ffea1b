"""`dump`: every entry of a running server as ndjson that `load` reads."""

from __future__ import annotations

import click

from dengine_sm.cli.app import example, run_async
from dengine_sm.cli.output import argument_bytes, json_fields, print_json
from dengine_sm.cli.target import open_client, target_options


@click.command(epilog=example("dengine-sm dump config/ > config.ndjson"))
@click.argument("prefix", default="")
@click.option("--page", type=click.IntRange(1, 100_000), default=1000, help="Entries a request.")
@target_options
def dump(prefix: str, page: int, target: str, timeout_s: float) -> None:
    """Print entries whose keys begin with PREFIX, as lines that `load` reads.

    Each page is one point in time, the whole is not when the server is written to
    meanwhile. Keys and values that are not UTF-8 are base64, and marked. Times to live
    are not part of it.
    """

    async def work() -> None:
        async with open_client(target, timeout_s) as client:
            async for result in client.scan_pages(argument_bytes(prefix), page_entries=page):
                for key, value in result.entries:
                    print_json({"op": "put", **json_fields(key=key, value=value)})

    run_async(work())
