"""`run`: a node with its server, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dengine_sm.cli.app import ListenAddress, example, missing_extra, run_async
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option
from dengine_sm.errors import DEngineError

if TYPE_CHECKING:
    from dengine_sm.config import NodeConfig
    from dengine_sm.node import Node


@click.command(
    epilog=example(
        "dengine-sm run --data-dir /var/lib/dengine",
        "dengine-sm run --config node.toml --listen 127.0.0.1:0 --json",
    )
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A TOML file; `dengine-sm config show` prints one.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where log, state and snapshots are; overrides [node] data_dir.",
)
@click.option("--backend", metavar="NAME", help="Overrides [state_machine] backend.")
@click.option(
    "--listen", type=ListenAddress(), help="Overrides [server] listen; port 0 takes a free one."
)
@json_option
def run(
    config_file: Path | None,
    data_dir: Path | None,
    backend: str | None,
    listen: str | None,
    as_json: bool,
) -> None:
    """Run a node until SIGTERM or Ctrl-C; prints `ready: ...` once it serves."""
    from dengine_sm.config import load_config

    config = load_config(
        config_file,
        overrides={
            "node.data_dir": data_dir,
            "state_machine.backend": backend,
            "server.listen": listen,
        },
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run_async(_serve(config, as_json))


async def _serve(config: NodeConfig, as_json: bool) -> None:
    from dengine_sm.node import NodeBuilder

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with NodeBuilder(config).build() as node, _server(node, config) as address:
        _announce(node, address, as_json)
        await _stopped(node, stop)
        # The server goes first, on leaving: requests under way get their answers.


@contextlib.asynccontextmanager
async def _server(node: Node, config: NodeConfig) -> AsyncIterator[str | None]:
    if not config.server.enabled:
        yield None
        return
    try:
        from dengine_sm.server import NodeServer
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("dengine_sm"):
            raise
        raise missing_extra(exc) from exc
    server = NodeServer(
        node,
        listen=config.server.listen,
        max_message_bytes=config.server.max_message_bytes,
    )
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


async def _stopped(node: Node, stop: asyncio.Event) -> None:
    """Return when told to stop; raise when the node stops itself."""
    told = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(node.wait_stopped())
    await asyncio.wait((told, ended), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not ended.done():
        ended.cancel()
        return
    name = node.config.node.name
    failure = ended.exception()
    if failure is None:
        return
    raise DEngineError(f"node {name!r} stopped itself: {failure}") from failure


def _announce(node: Node, address: str | None, as_json: bool) -> None:
    status = node.status()
    last_applied = status.last_applied
    if as_json:
        place = {"term": last_applied.term, "index": last_applied.index}
        facts = {"node": status.name, "listen": address, "backend": status.backend}
        print_json({"event": "ready", **facts, "last_applied": place, "pid": os.getpid()})
        return
    where = f"listening on {address}" if address else "without a server"
    click.echo(
        f"ready: node {status.name!r} {where} "
        f"(backend {status.backend}, last applied {last_applied.index})"
    )
