from __future__ import annotations

import enum
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import EntryPoint, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from dengine_sm import NodeBuilder, NodeConfig
from dengine_sm.certificate import (
    BackendIdentity,
    Certificate,
    canonical_options,
    conformance_command,
    identify,
    issue_certificate,
)
from dengine_sm.cli import exit_codes, main
from dengine_sm.config import NodeSection, StateMachineSection, parse_options
from dengine_sm.errors import CertificateError, ConfigError
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.loader import backend_identity, create_state_machine
from dengine_sm.structuring import structure

TOY = Path(__file__).parent / "toy_plugins" / "good"
MODULE = "dengine_sm_toy_good"
KIT = version("dengine-sm")
PASSED = {"APPLY-1": "passed", "LIFE-6": "not bound"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The backend `good`, installed; its module."""
    site = tmp_path / "site"
    info = site / "dengine_sm_toy_good-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(TOY / f"{MODULE}.py", site)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dengine-sm-toy-good\nVersion: 1.0\n"
        "Requires-Dist: dengine-sm\nRequires-Dist: attrs\n"
    )
    (info / "entry_points.txt").write_text(f"[dengine_sm]\ngood = {MODULE}\n")
    (info / "RECORD").write_text(f"{MODULE}.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site / f"{MODULE}.py"
    sys.modules.pop(MODULE, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "certificate.json"


def issue(
    path: Path, name: str = "good", options: Any = None, *, profile: str = "standard", **other: Any
) -> Certificate:
    """Issue a certificate of the installed backend, with some fields of its identity changed."""
    identity = attrs.evolve(backend_identity(name, options), **other)
    return issue_certificate(
        identity, identity, profile=profile, seed=7, is_complete=True, clauses=PASSED, path=path
    )


def create(path: Path | None, profile: str = "standard", options: Any = None) -> Any:
    return create_state_machine(
        "good",
        Path("/nonexistent"),
        options,
        validate="structure",
        require_certificate=profile,
        certificate=path,
    )


def refusal(path: Path, profile: str = "standard", options: Any = None) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        create(path, profile, options)
    return caught.value


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, reseal: bool = False) -> None:
    document = json.loads(path.read_text())
    change(document)
    if reseal:
        document.pop("certificate_digest", None)
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        document["certificate_digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(document))


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


class TestIssuing:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"profile": "quick"}, "expected a run of profile standard or deep, observed 'quick'"),
            ({"is_complete": False}, "the run was interrupted, or covered some clauses only"),
            ({"clauses": {}}, "the run was interrupted, or covered some clauses only"),
            (
                {"clauses": {**PASSED, "SNAP-4": "failed", "CRASH-8": "skipped"}},
                "2 of 4 clauses did not pass: SNAP-4 failed, CRASH-8 skipped",
            ),
            (
                {"clauses": {"SNAP-4": "known failure"}},
                "1 of 1 clauses did not pass: SNAP-4 known failure",
            ),
        ],
    )
    def test_a_run_that_proves_too_little(
        self, toy: Path, path: Path, changes: dict[str, Any], expected: str
    ):
        issue(path)
        earlier = path.read_bytes()
        identity = backend_identity("good")
        run = {"profile": "deep", "is_complete": True, "clauses": PASSED, **changes}
        message = (
            f"backend 'good' (dengine-sm-toy-good 1.0): no certificate was written: {expected}"
        )

        with pytest.raises(CertificateError, match=f"^{re.escape(message)}$"):
            issue_certificate(identity, identity, seed=0, path=path, **run)

        assert earlier == path.read_bytes()

    def test_files_that_changed_during_the_run(self, toy: Path, path: Path):
        before = backend_identity("good")
        toy.write_text(toy.read_text() + "# patched\n")
        after = backend_identity("good")

        with pytest.raises(CertificateError, match="installed, or its options, changed during"):
            issue_certificate(
                before,
                after,
                profile="deep",
                seed=0,
                is_complete=True,
                clauses=PASSED,
                path=path,
            )
        assert not path.exists()

    def test_files_that_cannot_be_digested(self, toy: Path):
        toy.unlink()
        toy.with_suffix("").mkdir()
        (toy.with_suffix("") / "__init__.py").write_text((TOY / f"{MODULE}.py").read_text())
        (toy.with_suffix("") / "more").symlink_to("/")

        with pytest.raises(CertificateError) as caught:
            backend_identity("good")

        assert str(caught.value) == (
            f"backend 'good' cannot have a certificate: '{toy.with_suffix('')}/more' "
            "is a symbolic link to a directory"
        )

    def test_a_plugin_without_a_distribution(self):
        entry_point = EntryPoint("good", MODULE, "dengine_sm")

        with pytest.raises(CertificateError, match="'good' belongs to no distribution"):
            identify("good", entry_point, 1, structure(Many, {}, where=""))


class Mode(enum.Enum):
    FAST = "fast"


@attrs.frozen
class Inner:
    size: int = 1


@attrs.frozen
class Many:
    mode: Mode | None = None
    where: Path = Path("a")
    ratio: float = 0.5
    names: frozenset[str] = frozenset()
    pairs: tuple[tuple[str, int], ...] = ()
    table: dict[str, Any] = attrs.field(factory=dict)
    inner: Inner = attrs.field(factory=Inner)
    raw: bytes = b""
    text: str = "x"
    flag: bool = False
    anything: Any = None


class TestOptions:
    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("mode", Mode.FAST, "fast"),
            ("where", Path("/a b"), "/a b"),
            ("ratio", 2.0, 2.0),
            ("ratio", float("inf"), "inf"),
            ("names", frozenset("cab"), ["a", "b", "c"]),
            ("pairs", (("a", 1),), [["a", 1]]),
            ("table", {"deep": {"x": (1, True)}}, {"deep": {"x": [1, True]}}),
            ("inner", Inner(3), {"size": 3}),
            ("raw", b"\x00\xff", "00ff"),
            ("anything", date(2026, 1, 2), "2026-01-02"),
        ],
    )
    def test_have_one_json_form(self, field: str, value: Any, expected: Any):
        options = canonical_options(attrs.evolve(Many(), **{field: value}))

        assert options[field] == expected
        json.dumps(options, allow_nan=False)

    def test_that_no_file_can_hold_are_refused(self):
        with pytest.raises(
            TypeError, match="option 'anything' is a object, which no file can hold"
        ):
            canonical_options(Many(anything=object()))

    @pytest.mark.parametrize(
        "table",
        [
            {},
            {"where": "/a b/'c'"},
            {"text": "true", "flag": True},
            {"text": ""},
            {"text": 'a=b "c" \\ $HOME'},
            {"mode": "fast", "ratio": 3.0},
            {"names": ["b", "a"], "pairs": [["a", 1], ["b", 2]]},
            {"table": {"x": {"y": [1, 2]}, "odd key": "z"}},
            {"inner": {"size": 9}},
            {"anything": "2026-01-02"},
        ],
    )
    def test_come_back_from_the_command(self, table: dict[str, Any], tmp_path: Path):
        options = structure(Many, table, where="")
        identity = BackendIdentity("b", "d", "1", 1, "1", {}, canonical_options(options), "0")

        command = conformance_command(
            identity, Many(), profile="deep", path=tmp_path / "the file.json"
        )

        words = shlex.split(command)
        given = [word for before, word in pairwise(words) if before == "--option"]
        again = structure(Many, parse_options(given), where="")
        assert canonical_options(again) == canonical_options(options)
        assert len(given) == len(table)
        assert words[-2:] == ["--certificate", str(tmp_path / "the file.json")]

    def test_a_relative_path_is_absolute_in_the_command(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)

        assert str(refusal(Path("c.json")).command).endswith(f"--certificate {tmp_path}/c.json")


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
