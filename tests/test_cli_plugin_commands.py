"""Commands that plugins add to `dengine-sm`, none of which can be in the built-in ones' way."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner, Result
from toy_site import Site

from dengine_sm.cli import exit_codes, main
from dengine_sm.errors import BackendConflictError, BackendLoadError, BackendNotFoundError
from dengine_sm.loader import create_command, installed_commands

TWIN = (
    "@hookimpl\ndef dengine_sm_commands():\n"
    "    return [CliCommand('twin', lambda: None, summary='one of two')]\n"
)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, terminal_width=200)


def test_a_plugin_adds_a_command(site: Site):
    site.toy("command")

    done = call("toy", "greet", "Ada")

    assert (done.exit_code, done.output) == (0, "hello Ada\n")


def test_its_errors_end_like_those_of_built_in_commands(site: Site):
    site.toy("command")

    done = call("toy", "greet", "")

    assert (done.exit_code, done.stderr) == (exit_codes.CONFIG, "error: toy: nobody to greet\n")


def test_help_lists_it_below_the_built_in_ones(site: Site):
    site.toy("command")

    lines = call("--help").output.splitlines()

    section = lines[lines.index("Commands of plugins:") + 1 :]
    section = section[: section.index("")]
    rows = dict(line.split(maxsplit=1) for line in section)
    assert rows["toy"] == "play with toys"
    assert rows["run"] == ("not available: dengine-sm-toy-command took the name of a built-in one")
    assert any(line.startswith("  run ") for line in lines[: lines.index("Commands of plugins:")])


def test_a_built_in_command_keeps_its_name(site: Site):
    site.toy("command")

    assert "Run a node until SIGTERM" in call("run", "--help").output


def test_two_plugins_with_one_command_are_refused(site: Site):
    site.plugin("a", TWIN)
    site.plugin("b", TWIN)

    done = call("twin")

    expected = (
        "command name 'twin' is registered by two distributions, dengine-sm-toy-a 1.0 and "
        "dengine-sm-toy-b 1.0; uninstall one of them"
    )
    assert (done.exit_code, done.stderr) == (exit_codes.CONFIG, f"error: {expected}\n")
    with pytest.raises(BackendConflictError):
        create_command("twin")
    help_text = call("--help").output
    assert "twin" in help_text
    assert "not available: command name 'twin'" in " ".join(help_text.split())


def test_a_factory_that_fails_says_whose_it_is(site: Site):
    site.toy("command")

    done = call("failing-toy")

    assert done.exit_code == exit_codes.CONFIG
    assert done.stderr == (
        "error: command 'failing-toy' (dengine-sm-toy-command 1.0): its factory failed: "
        "ImportError: no module for this toy; nothing was created\n"
    )


def test_what_is_no_command_is_refused(site: Site):
    site.toy("command")

    done = call("no-toy")

    assert done.exit_code == exit_codes.CONFIG
    assert done.stderr == (
        "error: command 'no-toy': its factory returned 'a text'; expected a click.Command\n"
    )


def test_a_plugin_that_does_not_load_is_not_in_the_way(site: Site):
    site.toy("failing-import", "command")

    assert call("config", "check").exit_code == 0
    assert call("toy", "greet", "Ada").exit_code == 0
    assert call("--help").exit_code == 0


def test_an_unknown_command_names_the_plugins_that_did_not_load(site: Site):
    site.toy("failing-import")

    done = call("nonsense")

    assert done.exit_code == exit_codes.USAGE
    assert "No such command 'nonsense'. Not loaded:" in done.stderr
    assert "plugin 'failing-import' (dengine-sm-toy-failing-import 1.0)" in done.stderr


def test_an_unknown_command_is_a_usage_error():
    done = call("nonsense")

    assert done.exit_code == exit_codes.USAGE
    assert "No such command 'nonsense'." in done.stderr
    with pytest.raises(BackendNotFoundError, match="no command named 'nonsense'"):
        create_command("nonsense")


def test_commands_are_listed_with_their_distribution(site: Site):
    site.toy("command", "failing-import")

    found = {item.name: item for item in installed_commands()}

    assert found["toy"].distribution == "dengine-sm-toy-command"
    assert found["toy"].error is None
    assert isinstance(found["failing-import"].error, BackendLoadError)


def test_a_hook_that_returns_something_else_is_refused(site: Site):
    site.plugin("odd", "@hookimpl\ndef dengine_sm_commands():\n    return ['x']\n")

    [item] = [item for item in installed_commands() if item.name == "odd"]

    assert str(item.error).endswith(
        "hook dengine_sm_commands returned 'x' among others; expected an iterable of CliCommand"
    )


def test_a_built_in_command_loads_no_plugin():
    code = (
        "import sys\n"
        "from dengine_sm.cli import main\n"
        "main(['config', 'check'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('dengine_sm_')])\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr
