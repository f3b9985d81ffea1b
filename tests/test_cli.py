"""The command line without a server: help, config, plugins, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dengine_sm.cli import exit_codes, main
from dengine_sm.errors import (
    BackendNotFoundError,
    ClientError,
    ConfigError,
    CorruptionError,
    DEngineError,
    NotRunningError,
    ProposalOutcomeUnknown,
    ServerError,
    StorageError,
)

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("DENGINE_SM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestOffline:
    def test_importing_the_command_line_loads_no_server(self) -> None:
        heavy = "{'grpc', 'uvloop', 'google.protobuf'}"
        code = f"import sys, dengine_sm.cli; print({heavy} & set(sys.modules))"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert (done.stdout, done.stderr) == ("set()\n", "")

    def test_names_its_version(self) -> None:
        assert re.fullmatch(r"dengine-sm, version \d\S+\n", call("--version").output)

    @pytest.mark.parametrize(
        "command", [*sorted(set(main.commands) - {"config"}), "config check", "config show"]
    )
    def test_every_command_shows_an_example(self, command: str) -> None:
        result = call(*command.split(), "--help")

        assert result.exit_code == 0
        assert f"Example:\n    dengine-sm {command}" in result.output

    def test_the_help_lists_every_exit_code(self) -> None:
        output = call("--help").output

        for code, meaning in exit_codes.MEANINGS.items():
            assert f"{code:>3}  {meaning}" in output

    def test_the_readme_lists_every_exit_code(self) -> None:
        rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)

        assert [int(row) for row in rows] == list(exit_codes.MEANINGS)

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (ConfigError("x"), 3),
            (BackendNotFoundError("x", name="x"), 3),
            (ServerError("x", address="x"), 3),
            (StorageError("x"), 4),
            (CorruptionError("x", path=Path("x"), offset=0), 4),
            (NotRunningError("x"), 4),
            (ClientError("x", code="x"), 5),
            (ClientError("x", code="x", outcome_known=False), 6),
            (ProposalOutcomeUnknown("x"), 6),
        ],
    )
    def test_every_error_has_its_exit_code(self, error: DEngineError, code: int) -> None:
        assert exit_codes.for_error(error) == code

    @pytest.mark.parametrize(
        "arguments",
        [
            ["put", "key"],
            ["cas", "k", "--new", "v"],
            ["cas", "k", "--absent", "--expected", "v", "--new", "v"],
            ["cas", "k", "--absent"],
            ["cas", "k", "--absent", "--new", "v", "--delete"],
            ["run", "--listen", "9081"],
            ["get", "k", "--target", "nowhere"],
            ["load", "absent-file"],
            ["check", "file", "--option", "sync"],
        ],
    )
    def test_a_wrong_command_line_is_exit_code_2(self, arguments: list[str]) -> None:
        assert call(*arguments).exit_code == exit_codes.USAGE

    def test_config_show_prints_what_config_check_accepts(self, tmp_path: Path) -> None:
        shown = call("config", "show")
        path = tmp_path / "node.toml"
        path.write_text(shown.output)

        assert shown.exit_code == 0
        assert call("config", "check", path).output == f"{path}: no problems found\n"
        assert call("config", "show", path).output == shown.output

    def test_config_show_has_json(self) -> None:
        shown = json.loads(call("config", "show", "--json").output)

        assert shown["server"]["listen"] == "127.0.0.1:9081"
        assert shown["snapshot"]["every_seconds"] is None

    def test_config_check_reports_all_problems_on_stderr(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "node.toml"
        path.write_text("[node]\nmax_in_flight = 0\n[log]\nengin = 'x'\n")
        monkeypatch.setenv("DENGINE_SM__SERVER__LISTEN", "x")

        result = call("config", "check", path)

        assert result.exit_code == exit_codes.CONFIG
        assert result.stdout == ""
        assert result.stderr.startswith("error: configuration has 3 problems:\n  - ")
        assert result.stderr.count("\n  - ") == 3

    def test_an_unreachable_server_is_exit_code_5(self) -> None:
        result = call("get", "key", "--target", NOWHERE)

        assert result.exit_code == exit_codes.REQUEST
        assert result.stderr.startswith(f"error: server {NOWHERE!r}: ")

    def test_ctrl_c_is_exit_code_130(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            target = f"127.0.0.1:{silent.getsockname()[1]}"
            command = [sys.executable, "-m", "dengine_sm.cli", "get", "k", "--target", target]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                connection, _ = silent.accept()
                with connection:
                    process.send_signal(signal.SIGINT)
                    _, stderr = process.communicate(timeout=30)

        assert (process.returncode, stderr) == (exit_codes.INTERRUPTED, "interrupted\n")

    def test_a_missing_extra_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "dengine_sm.client", raising=False)
        monkeypatch.setitem(sys.modules, "grpc", None)

        result = call("get", "key")

        assert result.exit_code == exit_codes.CONFIG
        assert "install it with: pip install 'dengine-sm[server]'" in result.stderr


class TestPlugins:
    def test_lists_the_built_in_backends(self) -> None:
        result = call("backends", "--json")

        found = {row["name"]: row for row in events(result)}
        assert {"file", "memory"} <= set(found)
        assert found["file"]["distribution"] == "dengine-sm"
        assert found["file"]["error"] is None
        assert "memory" in call("backends").stdout

    @pytest.mark.parametrize("name", ["file", "memory"])
    def test_checks_a_backend(self, name: str) -> None:
        result = call("check", name)

        assert (result.exit_code, result.output) == (0, f"backend {name!r}: no violations found\n")

    def test_check_names_an_unknown_backend_and_an_unknown_option(self) -> None:
        backend, option = call("check", "fiel"), call("check", "file", "--option", "nonsense=1")

        assert (backend.exit_code, option.exit_code) == (exit_codes.CONFIG, exit_codes.CONFIG)
        assert "'file'" in backend.stderr
        assert "nonsense" in option.stderr
