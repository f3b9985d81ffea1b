"""`dengine-sm conformance`: runs, what they print and write, exit codes, differences."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import attrs
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from sample_reports import check, failed, mixed_report, report

from dengine_sm.cli import exit_codes, main
from dengine_sm.cli.conformance_progress import ProgressBar, ProgressLines, progress_on
from dengine_sm.conformance import catalogue, runner
from dengine_sm.conformance.backend import header_of_backend, subject_of_backend
from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.maker import Maker
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.report_json import read_report, report_to_json
from dengine_sm.conformance.results import Report, Status
from dengine_sm.conformance.runner import Progress
from dengine_sm.errors import (
    BackendLoadError,
    BackendNotFoundError,
    ConfigError,
    ContractViolationError,
)
from dengine_sm.model import Durability

RESULTS_IN_REVERSE = """
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.model import Limits

class Reversed(KeyValueStateMachine):
    async def apply_chunk(self, chunk):
        return list(await super().apply_chunk(chunk))[::-1]

@hookimpl
def dengine_sm_backends():
    return [Backend("reversed", lambda data_dir, options: Reversed(RamStore()),
                    durability=Durability.TRANSIENT, limits=Limits())]
"""

HANGS = """
import sys, threading
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.model import Limits

class Hangs(KeyValueStateMachine):
    async def apply_chunk(self, chunk):
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()

@hookimpl
def dengine_sm_backends():
    return [Backend("hangs", lambda data_dir, options: Hangs(RamStore()),
                    durability=Durability.TRANSIENT, limits=Limits())]
