"""Progress of a conformance run on stderr: a bar on a terminal, else lines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from types import TracebackType

    from dengine_sm.conformance.runner import Progress as Told

_BETWEEN_LINES_S = 30.0


def progress_on(console: Console) -> ProgressBar | ProgressLines:
    """Return what shows progress on a console; a context manager."""
    return ProgressBar(console) if console.is_terminal else ProgressLines(console)


class ProgressBar:
    """Two bars, one for all checks and one for the steps of a long one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._all = self._bars.add_task("checks", total=None)
        self._one = self._bars.add_task("", visible=False)
        self._current = ""

    def __enter__(self) -> ProgressBar:
        self._bars.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def told(self, progress: Told) -> None:
        """Show how far the run is."""
        done = progress.number + (progress.result is not None)
        self._bars.update(
            self._all,
            total=progress.total,
            completed=done,
            description=f"[bold]{progress.check.clause}[/] {progress.check.name}",
        )
        if progress.check.name != self._current:
            self._current = progress.check.name
            self._bars.reset(self._one, visible=False, description="  steps")
        if progress.steps:
            self._bars.update(
                self._one, total=progress.steps, completed=progress.done, visible=True
            )
        if progress.result is not None and progress.result.status.value == "failed":
            self._console.print(
                f"{progress.result.violated or progress.check.clause} failed "
                f"in {progress.check.name}",
                style="red",
                highlight=False,
                markup=False,
            )


class ProgressLines:
    """A line for every check that ended, and now and then one for a long one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._current = ""
        self._began = self._spoke = 0.0

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        pass

    def told(self, progress: Told) -> None:
        """Print what is worth a line."""
        now = time.monotonic()
        if progress.check.name != self._current:
            self._current = progress.check.name
            self._began = self._spoke = now
        place = f"[{progress.number + 1:>{len(str(progress.total))}}/{progress.total}]"
        result = progress.result
        if result is not None:
            self._print(f"{place} {result.status.value:<9} {result.check} ({result.time_s:.2f} s)")
        elif progress.done and now - self._spoke > _BETWEEN_LINES_S:
            self._spoke = now
            left_s = (now - self._began) / progress.done * (progress.steps - progress.done)
            self._print(
                f"{place} {progress.check.name}: {progress.done} of {progress.steps}, "
                f"about {left_s:.0f} s left"
            )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
