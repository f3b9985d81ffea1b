"""Progress of `dengine-sm conformance`: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conformance_command import plain_surroundings
from rich.console import Console
from sample_reports import check

from dengine_sm.cli.conformance_progress import ProgressBar, ProgressLines, progress_on
from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import Progress


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_surroundings(monkeypatch, tmp_path)


class TestProgress:
    @staticmethod
    def told() -> list[Progress]:
        one, two = (checks_for(Profile.QUICK, [clause])[0] for clause in ("APPLY-1", "APPLY-2"))
        result = check("APPLY-1", Status.FAILED, violated="APPLY-3", time_s=1.5)
        return [
            Progress(one, 0, 2),
            Progress(one, 0, 2, done=1, steps=4),
            Progress(one, 0, 2, result=result),
            Progress(two, 1, 2),
        ]

    def test_is_a_bar_on_a_terminal_and_lines_elsewhere(self) -> None:
        assert isinstance(progress_on(Console(force_terminal=True)), ProgressBar)
        assert isinstance(progress_on(Console(force_terminal=False)), ProgressLines)

    def test_the_bar_shows_check_steps_and_time_left(self, tmp_path: Path) -> None:
        path = tmp_path / "terminal"
        with path.open("w") as file:
            console = Console(file=file, force_terminal=True, width=120)
            with progress_on(console) as progress:
                for told in self.told():
                    progress.told(told)
                    assert isinstance(progress, ProgressBar)
                    progress._bars.refresh()

        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", path.read_text())
        assert re.search(r"APPLY-1 apply_1_\w+ .* 0/2 .* left", text)
        assert re.search(r"  steps .* 1/4 .* left", text)
        assert re.search(r"APPLY-2 apply_2_\w+ .* 1/2 ", text)
        assert re.search(r"APPLY-3 failed in apply_1_\w+", text)

    def test_lines_tell_of_a_long_check_what_is_left(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = iter((0.0, 40.0, 60.0, 60.0))
        monkeypatch.setattr(
            "dengine_sm.cli.conformance_progress.time.monotonic", lambda: next(clock)
        )
        lines = ProgressLines(Console(force_terminal=False, width=200))

        for told in self.told():
            lines.told(told)

        first, second = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"\[1/2\] apply_1_\w+: 1 of 4, about 120 s left", first)
        assert second == "[1/2] failed    apply_1_holds (1.50 s)"