"""

Install = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("DENGINE_SM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a plugin, as pip would leave it, from the body of its module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)

    def add(name: str, source: str) -> Path:
        prelude = "from dengine_sm import Backend, Durability, Limits, hookimpl\n"
        (site / f"kit_toy_{name}.py").write_text(prelude + source)
        info = site / f"kit_toy_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: kit-toy-{name}\nVersion: 1.5\n"
        )
        (info / "entry_points.txt").write_text(f"[dengine_sm]\n{name} = kit_toy_{name}\n")
        importlib.invalidate_caches()
        return site

    yield add
    for name in [name for name in sys.modules if name.startswith("kit_toy_")]:
        del sys.modules[name]


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report], dict[str, Any]]:
    """Let the next run find a hand-made report; returns what the run was asked for."""

    def put(found: Report) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def run_conformance(subject: Any, **arguments: Any) -> Report:
            asked.update(arguments, subject=subject)
            return found

        monkeypatch.setattr(runner, "run_conformance", run_conformance)
        monkeypatch.setattr(catalogue, "checks_for", lambda *_: found.checks)
        return asked

    return put


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["conformance", *(str(a) for a in arguments)])


def words(text: str) -> str:
    """Return text as one line, without the frames of tables."""
    return re.sub(r"[\s│┃]+", " ", text)


class TestRun:
    def test_a_sound_backend_passes(self) -> None:
        result = call("memory", "--profile", "quick", "--clause", "apply-1", "--clause", "SNAP-5")

        assert (result.exit_code, result.exception) == (0, None), result.output
        first, *rest = result.stdout.splitlines()
        assert first.startswith("state machine: memory 0.")
        assert first.endswith(
            "contract 1 · durability TRANSIENT · get_multi, scan_prefix, keeps state in memory"
        )
        assert rest[-1].startswith("passed: of 2 clauses, 2 passed; ")
        assert re.search(r"^\[1/\d\] passed    apply_1_\w+ \(\d", result.stderr)

    def test_a_broken_backend_fails_and_is_told_how(self, install: Install) -> None:
        install("reversed", RESULTS_IN_REVERSE)

        result = call("reversed", "--profile", "quick", "--clause", "APPLY-1", "--seed", "3")

        assert result.exit_code == exit_codes.NEGATIVE
        assert result.stdout.startswith("state machine: reversed 1.5 · contract 1 · ")
        for line in (
            "APPLY-1 failed: one result per entry, in order, with the entry's index.",
            "  expected  ",
            "  observed  ",
            "  history",
            "  seed      3",
            "  reproduce dengine-sm conformance reversed --clause APPLY-1 --seed 3 --profile quick",
        ):
            assert f"\n{line}" in result.stdout
        assert result.stdout.splitlines()[-1].startswith("failed: of 1 clause, 1 failed; ")

    def test_asks_for_what_the_command_line_says(
        self, finds: Callable[[Report], dict[str, Any]]
    ) -> None:
        asked = finds(report())

        result = call(
            *("file", "--option", "durability=per_apply", "--profile", "deep"),
            *("--seed", "9", "--clause", "log-1"),
        )

        assert result.exit_code == 0, result.output
        assert asked["profile"] is Profile.DEEP
        assert (asked["seed"], asked["only"]) == (9, ("LOG-1",))
        assert asked["subject"].durability is Durability.PER_APPLY

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (Status.PASSED, 0),
            (Status.NOT_BOUND, 0),
            (Status.SKIPPED, 1),
            (Status.FAILED, 1),
            (Status.KNOWN_FAILURE, 1),
        ],
    )
    def test_only_passed_and_not_bound_are_exit_code_0(
        self, status: Status, code: int, finds: Callable[[Report], Any]
    ) -> None:
        finds(report(check("LOG-1", status, reason="a reason")))

        result = call("memory")

        assert result.exit_code == code
        assert ("a reason" in result.stdout) is (status is not Status.PASSED)
        assert ("LOG-1" in result.stdout) is (status is not Status.PASSED)

    def test_the_table_has_what_is_not_passed_with_its_reason(
        self, finds: Callable[[Report], Any]
    ) -> None:
        finds(mixed_report())

        text = words(call("memory").stdout)

        assert " skipped LIFE-8 no check in this profile " in text
        assert " skipped CRASH-8 strace is not installed " in text
        assert " not bound SNAP-13 the machine keeps its state in memory " in text
        assert " failed APPLY-4 APPLY-4: expected b'1'; observed b'2' " in text
        assert " passed LIFE-1 " not in text
        assert text.count(" reproduce dengine-sm conformance acme ") == 4

    def test_clauses_with_one_reason_share_a_row(self, finds: Callable[[Report], Any]) -> None:
        same = [check(f"SNAP-{n}", Status.SKIPPED, reason="no strace") for n in range(1, 14)]
        finds(report(*same))

        text = words(call("memory").stdout)

        assert f" skipped {', '.join(c.clause for c in same)} no strace " in text

    def test_json_is_the_report_and_nothing_else(self, finds: Callable[[Report], Any]) -> None:
        finds(mixed_report())

        result = call("memory", "--json")

        assert result.exit_code == 1
        assert len(result.stdout.splitlines()) == 1
        assert json.loads(result.stdout) == json.loads(report_to_json(mixed_report()))

    def test_writes_every_report(self, finds: Callable[[Report], Any], tmp_path: Path) -> None:
        finds(mixed_report())
        paths = [tmp_path / f"r.{ending}" for ending in ("json", "xml", "html")]

        result = call("memory", *(w for path in paths for w in ("--report", path)))

        assert result.exit_code == 1
        assert read_report(paths[0]) == mixed_report()
        assert ET.parse(paths[1]).getroot().tag == "testsuites"
        assert paths[2].read_text().startswith("<!doctype html>")
        assert [f"report: {path}" in result.stderr for path in paths] == [True] * 3

    def test_a_report_that_cannot_be_written_does_not_cost_the_others(
        self, finds: Callable[[Report], Any], tmp_path: Path
    ) -> None:
        finds(report())
        (tmp_path / "r.xml.tmp").mkdir()

        result = call("memory", "--report", "r.xml", "--report", "r.json")

        assert result.exit_code == exit_codes.STORAGE
        assert "error: 'r.xml': cannot replace the file" in result.stderr
        assert read_report(tmp_path / "r.json") == report()
        assert "passed: of 55 clauses" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "say which backend, by NAME, or which reports, by --diff"),
            (["memory", "--clause", "LOG-9"], "--clause: expected an id such as 'APPLY-2'"),
            (["memory", "--clause", "LOG"], "--clause: expected an id such as 'APPLY-2'"),
            (["memory", "--profile", "slow"], "'--profile': 'slow' is not one of"),
            (["memory", "--option", "sync"], "--option: expected K=V, observed 'sync'"),
            (["memory", "--seed", "-1"], "'--seed'"),
            (["memory", "--report", "r.pdf"], "--report: expected a name that ends in .json"),
            (["memory", "--report", "absent/r.json"], "--report: no directory 'absent'"),
            (["--diff", "a.json"], "'--diff' requires 2 arguments"),
            (["--diff", "absent.json", "a.json"], "'absent.json' does not exist"),
            (
                ["memory", "--diff", "a.json", "a.json"],
                "--diff compares two reports and takes no NAME",
            ),
            (["--seed", "1", "--diff", "a.json", "a.json"], "takes no --seed"),
        ],
    )
    def test_a_wrong_command_line_is_exit_code_2(
        self, arguments: list[str], message: str, tmp_path: Path
    ) -> None:
        (tmp_path / "a.json").write_text("{}")

        result = call(*arguments)

        assert result.exit_code == exit_codes.USAGE
        assert message in result.stderr

    def test_unknown_backends_and_options_are_exit_code_3(self) -> None:
        backend, option = call("fiel"), call("file", "--option", "nonsense=1")

        assert (backend.exit_code, option.exit_code) == (exit_codes.CONFIG, exit_codes.CONFIG)
        assert "no state machine backend named 'fiel'" in backend.stderr
        assert "nonsense" in option.stderr

    def test_ctrl_c_ends_early_and_writes_what_was_found(
        self, install: Install, tmp_path: Path
    ) -> None:
        install("hangs", HANGS)
        command = [sys.executable, "-m", "dengine_sm.cli", "conformance", "hangs"]
        command += ["--clause", "LIFE-2", "--clause", "APPLY-1", "--profile", "quick"]
        with subprocess.Popen(
            [*command, "--report", "r.json"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        ) as process:
            assert process.stderr is not None and process.stdout is not None
            while process.stderr.readline() not in ("hanging\n", ""):
                pass
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)

        assert process.returncode == exit_codes.INTERRUPTED
        assert stderr == "report: r.json\ninterrupted\n"
        assert "the run was interrupted" in words(stdout)
        found = read_report(tmp_path / "r.json")
        assert not found.is_complete
        assert [r.status for r in found.clauses] == [Status.PASSED, Status.SKIPPED]
        assert list(tmp_path.glob("dengine-sm-kit-*")) == []

    def test_an_interrupted_run_is_not_negative_but_interrupted(
        self, finds: Callable[[Report], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = report(failed())
        finds(attrs.evolve(found, checks=found.checks[:4]))
        monkeypatch.setattr(catalogue, "checks_for", lambda *_: found.checks)

        assert call("memory").exit_code == exit_codes.INTERRUPTED


class TestExtras:
    def test_importing_the_command_line_loads_no_kit(self) -> None:
        heavy = "{'hypothesis', 'pytest', 'jinja2', 'dengine_sm.conformance'}"
        code = f"import sys, dengine_sm.cli; print({heavy} & set(sys.modules))"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert (done.stdout, done.stderr) == ("set()\n", "")

    @pytest.mark.parametrize(
        ("module", "arguments"),
        [
            ("hypothesis", ["memory"]),
            ("hypothesis", ["--diff", "r.json", "r.json"]),
            ("jinja2", ["memory", "--report", "r.html"]),
        ],
    )
    def test_a_missing_extra_says_how_to_install_it(
        self, module: str, arguments: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "r.json").write_text("{}")
        code = (
            f"import sys; sys.modules[{module!r}] = None\n"
            f"from dengine_sm.cli import main; main(['conformance', *{arguments!r}])"
        )

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert done.returncode == exit_codes.CONFIG
        assert done.stderr == (
            f"error: this command needs the module '{module}', which is not installed; "
            "install it with: pip install 'dengine-sm[conformance]'\n"
        )
        assert done.stdout == ""


class TestDiff:
    @pytest.fixture
    def diff(self, tmp_path: Path) -> Callable[..., Result]:
        def compare(old: Report, new: Report, *options: str) -> Result:
            (tmp_path / "old.json").write_text(report_to_json(old))
            (tmp_path / "new.json").write_text(report_to_json(new))
            return call("--diff", "old.json", "new.json", *options)

        return compare

    def test_nothing_worse_is_exit_code_0(self, diff: Callable[..., Result]) -> None:
        same, better = diff(mixed_report(), mixed_report()), diff(mixed_report(), report())

        assert (same.exit_code, same.stdout) == (0, "clauses: 55 unchanged\n")
        assert better.exit_code == 0
        assert better.stdout.splitlines()[-1] == "clauses: 9 better, 46 unchanged"

    def test_something_worse_is_exit_code_1_and_named(self, diff: Callable[..., Result]) -> None:
        result = diff(report(), report(failed(), version="2.4.0", options={}))

        assert result.exit_code == exit_codes.NEGATIVE
        lines = result.stdout.splitlines()
        assert lines[0] == "version: 2.3.0 -> 2.4.0"
        assert lines[1] == ("options: durability per_apply, text two words, sync True -> none")
        text = words(result.stdout)
        assert " worse APPLY-4 passed failed APPLY-4: expected b'1'; observed b'2' " in text
        assert " worse apply_4_holds passed failed " in text
        assert lines[-1] == "clauses: 1 worse, 54 unchanged"

    def test_has_json(self, diff: Callable[..., Result]) -> None:
        result = diff(report(), report(failed()), "--json")

        told = json.loads(result.stdout)
        assert result.exit_code == exit_codes.NEGATIVE
        assert told["worse"] is True
        assert told["unchanged"] == 54
        assert [(c["kind"], c["name"]) for c in told["clauses"]] == [("worse", "APPLY-4")]

    def test_a_run_of_the_command_line_can_be_compared(self, tmp_path: Path) -> None:
        run = ("--profile", "quick", "--clause", "APPLY-1")
        (tmp_path / "a.json").write_text(call("memory", *run, "--json").stdout)
        call("memory", *run, "--report", "b.json")

        result = call("--diff", "a.json", "b.json")

        assert (result.exit_code, result.stdout) == (0, "clauses: 1 unchanged\n")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "error: report 'old.json': not JSON that can be read: "),
            ("{}", "error: report 'old.json': no report of the conformance kit: "),
            (
                '{"schema": "dengine-sm-conformance/2"}',
                "error: report 'old.json': schema 'dengine-sm-conformance/2' is newer than ",
            ),
        ],
    )
    def test_what_is_no_report_is_exit_code_3(
        self, text: str, message: str, tmp_path: Path
    ) -> None:
        (tmp_path / "old.json").write_text(text)
        (tmp_path / "new.json").write_text(report_to_json(report()))

        result = call("--diff", "old.json", "new.json")

        assert result.exit_code == exit_codes.CONFIG
        assert result.stderr.startswith(message)


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


class TestBackend:
    def test_an_installed_backend_is_what_it_registers(self) -> None:
        subject = subject_of_backend("file", {"durability": "per_apply"})

        assert subject.name == "file"
        assert subject.distribution == "dengine-sm"
        assert subject.durability is Durability.PER_APPLY
        assert subject.workload.name == "kv/1"
        assert subject.keeps_state_in_memory and subject.detects_damage
        assert subject.maker == Maker("installed", "file", options={"durability": "per_apply"})
        assert subject.options == {"durability": "per_apply"}

    def test_a_workload_and_declarations_of_its_own(self, install: Install) -> None:
        install(
            "own",
            "from dengine_sm.backends import create_memory\n"
            "def workload():\n"
            "    from dengine_sm.conformance import KeyValueWorkload\n"
            "    return KeyValueWorkload(name='mine')\n"
            "@hookimpl\n"
            "def dengine_sm_backends():\n"
            "    return [Backend('own', create_memory, workload=workload, detects_damage=False)]\n",
        )

        subject = subject_of_backend("own")

        assert (subject.workload.name, subject.limits) == ("mine", None)
        assert (subject.keeps_state_in_memory, subject.detects_damage) == (False, False)
        assert (subject.distribution, subject.version) == ("kit-toy-own", "1.5")
        assert header_of_backend("own") == (
            "state machine: own 1.5 · contract 1 · durability ON_FLUSH · "
            "get_multi, scan_prefix, detects no damage"
        )

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ("", ConfigError, "is not key-value and registers no workload"),
            (
                ", workload=lambda: 5",
                BackendLoadError,
                "its workload 5 has no name, is_key_value, commands, model, observe, "
                "observe_at_once; expected a dengine_sm.conformance.Workload",
            ),
            (
                ", workload=lambda: 1 / 0",
                BackendLoadError,
                "its workload function failed: ZeroDivisionError: division by zero",
            ),
            (
                ", durability=lambda options: 1 / 0, limits=Limits()",
                BackendLoadError,
                "its durability function failed: ZeroDivisionError: division by zero",
            ),
            (", contract_version=2", ContractViolationError, "expected contract 1"),
        ],
    )
    def test_what_cannot_be_checked_is_refused(
        self, fields: str, error: type[Exception], message: str, install: Install
    ) -> None:
        install(
            "odd",
            "from dengine_sm.backends import create_memory\n"
            "@hookimpl\n"
            "def dengine_sm_backends():\n"
            f"    return [Backend('odd', create_memory{fields})]\n",
        )

        with pytest.raises(error) as caught:
            subject_of_backend("odd")

        assert "backend 'odd' (kit-toy-odd 1.5)" in str(caught.value)
        assert message in str(caught.value)

    def test_a_structure_that_is_wrong_is_refused_before_the_run(self, install: Install) -> None:
        install(
            "bare",
            "@hookimpl\n"
            "def dengine_sm_backends():\n"
            "    return [Backend('bare', lambda data_dir, options: object(), limits=Limits())]\n",
        )

        result = call("bare")

        assert result.exit_code == exit_codes.CONFIG
        assert "breaks contract 1 in 20 places" in result.stderr

    def test_options_that_are_no_json_cost_only_the_checks_that_need_a_process(self) -> None:
        subject = subject_of_backend("file", {"durability": Durability.PER_APPLY})

        assert subject.maker is None
        assert subject.durability is Durability.PER_APPLY

    def test_the_header_of_what_cannot_be_used_says_why(self) -> None:
        assert header_of_backend("nope").startswith(
            "state machine: nope: no state machine backend named 'nope'"
        )
        assert header_of_backend("file", ["x"]) == (
            "state machine: file: expected K=V, observed 'x'"
        )
        with pytest.raises(BackendNotFoundError):
            subject_of_backend("nope")
