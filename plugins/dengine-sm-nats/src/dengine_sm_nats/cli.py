"""`dengine-sm cluster`: a cluster on this machine, and a look at any cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.progress import Progress, TaskID

from dengine_sm.cli.app import example, run_async
from dengine_sm.cli.exit_codes import NEGATIVE
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option
from dengine_sm.config import load_config
from dengine_sm.errors import CommitLogError, ConfigError
from dengine_sm.structuring import structure
from dengine_sm_nats.checks import Finding
from dengine_sm_nats.local_cluster import LocalCluster, LocalNode
from dengine_sm_nats.options import NatsLogOptions
from dengine_sm_nats.server_config import server_name

Say = Callable[..., None]


@click.group()
def cluster() -> None:
    """Run servers and nodes on this machine, check a cluster, or begin one with a state."""


@cluster.command(
    epilog=example(
        "dengine-sm cluster up --nodes 3",
        "dengine-sm cluster up --nodes 2 --backend file --backend sqlite --dir /tmp/cluster",
    )
)
@click.option("--nodes", type=click.IntRange(min=0), default=3, show_default=True)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("dengine-cluster"),
    show_default=True,
    help="Holds everything, and is kept: the next `up` goes on with it.",
)
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    help="Of all nodes; or several times, once for each node.",
)
@json_option
def up(nodes: int, directory: Path, backends: tuple[str, ...], as_json: bool) -> None:
    """Run three nats-servers and some nodes on loopback, until SIGTERM or Ctrl-C.

    Each node's `node.toml` is written at every start, as ports change.
    """
    # SIGTERM like Ctrl-C, wherever it comes: what was started by then is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalCluster(directory, nodes, backends) as running:
            try:
                _run(running, _printer(as_json))
            finally:
                # From here on everything stops, and a second Ctrl-C must not leave half of it.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        return


def _run(running: LocalCluster, say: Say) -> None:
    running.start_servers()
    servers = running.servers
    for index, (url, monitoring) in enumerate(zip(servers.urls, servers.monitoring, strict=True)):
        name = server_name(index)
        text = f"server {name} on {url}, monitoring {monitoring}"
        say(text, event="server", name=name, url=url, monitoring=monitoring)
    for node in running.start_nodes():
        _say_node(node, say)
    directory = str(running.directory)
    say(f"ready: cluster in {directory}; Ctrl-C stops it", event="ready", directory=directory)
    while True:
        name = running.wait_ended()
        say(f"ended: {name}; the others go on", event="ended", name=name)


def _say_node(node: LocalNode, say: Say) -> None:
    say(
        f"node {node.name} on {node.listen} (backend {node.backend})",
        event="node",
        name=node.name,
        listen=node.listen,
        backend=node.backend,
        pid=node.process.pid,
    )


def _printer(as_json: bool) -> Say:
    def say(text: str, **fields: Any) -> None:
        if as_json:
            print_json(fields)
        else:
            click.echo(text)

    return say


@cluster.command(
    epilog=example(
        "dengine-sm cluster check --config node.toml",
        "dengine-sm cluster check --server nats://a:4222 --monitoring http://a:8222",
        "dengine-sm cluster check --config node.toml --copies",
    )
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A node's configuration, whose [log.options] say where the servers are.",
)
@click.option(
    "--server", "servers", multiple=True, metavar="URL", help="nats://HOST:PORT; repeatable."
)
@click.option("--monitoring", multiple=True, metavar="URL", help="http://HOST:PORT; repeatable.")
@click.option("--stream", metavar="NAME", help="The stream that is the log.")
@click.option("--replicas", type=int, help="How many copies the stream should have.")
@click.option(
    "--copies",
    "with_copies",
    is_flag=True,
    help="Also read every server's copy, and compare them message by message.",
)
@json_option
def check(
    config_file: Path | None,
    servers: tuple[str, ...],
    monitoring: tuple[str, ...],
    stream: str | None,
    replicas: int | None,
    with_copies: bool,
    as_json: bool,
) -> None:
    """Print everything about servers and stream that breaks what the log promises.

    A damaged byte is unseen until its server reads it: --copies has it read, which takes as long as
    reading the stream once for every copy. Exit code 1 if there is anything.
    """
    from dengine_sm_nats.survey import survey

    flags = {
        "servers": list(servers),
        "monitoring": list(monitoring),
        "stream": stream,
        "replicas": replicas,
    }
    options = _log_options(config_file, {key: value for key, value in flags.items() if value})
    findings = run_async(survey(options))
    if with_copies:
        findings += _check_copies(options)
    say = _printer(as_json)
    for finding in findings:
        say(f"- {finding}", **attrs.asdict(finding))
    if findings:
        raise click.exceptions.Exit(NEGATIVE)
    if not as_json:
        click.echo(
            f"{len(options.servers)} servers and stream {options.stream!r}: no problems found"
        )


def _check_copies(options: NatsLogOptions) -> list[Finding]:
    from dengine_sm_nats.copies import survey_copies

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:
        bars: dict[str, TaskID] = {}

        def on_progress(name: str, read: int, count: int) -> None:
            if name not in bars:
                bars[name] = shown.add_task(f"copy on {name}", total=count)
            shown.update(bars[name], completed=read)

        try:
            return run_async(survey_copies(options, on_progress))
        except CommitLogError as exc:
            # What was found by then is told nevertheless.
            reason = "What cannot be read is not checked."
            subject = f"copies of stream {options.stream!r}"
            return [Finding(subject, str(exc), "servers that answer", reason)]


@cluster.command(
    epilog=example(
        "dengine-sm cluster seed --config node.toml --archive data/snapshots/snapshot-....dsnap"
    )
)
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The configuration of any of the nodes to come.",
)
@click.option(
    "--archive",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A snapshot archive: of a node on this machine, of another cluster, or a backup.",
)
@json_option
def seed(config_file: Path, archive: Path, as_json: bool) -> None:
    """Begin a new stream with a state from elsewhere, for nodes that have nothing yet.

    The nodes' data directories must be empty; each installs the state when it starts.
    """
    from dengine_sm_nats.seed import seed_stream

    seeded = run_async(seed_stream(_log_options(config_file, {}), archive))
    index, term = seeded.last_included.index, seeded.term
    _printer(as_json)(
        f"stream {seeded.stream!r} begins behind index {index}, in term {term}; start the nodes",
        event="seeded",
        stream=seeded.stream,
        term=term,
        index=index,
    )


def _log_options(config_file: Path | None, flags: dict[str, Any]) -> NatsLogOptions:
    """Return the log's options in a node's configuration, overridden by flags."""
    if config_file is None and "servers" not in flags:
        raise click.UsageError("give --config FILE, or --server URL and --monitoring URL")
    table: dict[str, Any] = {}
    if config_file is not None:
        log = load_config(config_file).log
        if log.engine != "nats":
            problem = f"log.engine: expected 'nats', observed {log.engine!r} in {config_file}"
            raise ConfigError(problem, problems=[problem])
        table = log.options
    return structure(NatsLogOptions, {**table, **flags}, where="log.options")
