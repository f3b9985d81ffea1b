"""`copy`: move a state from one backend to another."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from dengine_sm.cli.app import example, given_options, run_async
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option

if TYPE_CHECKING:
    from dengine_sm.copying import BackendDirectory, CopyProgress, CopyReport

_BETWEEN_LINES_S = 30.0


class _PlaceType(click.ParamType["BackendDirectory"]):
    name = "BACKEND:DIR"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> BackendDirectory:
        """Split at the first colon."""
        from dengine_sm.copying import BackendDirectory

        backend, _, directory = str(value).partition(":")
        if not backend or not directory:
            self.fail(f"expected BACKEND:DIR, observed {value!r}", param, ctx)
        return BackendDirectory(backend, Path(directory))


@click.command(
    epilog=example(
        "dengine-sm copy --from file:data/state_machine --to rocksdb:data/state_machine.new",
        "dengine-sm copy --from file:old --to file:new --to-option durability=per_apply --json",
    )
)
@click.option(
    "--from", "source", type=_PlaceType(), required=True, help="The state to copy, not in use."
)
@click.option("--to", "target", type=_PlaceType(), required=True, help="An absent or empty DIR.")
@click.option(
    "--from-option", "source_options", multiple=True, metavar="K=V", help="An option of --from."
)
@click.option(
    "--to-option", "target_options", multiple=True, metavar="K=V", help="An option of --to."
)
@json_option
def copy(
    source: BackendDirectory,
    target: BackendDirectory,
    source_options: tuple[str, ...],
    target_options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Copy the state of a backend into another, verified by checksum.

    DIR is the backend's own directory; a node has it as `state_machine` in its data
    directory. Stop the node first: a directory in use is refused. The copy appears at once
    when it is complete, and until then is made in a directory beside it, DIR.partial. If it
    is interrupted or killed, run the same command again.
    """
    with _progress_on(Console(stderr=True)) as shown:
        from dengine_sm.copying import copy_state

        report = run_async(
            copy_state(
                attrs.evolve(source, options=given_options("--from-option", source_options)),
                attrs.evolve(target, options=given_options("--to-option", target_options)),
                on_progress=shown.told,
            )
        )
    if as_json:
        print_json(_json_of(report))
        return
    applied = report.last_applied
    click.echo(
        f"copied {report.source} to {report.target}: {report.entries} entries, "
        f"last applied {applied.index} in term {applied.term}, checksum {report.checksum.hex()}"
    )


def _json_of(report: CopyReport) -> dict[str, Any]:
    applied = report.last_applied
    return {
        "from": str(report.source),
        "to": str(report.target),
        "last_applied": {"term": applied.term, "index": applied.index},
        "entries": report.entries,
        "checksum": report.checksum.hex(),
        "seconds": {stage.value: round(time_s, 3) for stage, time_s in report.seconds.items()},
    }


def _progress_on(console: Console) -> _ProgressBar | _ProgressLines:
    return _ProgressBar(console) if console.is_terminal else _ProgressLines(console)


class _ProgressBar(contextlib.AbstractContextManager["_ProgressBar"]):
    """A bar for the stage under way; it fills where the size is known beforehand."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(show_speed=False),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def told(self, progress: CopyProgress) -> None:
        """Show how far the copy is."""
        stage = progress.stage.value
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=None, amount="")
        total = progress.written_bytes if progress.is_done else progress.total_bytes
        self._bar.update(
            self._tasks[stage],
            total=total,
            completed=progress.written_bytes,
            amount=_amount(progress),
        )


class _ProgressLines(contextlib.AbstractContextManager["_ProgressLines"]):
    """A line for every stage that ended, and now and then one for a long one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spoke_s = 0.0

    def __exit__(self, *_exc: object) -> None:
        pass

    def told(self, progress: CopyProgress) -> None:
        """Print what is worth a line."""
        if progress.time_s < self._spoke_s:
            self._spoke_s = 0.0  # of the stage before
        if not progress.is_done and progress.time_s - self._spoke_s < _BETWEEN_LINES_S:
            return
        self._spoke_s = progress.time_s
        share = ""
        if progress.total_bytes and not progress.is_done:
            share = f", {100 * progress.written_bytes // progress.total_bytes} %"
        state = "done" if progress.is_done else "under way"
        amount = f"{_amount(progress)}{share}"
        self._console.print(
            f"{progress.stage.value}: {state}, {amount} ({progress.time_s:.1f} s)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _amount(progress: CopyProgress) -> str:
    return f"{progress.entries} entries, {decimal(progress.written_bytes)}"
