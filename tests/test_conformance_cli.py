"""`dengine-sm conformance`: runs, what they print and write, exit codes, differences."""

from __future__ import annotations

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
from click.testing import Result
from conformance_command import Install, call, installing, plain_surroundings
from sample_reports import check, failed, mixed_report, report

from dengine_sm.cli import exit_codes
from dengine_sm.conformance import catalogue, runner
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.report_json import read_report, report_to_json
from dengine_sm.conformance.results import Report, Status
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


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_surroundings(monkeypatch, tmp_path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from installing(tmp_path, monkeypatch)


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
