"""What the kit checks of a backend by name: as it is installed, or why not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance_command import Install, call, installing, plain_surroundings

from dengine_sm.cli import exit_codes
from dengine_sm.conformance.backend import header_of_backend, subject_of_backend
from dengine_sm.conformance.maker import Maker
from dengine_sm.errors import (
    BackendLoadError,
    BackendNotFoundError,
    ConfigError,
    ContractViolationError,
)
from dengine_sm.model import Durability


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_surroundings(monkeypatch, tmp_path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    yield from installing(tmp_path, monkeypatch)


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
