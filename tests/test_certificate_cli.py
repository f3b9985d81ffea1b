"""Certificates at the command line: `run`, `check`, `config`, `conformance`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import KIT, create, installed_toy, issue, refusal
from click.testing import CliRunner, Result

from dengine_sm.cli import exit_codes, main


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from installed_toy(tmp_path, monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "certificate.json"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestCommandLine:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        config = tmp_path / "node.toml"
        config.write_text(
            f'[node]\ndata_dir = "{tmp_path}/data"\n[server]\nenabled = false\n'
            '[state_machine]\nbackend = "good"\nvalidate = "structure"\n'
            'require_certificate = "standard"\n'
        )
        return config

    def test_a_node_starts_only_with_its_certificate(self, toy: Path, tmp_path: Path, config: Path):
        command = [sys.executable, "-m", "dengine_sm.cli", "run", "--config", str(config)]
        environ = {n: v for n, v in os.environ.items() if not n.startswith("DENGINE_SM_")}
        environ["PYTHONPATH"] = str(toy.parent)

        refused = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        issue(tmp_path / "data" / "certificate.json")
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as started:
            try:
                assert started.stdout is not None
                said = started.stdout.readline()
                started.send_signal(signal.SIGTERM)
                assert started.wait(timeout=30) == exit_codes.OK
            finally:
                started.kill()

        assert refused.returncode == exit_codes.CONFIG
        assert refused.stdout == ""
        assert refused.stderr == (
            "error: backend 'good' (dengine-sm-toy-good 1.0) needs a certificate of profile "
            f"'standard'; certificate '{tmp_path}/data/certificate.json': there is no such file\n"
            "to produce it, run: dengine-sm conformance good --profile standard "
            f"--certificate {tmp_path}/data/certificate.json\n"
        )
        assert said.startswith("ready: node 'node-1' without a server (backend good")

    def test_check_compares_a_certificate(self, toy: Path, path: Path):
        missing = call("check", "good", "--certificate", path)
        issue(path)
        right = call("check", "good", "--certificate", path)
        other = call("check", "good", "--certificate", path, "--option", "max_value_bytes=64")

        assert missing.exit_code == exit_codes.CONFIG
        assert (right.exit_code, right.stdout) == (0, "backend 'good': no violations found\n")
        assert other.exit_code == exit_codes.CONFIG
        assert "options.max_value_bytes: expected 64, observed 1024" in other.stderr

    def test_config_show_has_the_fields(self, tmp_path: Path):
        shown = call("config", "show").stdout

        assert 'require_certificate = "off"\ncertificate = "certificate.json"\n' in shown

    def test_config_check_knows_the_levels(self, tmp_path: Path):
        config = tmp_path / "node.toml"
        config.write_text('[state_machine]\nrequire_certificate = "quick"\n')

        checked = call("config", "check", config)

        assert checked.exit_code == exit_codes.CONFIG
        assert (
            "state_machine.require_certificate: expected one of off, standard, deep, observed "
            "'quick'"
        ) in checked.stderr


class TestConformanceCommand:
    @pytest.fixture
    def outcome(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """What a run finds that does not take two minutes; the test may change it."""
        from dengine_sm.conformance.profile import Profile
        from dengine_sm.conformance.results import ClauseResult, Report, Status
        from dengine_sm.conformance.runner import run_conformance

        runner = sys.modules[run_conformance.__module__]
        found: dict[str, Any] = {"status": Status.PASSED, "during": lambda: None}

        def run(
            subject: Any, *, profile: Profile, only: Any, seed: int, on_progress: Any
        ) -> Report:
            found["during"]()
            clause = ClauseResult("APPLY-1", "", found["status"], 0.0, ())
            return Report(
                backend=subject.name,
                version=subject.version,
                distribution=subject.distribution,
                options=dict(subject.options),
                durability=subject.durability.value,
                workload="kv/1",
                contract_version=1,
                kit_version=KIT,
                python="3",
                machine="",
                profile=profile.label,
                seed=seed,
                started_at="",
                time_s=0.0,
                is_complete=not only,
                clauses=(clause,),
                checks=(),
            )

        monkeypatch.setattr(runner, "run_conformance", run)
        monkeypatch.setattr("dengine_sm.conformance.catalogue.checks_for", lambda *_: ())
        return found

    def test_keeps_a_passed_run(self, toy: Path, path: Path, outcome: dict[str, Any]):
        option = ("--option", "max_value_bytes=64")

        done = call("conformance", "good", *option, "--seed", "3", "--certificate", path)

        assert done.exit_code == 0, done.output
        assert f"certificate: {path}\n" in done.stderr
        assert json.loads(path.read_text())["seed"] == 3
        create(path, options={"max_value_bytes": 64})

    def test_the_command_of_the_refusal_produces_what_was_missing(
        self, toy: Path, path: Path, outcome: dict[str, Any]
    ):
        options = {"max_value_bytes": 64}
        command = str(refusal(path, "deep", options).command)

        assert call(*shlex.split(command)[1:]).exit_code == 0

        create(path, "deep", options)

    def test_keeps_nothing_of_a_run_that_did_not_pass(
        self, toy: Path, path: Path, outcome: dict[str, Any]
    ):
        outcome["status"] = type(outcome["status"]).SKIPPED

        done = call("conformance", "good", "--certificate", path)

        assert done.exit_code == exit_codes.NEGATIVE
        assert "certificate: not written, as not every clause passed\n" in done.stderr
        assert not path.exists()

    def test_keeps_nothing_if_files_change_meanwhile(
        self, toy: Path, path: Path, outcome: dict[str, Any]
    ):
        outcome["during"] = lambda: toy.write_text(toy.read_text() + "# patched\n")

        done = call("conformance", "good", "--certificate", path)

        assert done.exit_code == exit_codes.CONFIG
        assert "changed during the run" in done.stderr
        assert not path.exists()

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--profile", "quick"), "expected --profile standard or deep, observed 'quick'"),
            (("--clause", "APPLY-1"), "--certificate needs all clauses and takes no '--clause'"),
        ],
    )
    def test_refuses_at_once_what_leads_to_none(
        self,
        toy: Path,
        path: Path,
        outcome: dict[str, Any],
        arguments: tuple[str, ...],
        expected: str,
    ):
        outcome["during"] = lambda: pytest.fail("it ran")

        done = call("conformance", "good", "--certificate", path, *arguments)

        assert done.exit_code == exit_codes.USAGE
        assert expected in done.stderr
