"""The kit's pytest doors: the class to inherit from, and `--pyargs dengine_sm.conformance`."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dengine_sm.conformance import StateMachineTests
from dengine_sm.conformance.catalogue import all_checks

HEADER = """
import pytest
from dengine_sm.backends.memory import create_memory
from dengine_sm.conformance import StateMachineTests
from dengine_sm.model import Durability

class Reversed:
    def __init__(self, machine):
        self._machine = machine

    def __getattr__(self, name):
        return getattr(self._machine, name)

    async def apply_chunk(self, chunk):
        return list(await self._machine.apply_chunk(chunk))[::-1]
"""
MACHINE = """
class TestMine(StateMachineTests):
    durability = Durability.TRANSIENT
    keeps_state_in_memory = True

    @pytest.fixture
    def open_state_machine(self):
        return lambda directory: {factory}
"""


def run_pytest(directory: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_mine.py").write_text(HEADER + textwrap.dedent(body))
    return pytest_in(directory, "test_mine.py", *arguments)


def pytest_in(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # pytest-asyncio would warn of an option that only a project sets.
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *arguments], cwd=directory, capture_output=True, text=True, timeout=120
    )


def mine(factory: str = "create_memory()", more: str = "") -> str:
    return MACHINE.format(factory=factory) + textwrap.indent(textwrap.dedent(more), "    ")


QUICK = ("--conformance-profile", "quick")
RESULTS = "apply_1_results_match_entries"


def test_every_check_is_a_test_of_the_class():
    names = {f"test_{check.name}" for check in all_checks()}

    assert names == {name for name in vars(StateMachineTests) if name.startswith("test_")}


def test_a_sound_machine_passes(tmp_path):
    run = run_pytest(tmp_path, mine(), *QUICK, "-rs")

    assert run.returncode == 0, run.stdout
    assert "LIFE-4 is not bound: the machine is TRANSIENT" in run.stdout
    assert "deselected" in run.stdout


def test_a_failure_tells_clause_values_and_how_to_repeat_it(tmp_path):
    run = run_pytest(tmp_path, mine("Reversed(create_memory())"), *QUICK, "-k", RESULTS)

    assert run.returncode == 1
    assert "APPLY-1 violated: one result per entry, in order, with the entry's index." in run.stdout
    assert "expected  result indices [1, 2, 3, 4, 5, 6]" in run.stdout
    assert "observed  [6, 5, 4, 3, 2, 1]" in run.stdout
    assert "contract  dengine_sm.contract.StateMachine.apply_chunk, APPLY-1" in run.stdout
    repeat = (
        f"seed 0; repeat with: pytest 'test_mine.py::TestMine::test_{RESULTS}' "
        "--conformance-profile quick --conformance-seed 0"
    )
    assert repeat in run.stdout


def test_the_kits_own_frames_are_not_shown(tmp_path):
    run = run_pytest(tmp_path, mine("Reversed(create_memory())"), *QUICK, "-k", RESULTS)

    assert "violation.py" not in run.stdout


def test_a_known_failure_is_expected(tmp_path):
    known = f'known_failures = {{"test_{RESULTS}": "issue 7"}}'
    run = run_pytest(
        tmp_path, mine("Reversed(create_memory())", known), *QUICK, "-k", RESULTS, "-rx"
    )

    assert run.returncode == 0, run.stdout
    assert re.search(rf"XFAIL .*test_{RESULTS} - issue 7", run.stdout)


def test_a_known_failure_that_is_mended_fails(tmp_path):
    known = f'known_failures = {{"test_{RESULTS}": "issue 7"}}'
    run = run_pytest(tmp_path, mine(more=known), *QUICK, "-k", RESULTS)

    assert run.returncode == 1
    assert "[XPASS(strict)] issue 7" in run.stdout


def test_a_forgotten_fixture_is_told_in_one_sentence(tmp_path):
    run = run_pytest(tmp_path, "class TestMine(StateMachineTests): ...", *QUICK, "-k", RESULTS)

    assert run.returncode == 1
    assert "override the fixture open_state_machine: it returns a callable" in run.stdout
    assert "Traceback" not in run.stdout


@pytest.mark.parametrize("value", [lambda self: None, None])
def test_a_check_is_not_to_be_redefined(value):
    with pytest.raises(TypeError, match=f"redefines test_{RESULTS}: the kit's checks are not"):
        type("TestMine", (StateMachineTests,), {f"test_{RESULTS}": value})


def test_a_check_is_not_to_be_redefined_by_a_mixin():
    mixin = type("Mixin", (), {f"test_{RESULTS}": lambda self: None})

    with pytest.raises(TypeError, match="redefines"):
        type("TestMine", (mixin, StateMachineTests), {})


def test_a_known_failure_must_name_a_test():
    with pytest.raises(TypeError, match="known_failures names 'test_apply_1'"):
        type("TestMine", (StateMachineTests,), {"known_failures": {"test_apply_1": "why"}})


def test_own_tests_may_be_added():
    assert type("TestMine", (StateMachineTests,), {"test_own": lambda self: None})


@pytest.mark.long
def test_two_classes_and_two_processes_do_not_disturb_each_other(tmp_path):
    second = mine().replace("TestMine", "TestOther")
    run = run_pytest(tmp_path, mine() + second, *QUICK, "-n", "2")

    assert run.returncode == 0, run.stdout
    assert "TestOther" not in run.stdout


@pytest.mark.long
def test_an_installed_backend_is_checked_by_name(tmp_path):
    run = pytest_in(
        tmp_path, "--pyargs", "dengine_sm.conformance", "--state-machine", "memory", *QUICK
    )

    assert run.returncode == 0, run.stdout
    header = (
        r"state machine: memory \S+ · contract 1 · durability TRANSIENT · get_multi, scan_prefix"
    )
    assert re.search(header, run.stdout), run.stdout


def test_the_options_of_an_installed_backend_are_given_to_it(tmp_path):
    run = pytest_in(
        *(tmp_path, "--pyargs", "dengine_sm.conformance", "--state-machine", "file"),
        *("--state-machine-option", "segment_bytes=1", *QUICK, "-x", "-k", RESULTS),
    )

    assert run.returncode != 0
    assert "segment_bytes: expected at least 4096 bytes, observed 1" in run.stdout + run.stderr


def test_a_backend_must_be_named(tmp_path):
    run = pytest_in(tmp_path, "--pyargs", "dengine_sm.conformance", *QUICK, "-x")

    assert run.returncode == 1
    assert "say which backend: --state-machine NAME" in run.stdout
