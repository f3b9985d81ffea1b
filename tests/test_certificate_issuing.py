"""Certificates that are issued: after which runs, about which options, by which command."""

from __future__ import annotations

import enum
import json
import re
import shlex
from collections.abc import Iterator
from datetime import date
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from certificates import MODULE, PASSED, TOY, installed_toy, issue, refusal

from dengine_sm.certificate import (
    BackendIdentity,
    canonical_options,
    conformance_command,
    identify,
    issue_certificate,
)
from dengine_sm.config import parse_options
from dengine_sm.errors import CertificateError
from dengine_sm.loader import backend_identity
from dengine_sm.structuring import structure


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from installed_toy(tmp_path, monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "certificate.json"


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
