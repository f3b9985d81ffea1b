"""`dengine-sm copy`: what it prints, its exit codes, and real signals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from copies import content, entries, fill, install_engines, opened
from rich.console import Console

from dengine_sm.cli import exit_codes, main
from dengine_sm.cli.copy import _progress_on
from dengine_sm.copying import CopyProgress, Stage

COMMAND = [sys.executable, "-m", "dengine_sm.cli", "copy"]


@pytest.fixture(autouse=True)
def _engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_engines(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


def copy(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["copy", *(str(argument) for argument in arguments)])


class TestOutput:
    def test_says_what_was_copied_and_how_far_it_was(self, root: Path):
        fill("file", root / "a", entries(100))

        result = copy("--from", f"file:{root}/a", "--to", f"toy-sqlite:{root}/b")

        assert result.exit_code == exit_codes.OK
        assert result.stdout.startswith(
            f"copied file:{root}/a to toy-sqlite:{root}/b: 80 entries, "
            "last applied 100 in term 2, checksum "
        )
        assert [line.split(", ")[:2] for line in result.stderr.splitlines()] == [
            ["write: done", "80 entries"],
            ["install: done", "80 entries"],
            ["verify: done", "80 entries"],
        ]
        assert content("toy-sqlite", root / "b") == content("file", root / "a")

    def test_json_is_one_object(self, root: Path):
        fill("file", root / "a", entries(100))

        result = copy("--from", f"file:{root}/a", "--to", f"file:{root}/b:c", "--json")

        (line,) = result.stdout.splitlines()
        told = json.loads(line)
        machine = opened("file", root / "b:c")
        snapshot = machine.snapshot_metadata()
        machine.stop()
        assert snapshot is not None
        assert sorted(told.pop("seconds")) == sorted(Stage)
        assert told == {
            "from": f"file:{root}/a",
            "to": f"file:{root}/b:c",
            "last_applied": {"term": 2, "index": 100},
            "entries": 80,
            "checksum": snapshot.checksum.hex(),
        }

    def test_options_reach_their_side(self, root: Path):
        fill("file", root / "a", entries(5))
        places = ("--from", f"file:{root}/a", "--to", f"file:{root}/b")

        wrong = copy(*places, "--from-option", "durability=x", "--to-option", "segment_bytes=1")
        right = copy(*places, "--from-option", "segment_bytes=8192", "--to-option",
                     "durability=per_apply")  # fmt: skip

        assert wrong.exit_code == exit_codes.CONFIG
        assert "  - source: state_machine.options.durability: " in wrong.stderr
        assert "  - target: state_machine.options.segment_bytes: " in wrong.stderr
        assert right.exit_code == exit_codes.OK

    def test_a_terminal_gets_a_bar(self):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=120, _environ={})

        with _progress_on(console) as shown:
            shown.told(CopyProgress(Stage.INSTALL, 1234, 5_000_000, None, 1.0, False))
            shown.told(CopyProgress(Stage.VERIFY, 1234, 1_000_000, 4_000_000, 1.0, False))

        assert "install" in screen.getvalue()
        assert "1234 entries, 5.0 MB" in screen.getvalue()
        assert "25%" in screen.getvalue()

    def test_a_long_stage_gets_a_line_now_and_then(self):
        screen = io.StringIO()

        with _progress_on(Console(file=screen, width=120)) as shown:
            for time_s in (0.0, 10.0, 31.0, 32.0):
                shown.told(CopyProgress(Stage.VERIFY, 9, 1000, 4000, time_s, False))
            shown.told(CopyProgress(Stage.VERIFY, 9, 4000, 4000, 33.0, True))

        assert screen.getvalue().splitlines() == [
            "verify: under way, 9 entries, 1.0 kB, 25 % (31.0 s)",
            "verify: done, 9 entries, 4.0 kB (33.0 s)",
        ]


class TestExitCodes:
    @pytest.mark.parametrize("place", ["file", "file:", ":dir", "", ":"])
    @pytest.mark.parametrize("side", ["--from", "--to"])
    def test_a_place_of_another_form(self, root: Path, side: str, place: str):
        other = {"--from": "--to", "--to": "--from"}[side]

        result = copy(side, place, other, f"file:{root}/a")

        assert result.exit_code == exit_codes.USAGE
        assert f"expected BACKEND:DIR, observed {place!r}" in result.stderr

    @pytest.mark.parametrize("option", ["--from-option", "--to-option"])
    def test_an_option_of_another_form(self, root: Path, option: str):
        result = copy("--from", f"file:{root}/a", "--to", f"file:{root}/b", option, "x")

        assert result.exit_code == exit_codes.USAGE
        assert f"{option}: expected K=V, observed 'x'" in result.stderr

    @pytest.mark.parametrize(
        ("source", "target", "code", "message"),
        [
            ("fiel:a", "file:b", exit_codes.CONFIG, "Did you mean 'file'?"),
            ("memory:a", "file:b", exit_codes.CONFIG, "TRANSIENT"),
            ("file:a", "file:a", exit_codes.CONFIG, "one directory"),
            ("file:absent", "file:b", exit_codes.STORAGE, "absent or empty"),
            ("file:a", "file:full", exit_codes.STORAGE, "not empty"),
            ("file:a", "toy-sum:b", exit_codes.STORAGE, "does not read the snapshots"),
            ("file:a", f"file:{'b' * 300}", exit_codes.STORAGE, "File name too long"),
        ],
    )
    def test_a_refusal(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, code: int,
        message: str,
    ):  # fmt: skip
        monkeypatch.chdir(root)
        fill("file", root / "a", entries(5))
        fill("file", root / "full", entries(5))

        result = copy("--from", source, "--to", target)

        assert result.exit_code == code
        assert result.stdout == ""
        assert message in result.stderr
        assert sorted(path.name for path in root.iterdir()) == ["a", "full"]

    def test_a_running_node(self, root: Path):
        fill("file", root / "a", entries(5))
        machine = opened("file", root / "a")

        result = copy("--from", f"file:{root}/a", "--to", f"file:{root}/b")
        machine.stop()

        assert result.exit_code == exit_codes.STORAGE
        assert f"is in use: directory '{root}/a' is locked by process {os.getpid()}" in (
            result.stderr
        )
        assert "Stop the node that uses it, then copy again" in result.stderr


class TestSignals:
    @pytest.fixture
    def places(self, root: Path) -> list[str]:
        fill("file", root / "a", entries(20_000, b"v" * 1000))
        return ["--from", f"file:{root}/a", "--to", f"toy-sqlite:{root}/b"]

    def start_until(self, places: list[str], path: Path) -> subprocess.Popen[str]:
        """Start a copy and wait until it has made a path."""
        process = subprocess.Popen([*COMMAND, *places], stderr=subprocess.PIPE, text=True)
        while not path.exists():
            assert process.poll() is None, f"the copy ended before {path} was there"
            time.sleep(0.001)
        return process

    @pytest.mark.parametrize("made", ["snapshot", "machine", "check/entries.cbor"])
    def test_killed_and_run_again(self, root: Path, places: list[str], made: str):
        process = self.start_until(places, root / "b.partial" / made)
        process.kill()
        process.communicate()
        left = sorted(path.name for path in root.iterdir())

        again = copy(*places)

        assert process.returncode == -signal.SIGKILL
        assert left == ["a", "b.partial"]
        assert again.exit_code == exit_codes.OK
        assert sorted(path.name for path in root.iterdir()) == ["a", "b"]
        assert content("toy-sqlite", root / "b") == content("file", root / "a")

    @pytest.mark.parametrize("made", ["snapshot", "machine"])
    def test_ctrl_c_leaves_nothing(self, root: Path, places: list[str], made: str):
        process = self.start_until(places, root / "b.partial" / made)

        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)

        assert process.returncode == exit_codes.INTERRUPTED
        assert stderr.endswith("interrupted\n")
        assert "Traceback" not in stderr
        assert [path.name for path in root.iterdir()] == ["a"]
