"""`load`: send a history to a running server, batch by batch, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dengine_sm.cli import exit_codes, resume
from dengine_sm.cli.app import example, existing_file, listing, run_async
from dengine_sm.cli.history import HistoryFile, Line
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option, open_client, target_options
from dengine_sm.errors import DEngineError
from dengine_sm.model import ApplyResult, Outcome

BATCH_BYTES = 4 * 1024 * 1024


@click.command(
    epilog=listing(
        "Lines",
        [
            '{"t": 1383612080000, "op": "put", "key": "a", "value": "1", "ttl_ms": 60000}',
            '{"t": 1383612080001, "op": "delete", "key": "a"}',
        ],
    )
    + example("dengine-sm load examples/data/raft-history.ndjson.gz")
)
@click.argument("file", type=existing_file(), metavar="FILE.ndjson[.gz]")
@click.option("--until-line", type=click.IntRange(min=1), help="Stop after this line.")
@click.option(
    "--batch",
    "batch_lines",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Lines a request; fewer when they are large.",
)
@click.option(
    "--resume-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to keep the progress; by default below ~/.local/state, by file and server.",
)
@click.option("--restart", is_flag=True, help="Forget earlier progress and send every line.")
@target_options
@json_option
def load(
    file: Path,
    until_line: int | None,
    batch_lines: int,
    resume_file: Path | None,
    restart: bool,
    target: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Load puts and deletes, one JSON object a line, into a running server.

    One batch is under way at a time, so the log has the order of the file. Progress is
    recorded after every acknowledged batch: run the same command again to go on where it
    stopped. A batch that was cut off is sent again, which is harmless, because puts and
    deletes are idempotent. Bad lines are reported and not sent; exit code 1 if there were
    any.
    """
    progress_path = resume_file or resume.default_path(file, target)
    known = None if restart else resume.read(progress_path, file, target)
    job = _Load(
        history=HistoryFile(file),
        until_line=until_line,
        batch_lines=batch_lines,
        progress_path=progress_path,
        progress=known or resume.fresh(file, target),
        timeout_s=timeout_s,
        report=_JsonReport() if as_json else _TextReport(),
    )
    try:
        with job.report:
            run_async(job.run())
    except (DEngineError, KeyboardInterrupt):
        click.echo(
            f"{job.progress.lines} lines are done with; run the same command again to go on",
            err=True,
        )
        raise
    job.report.done(job.progress)
    if job.progress.refused:
        raise click.exceptions.Exit(exit_codes.NEGATIVE)


@attrs.define
class _Load:
    history: HistoryFile
    until_line: int | None
    batch_lines: int
    progress_path: Path
    progress: resume.Progress
    timeout_s: float
    report: _TextReport | _JsonReport

    async def run(self) -> None:
        """Send what is left, in order; one request at a time."""
        async with open_client(self.progress.target, self.timeout_s) as client:
            if self.progress.lines:
                status = await client.status()
                last_applied = status["last_applied"]["index"]
                resume.check_server(self.progress_path, self.progress, last_applied)
                self.report.resumed(self.progress, self.progress_path)
            for batch in self._batches():
                commands = [line.command for line in batch if line.command is not None]
                results = await client.apply(commands) if commands else []
                self._acknowledged(batch, results)

    def _batches(self) -> Iterator[list[Line]]:
        batch: list[Line] = []
        size_bytes = 0
        lines = self.history.lines(after=self.progress.lines, until=self.until_line)
        try:
            for line in lines:
                added = len(line.command or b"")
                if batch and (len(batch) >= self.batch_lines or size_bytes + added > BATCH_BYTES):
                    yield batch
                    batch, size_bytes = [], 0
                batch.append(line)
                size_bytes += added
        except DEngineError:
            # The file is damaged from here on; what was read before is still good.
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    def _acknowledged(self, batch: list[Line], results: list[ApplyResult]) -> None:
        sent = [line for line in batch if line.command is not None]
        refused = [(line.number, line.problem) for line in batch if line.problem is not None]
        for line, result in zip(sent, results, strict=True):
            if result.outcome is Outcome.REJECTED:
                refused.append((line.number, "rejected by the state machine"))
        for number, problem in sorted(refused):
            self.report.refused(number, str(problem))
        self.progress = attrs.evolve(
            self.progress,
            lines=batch[-1].number,
            sent=self.progress.sent + len(sent),
            refused=self.progress.refused + len(refused),
            log_index=results[-1].index if results else self.progress.log_index,
        )
        resume.write(self.progress_path, self.progress)
        self.report.advanced(self.progress, self.history)


class _JsonReport:
    """One JSON object a line: resumed, refused, progress, done."""

    def __enter__(self) -> _JsonReport:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def resumed(self, progress: resume.Progress, path: Path) -> None:
        print_json({"event": "resumed", "lines": progress.lines, "resume_file": str(path)})

    def refused(self, number: int, problem: str) -> None:
        print_json({"event": "refused", "line": number, "problem": problem})

    def advanced(self, progress: resume.Progress, _history: HistoryFile) -> None:
        print_json({"event": "progress", **_counts(progress)})

    def done(self, progress: resume.Progress) -> None:
        print_json({"event": "done", **_counts(progress)})


def _counts(progress: resume.Progress) -> dict[str, int]:
    return {"lines": progress.lines, "sent": progress.sent, "refused": progress.refused}


class _TextReport:
    """A progress bar on stderr, and sentences."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.fields[lines]} lines"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]:.0f} lines/s, left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("load", total=None, lines=0, rate=0.0)
        self._first: int | None = None

    def __enter__(self) -> _TextReport:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def resumed(self, progress: resume.Progress, path: Path) -> None:
        self._first = progress.lines
        self._print(
            f"skipping {progress.lines} lines acknowledged earlier, says {path}; "
            "--restart sends them again"
        )

    def refused(self, number: int, problem: str) -> None:
        self._print(f"line {number}: {problem}; not loaded")

    def advanced(self, progress: resume.Progress, history: HistoryFile) -> None:
        elapsed_s = self._bar.tasks[self._task].elapsed or 0.0
        lines = progress.lines - (self._first or 0)
        self._bar.update(
            self._task,
            total=history.size_bytes,
            completed=history.position_bytes,
            lines=progress.lines,
            rate=lines / elapsed_s if elapsed_s else 0.0,
        )

    def done(self, progress: resume.Progress) -> None:
        click.echo(
            f"{progress.lines} lines: {progress.sent} commands acknowledged, "
            f"{progress.refused} lines refused"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
