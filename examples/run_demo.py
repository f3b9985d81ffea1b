"""`make run`: load a real history, kill the node half-way, resume, and check the result.

The history is that of a public git repository: every change of a file is a put or a delete.
The oracle says what `git ls-tree` showed at some of its commits; it does not come from this
project. Everything here goes through the `dengine-sm` command, as a user would do it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from dengine_sm.client import Client

DATA = Path(__file__).resolve().parent / "data"
HISTORY = DATA / "raft-history.ndjson.gz"
ORACLE = DATA / "raft-history.oracle.json"
COMMAND = [sys.executable, "-m", "dengine_sm.cli"]
BATCH = 20
KILLED = -signal.SIGKILL

console = Console(highlight=False, soft_wrap=True)
Digest = tuple[int, str]
Row = tuple[str, str, str, bool]


class DemoError(Exception):
    """Something was not as it should be."""


def say(text: str) -> None:
    """Announce a step."""
    console.print(f"[bold cyan]==[/] {text}")


def show(arguments: list[str]) -> None:
    """Print a command as a user would type it."""
    console.print(f"   [dim]$ dengine-sm {shlex.join(arguments)}[/]")


def cli(*arguments: str, quiet: bool = False) -> str:
    """Run a command to its end and return what it printed."""
    if not quiet:
        show(list(arguments))
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"dengine-sm {arguments[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@contextmanager
def process(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command beside this program; it is gone afterwards."""
    show(arguments)
    running = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        output(running).close()


def output(running: subprocess.Popen[str]) -> IO[str]:
    """Return what a process prints."""
    if running.stdout is None:
        raise DemoError("the process has no stdout")
    return running.stdout


