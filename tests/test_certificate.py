"""Certificates that are required: which one admits a backend, and what is said of others."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest
from certificates import KIT, create, edit, installed_toy, issue, refusal

from dengine_sm import NodeBuilder, NodeConfig
from dengine_sm.certificate import BackendIdentity
from dengine_sm.config import NodeSection, StateMachineSection
from dengine_sm.errors import CertificateError, ConfigError
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.loader import create_state_machine


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from installed_toy(tmp_path, monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "certificate.json"


class TestMatching:
    @pytest.mark.parametrize(
        ("issued", "required"), [("standard", "standard"), ("deep", "standard"), ("deep", "deep")]
    )
    def test_a_matching_certificate_admits(self, toy: Path, path: Path, issued: str, required: str):
        issue(path, profile=issued)

        assert not create(path, required).is_running()

    @pytest.mark.parametrize("name", ["memory", "file"])
    def test_built_in_backends_can_be_certified(self, path: Path, name: str, tmp_path: Path):
        issue(path, name)

        create_state_machine(name, tmp_path, require_certificate="standard", certificate=path)

    def test_holds_what_it_is_about(self, toy: Path, path: Path):
        issued = issue(path, options={"max_value_bytes": 64})

        document = json.loads(path.read_text())
        assert issued.identity == BackendIdentity(
            backend="good",
            distribution="dengine-sm-toy-good",
            version="1.0",
            contract_version=1,
            kit_version=KIT,
            requirements={"attrs": version("attrs")},
            options={"max_value_bytes": 64},
            distribution_digest=issued.identity.distribution_digest,
        )
        assert document["identity"] == attrs.asdict(issued.identity)
        assert document["schema"] == "dengine-sm-certificate/1"
        assert (document["profile"], document["seed"]) == ("standard", 7)

    def test_layout_of_the_file_does_not_matter(self, toy: Path, path: Path):
        issue(path)

        path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))

        create(path)

    def test_another_python_or_platform_does_not_matter(self, toy: Path, path: Path):
        issue(path)
        edit(path, lambda it: it.update(python="3.99", platform="Plan9 vax"), reseal=True)

        create(path)

    def test_a_default_that_is_spelt_out_is_the_default(self, toy: Path, path: Path):
        issue(path)

        create(path, options={"max_value_bytes": 1024})

    def test_the_same_file_over_an_earlier_one(self, toy: Path, path: Path):
        issue(path, version="0.9")
        issue(path)

        create(path)
        assert [path] == list(path.parent.iterdir())


class TestRefusing:
    def test_none_at_all_with_the_command_that_produces_one(self, toy: Path, path: Path):
        error = refusal(path, options={"max_value_bytes": 64})

        command = (
            "dengine-sm conformance good --profile standard --option max_value_bytes=64 "
            f"--certificate {path}"
        )
        assert str(error) == (
            "backend 'good' (dengine-sm-toy-good 1.0) needs a certificate of profile 'standard'; "
            f"certificate '{path}': there is no such file\nto produce it, run: {command}"
        )
        assert (error.name, error.path, error.command) == ("good", path, command)
        assert error.problems == ("there is no such file",)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            (
                {"backend": "file", "version": "2.0"},
                "backend: expected 'good', observed 'file'",
            ),
            (
                {"distribution": "acme-sm"},
                "distribution: expected 'dengine-sm-toy-good', observed 'acme-sm'",
            ),
            ({"version": "0.9"}, "version: expected '1.0', observed '0.9'"),
            ({"contract_version": 2}, "contract_version: expected 1, observed 2"),
            ({"kit_version": "9.9"}, f"kit_version: expected {KIT!r}, observed '9.9'"),
            (
                {"requirements": {"attrs": "1.0"}},
                f"requirements.attrs: expected {version('attrs')!r}, observed '1.0'",
            ),
            (
                {"requirements": {}},
                f"requirements.attrs: expected {version('attrs')!r}, observed None",
            ),
            (
                {"options": {"max_value_bytes": 64}},
                "options.max_value_bytes: expected 1024, observed 64",
            ),
            (
                {"options": {"max_value_bytes": 1024.0}},
                "options.max_value_bytes: expected 1024, observed 1024.0",
            ),
            (
                {"distribution_digest": "0" * 64},
                "the files of dengine-sm-toy-good have changed since it was issued",
            ),
            # Another version has other files: that says nothing new.
            (
                {"version": "0.9", "distribution_digest": "0" * 64},
                "version: expected '1.0', observed '0.9'",
            ),
        ],
    )
    def test_one_about_something_else(
        self, toy: Path, path: Path, changes: dict[str, Any], expected: str
    ):
        issue(path)
        edit(path, lambda it: it["identity"].update(changes), reseal=True)

        error = refusal(path)

        assert error.problems == (expected,)
        assert f"'{path}': {expected}\nto produce it, run: dengine-sm " in str(error)

    def test_a_weaker_profile(self, toy: Path, path: Path):
        issue(path, profile="standard")

        error = refusal(path, "deep")

        assert error.problems == ("profile: expected 'deep', observed 'standard'",)
        assert "needs a certificate of profile 'deep'" in str(error)
        assert "--profile deep" in str(error.command)

    def test_every_difference_at_once(self, toy: Path, path: Path):
        issue(path, version="0.9", options={"max_value_bytes": 64}, kit_version="9.9")

        error = refusal(path, "deep")

        assert (
            f"certificate '{path}': it differs in 4 places:\n"
            "  - version: expected '1.0', observed '0.9'\n"
            f"  - kit_version: expected {KIT!r}, observed '9.9'\n"
            "  - options.max_value_bytes: expected 1024, observed 64\n"
            "  - profile: expected 'deep', observed 'standard'\n"
            "to produce it, run: dengine-sm conformance good "
        ) in str(error)

    def test_files_that_changed_since(self, toy: Path, path: Path):
        issue(path)

        toy.write_text(toy.read_text() + "# patched\n")

        assert refusal(path).problems == (
            "the files of dengine-sm-toy-good have changed since it was issued",
        )

    def test_an_edited_one(self, toy: Path, path: Path):
        issue(path)
        edit(path, lambda it: it.update(profile="deep"))

        assert refusal(path, "deep").problems == (
            "it was edited or damaged: its digest does not match its content",
        )

    @pytest.mark.parametrize("field", ["profile", "seed", "identity", "certificate_digest"])
    def test_one_with_a_field_missing(self, toy: Path, path: Path, field: str):
        issue(path)
        edit(path, lambda it: it.pop(field))

        assert "its digest does not match" in refusal(path).problems[0]

    def test_a_newer_schema(self, toy: Path, path: Path):
        issue(path)
        edit(path, lambda it: it.update(schema="dengine-sm-certificate/2", more=1), reseal=True)

        assert refusal(path).problems == (
            "schema: expected 'dengine-sm-certificate/1', observed 'dengine-sm-certificate/2'",
        )

    def test_one_that_is_cut_anywhere(self, toy: Path, path: Path):
        issue(path)
        whole = path.read_bytes().rstrip()

        for size in range(0, len(whole), 13):
            path.write_bytes(whole[:size])
            assert refusal(path).problems[0].startswith("it is damaged, not JSON: ")

    @pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 100_000, b"[NaN", b'{"a": 1} x'])
    def test_what_is_not_json(self, toy: Path, path: Path, data: bytes):
        path.parent.mkdir()
        path.write_bytes(data)

        assert refusal(path).problems[0].startswith("it is damaged, not JSON: ")

    @pytest.mark.parametrize("data", ["[]", "3", "null", '"text"', "{}", '{"profile": "deep"}'])
    def test_json_that_is_no_certificate(self, toy: Path, path: Path, data: str):
        path.parent.mkdir()
        path.write_text(data)

        assert refusal(path).problems == ("it is JSON, but no certificate",)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (
                lambda it: it.update(seed="7"),
                "it is no certificate: seed: expected int, observed str '7'",
            ),
            (lambda it: it["identity"].pop("options"), "it is no certificate: identity.options: "),
            (lambda it: it.update(by="me"), "it is no certificate: unknown option 'by'"),
            (
                lambda it: it.update(profile="quick"),
                "it is of profile 'quick', which proves too little",
            ),
        ],
    )
    def test_fields_that_make_no_sense(
        self, toy: Path, path: Path, change: Callable[[Any], object], expected: str
    ):
        issue(path)
        edit(path, change, reseal=True)

        assert refusal(path).problems[0].startswith(expected)

    def test_a_directory(self, toy: Path, path: Path):
        path.mkdir(parents=True)

        assert refusal(path).problems == ("it is no file",)

    def test_a_pipe_is_not_waited_for(self, toy: Path, path: Path):
        path.parent.mkdir()
        os.mkfifo(path)

        assert refusal(path).problems == ("it is no file",)

    def test_one_that_cannot_be_read(self, toy: Path, path: Path, monkeypatch: pytest.MonkeyPatch):
        issue(path)
        opened = Path.open

        def denied(self: Path, *arguments: Any, **more: Any) -> Any:
            if self == path:
                raise PermissionError(13, "Permission denied")
            return opened(self, *arguments, **more)

        monkeypatch.setattr(Path, "open", denied)

        assert refusal(path).problems == ("it cannot be read: Permission denied",)

    def test_before_anything_is_constructed(
        self, toy: Path, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        called = []
        toy.write_text(
            toy.read_text().replace("import sqlite3", "import sys; sys.made = True; import sqlite3")
        )
        monkeypatch.setattr(sys, "made", called, raising=False)

        refusal(path)

        assert sys.made is called  # type: ignore[attr-defined]
        assert not path.parent.exists()

    def test_a_required_certificate_without_a_path(self, toy: Path):
        expected = "state_machine.certificate: expected a path, as 'deep' is required"

        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
            create(None, "deep")

    def test_an_unknown_level(self, toy: Path, path: Path):
        expected = (
            "state_machine.require_certificate: expected one of off, standard, deep, "
            "observed 'quick'"
        )

        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
            create(path, "quick")

    def test_off_looks_at_nothing(self, toy: Path, path: Path):
        create(path, "off")


class TestNode:
    def config(self, data_dir: Path, **section: Any) -> NodeConfig:
        return NodeConfig(
            node=NodeSection(data_dir=data_dir),
            state_machine=StateMachineSection(
                backend="good", validate="structure", require_certificate="standard", **section
            ),
        )

    def test_finds_the_certificate_in_its_data_directory(self, toy: Path, tmp_path: Path):
        config = self.config(tmp_path / "data")
        with pytest.raises(CertificateError, match=re.escape(f"{tmp_path}/data/certificate.json")):
            NodeBuilder(config).build()

        issue(tmp_path / "data" / "certificate.json")

        assert NodeBuilder(config).build().backend == "good"

    def test_finds_it_at_an_absolute_path(self, toy: Path, tmp_path: Path, path: Path):
        issue(path, options={"max_value_bytes": 64})

        NodeBuilder(
            self.config(tmp_path / "data", certificate=path, options={"max_value_bytes": 64})
        ).build()

    def test_a_backend_chosen_in_code_needs_one_of_its_own(self, toy: Path, tmp_path: Path):
        issue(tmp_path / "data" / "certificate.json")

        with pytest.raises(CertificateError, match="backend: expected 'memory', observed 'good'"):
            NodeBuilder(self.config(tmp_path / "data")).state_machine("memory").build()

    def test_a_machine_given_as_an_object_is_refused(self, toy: Path, tmp_path: Path):
        machine = KeyValueStateMachine(RamStore())
        expected = (
            "state_machine.require_certificate: 'standard' is required, but the node was given "
            "a KeyValueStateMachine as an object; only a backend that is chosen by name has a "
            "certificate"
        )

        with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
            NodeBuilder(self.config(tmp_path)).state_machine(machine).build()