@contextmanager
def node(data_dir: Path, backend: str, listen: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Run a node; yield its process and what it said when it was ready."""
    arguments = ["run", "--data-dir", str(data_dir), "--backend", backend, "--listen", listen]
    with process([*arguments, "--json"]) as running:
        line = output(running).readline()
        if not line:
            raise DemoError(f"the node ended with {running.wait()} before it was ready")
        ready = json.loads(line)
        say(
            f"ready: node {ready['node']} on {ready['listen']}, backend {ready['backend']}, "
            f"last applied index {ready['last_applied']['index']}"
        )
        yield running, ready


def digest(state: dict[bytes, bytes]) -> Digest:
    """Return entries and sha256 of a state, as the oracle has them."""
    sha256 = hashlib.sha256()
    for key in sorted(state):
        sha256.update(key + b"\t" + state[key] + b"\n")
    return len(state), sha256.hexdigest()


def served_digest(target: str) -> Digest:
    """Read everything that the server has, through the client, and digest it."""

    async def read() -> dict[bytes, bytes]:
        async with Client(target) as client:
            return {k: v async for page in client.scan_pages() for k, v in page.entries}

    return digest(asyncio.run(read()))


def model_digests(lines: range) -> dict[Digest, int]:
    """Return what a plain dict holds after each of these lines of the history."""
    state: dict[bytes, bytes] = {}
    digests = {}
    with gzip.open(HISTORY, "rt") as history:
        for number, line in enumerate(history, 1):
            record = json.loads(line)
            if record["op"] == "put":
                state[record["key"].encode()] = record["value"].encode()
            else:
                state.pop(record["key"].encode(), None)
            if number in lines:
                digests[digest(state)] = number
    return digests


class Demo:
    """The steps of the demonstration, and what they found."""

    def __init__(self, directory: Path, backend: str) -> None:
        self.data_dir = directory / "data"
        self.resume_file = directory / "load.progress"
        self.backend = backend
        self.checkpoints = json.loads(ORACLE.read_text())["checkpoints"]
        self.last_line = self.checkpoints[-1]["after_line"]
        self.rows: list[Row] = []

    def run(self) -> None:
        """Load, kill, start again, resume, take a snapshot."""
        half = self.last_line // 2
        before = [c for c in self.checkpoints if c["after_line"] <= half]
        with node(self.data_dir, self.backend, "127.0.0.1:0") as (running, ready):
            target = ready["listen"]
            for checkpoint in before:
                self.load_to(checkpoint, target)
            acknowledged = self.kill_during_load(running, target, half)
        say("start the node again, on the same directory")
        with node(self.data_dir, self.backend, target) as (running, ready):
            reached = self.check_survivors(target, acknowledged)
            say("resume the load from what was acknowledged")
            for checkpoint in (c for c in self.checkpoints if c["after_line"] >= reached):
                self.load_to(checkpoint, target)
            say("take a snapshot")
            show(["snapshot", "--target", target])
            taken = json.loads(cli("snapshot", "--target", target, "--json", quiet=True))
            console.print(f"   {json.dumps(taken)}", markup=False)
            say("stop the node with SIGTERM")
            running.terminate()
            self.record("clean stop", "exit code 0", f"exit code {running.wait()}")

    def load_arguments(self, target: str) -> list[str]:
        """Return the command that every load begins with."""
        resume = ["--resume-file", str(self.resume_file)]
        return ["load", str(HISTORY), "--target", target, *resume, "--batch", str(BATCH)]

    def load_to(self, checkpoint: dict[str, Any], target: str) -> None:
        """Load up to a checkpoint of the oracle and compare what is served."""
        line = checkpoint["after_line"]
        cli(*self.load_arguments(target), "--until-line", str(line))
        expected = (checkpoint["entries"], checkpoint["sha256"])
        observed = served_digest(target)
        self.record(
            f"oracle after line {line}",
            "{} entries, sha256 {:.12}".format(*expected),
            "{} entries, sha256 {:.12}".format(*observed),
            ok=expected == observed,
        )

    def kill_during_load(self, running: subprocess.Popen[str], target: str, half: int) -> int:
        """Kill the node while batches are under way; return the lines acknowledged."""
        say(f"load on, and kill the node with SIGKILL after line {half}")
        acknowledged = 0
        with process([*self.load_arguments(target), "--json"]) as loading:
            for line in output(loading):
                acknowledged = json.loads(line).get("lines", acknowledged)
                if acknowledged >= half and running.poll() is None:
                    running.kill()
                    running.wait()
            code = loading.wait()
        self.record("node ended by SIGKILL", str(KILLED), str(running.returncode))
        self.record("load reports it", "exit code 5 or 6", f"exit code {code}", ok=code in (5, 6))
        say(f"{acknowledged} of {self.last_line} lines were acknowledged")
        return acknowledged

    def check_survivors(self, target: str, acknowledged: int) -> int:
        """Nothing acknowledged is lost, and of the batch under way nothing is torn."""
        window = range(acknowledged, min(acknowledged + BATCH, self.last_line) + 1)
        found = model_digests(window).get(served_digest(target))
        self.record(
            "state after SIGKILL and restart",
            f"that of line {window[0]} to {window[-1]}",
            "that of no such line" if found is None else f"that of line {found}",
            ok=found is not None,
        )
        return window[-1]

    def record(self, what: str, expected: str, observed: str, *, ok: bool | None = None) -> None:
        """Note the result of a check."""
        good = expected == observed if ok is None else ok
        self.rows.append((what, expected, observed, good))
        mark = "[green]ok[/]" if good else "[bold red]MISMATCH[/]"
        console.print(f"   {mark} {what}: {observed}")

    def summary(self) -> bool:
        """Print all checks; return whether all are good."""
        table = Table("check", "expected", "observed", "", title="What was checked")
        for what, expected, observed, good in self.rows:
            table.add_row(what, expected, observed, "[green]ok[/]" if good else "[red]MISMATCH[/]")
        console.print(table)
        return all(row[-1] for row in self.rows)


WHERE_TO_GO = """\
[bold]Where to go next[/]
  .venv/bin/dengine-sm run --data-dir /tmp/my-node       a node of your own; then, elsewhere:
  .venv/bin/dengine-sm put greeting hello
  .venv/bin/dengine-sm get greeting
  .venv/bin/dengine-sm load examples/data/raft-history.ndjson.gz
  .venv/bin/dengine-sm scan .github/
  .venv/bin/dengine-sm backends                          what else can hold the state
  README.md                                              use it as a library, write a backend
"""


def main() -> int:
    """Run the demonstration; 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="file", help="an installed backend (default: file)")
    backend = parser.parse_args().backend
    # Settings of the user's own node are not for this one.
    for name in [n for n in os.environ if n.startswith("DENGINE_SM_")]:
        del os.environ[name]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dengine-demo-") as directory:
        say(f"a node with backend {backend} and the embedded log, in {directory}")
        demo = Demo(Path(directory), backend)
        try:
            demo.run()
        except DemoError as exc:
            console.print(f"demo failed: {exc}", style="bold red", markup=False)
            return 1
        good = demo.summary()
    say(f"done in {time.monotonic() - started:.1f} s; the temporary directory is gone")
    console.print(WHERE_TO_GO)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
