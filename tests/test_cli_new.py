"""`new`: what it writes, what it refuses, and that what it writes passes the kit as it is."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dengine_sm.cli import exit_codes, main
from dengine_sm.cli.new import KINDS

ROOT = Path(__file__).resolve().parent.parent
LONGEST = "a234567890-b234567890-c234567890-d234567"


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["new", *map(str, arguments)])


def content(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


class TestWritten:
    def test_prints_where_and_what_to_do_next(self) -> None:
        result = call("my-engine")

        assert result.exit_code == 0, result.output
        assert result.output == (
            "wrote 9 files to dengine-sm-my-engine; next:\n"
            "  python -m pip install -e 'dengine-sm-my-engine[test]'\n"
            "  python -m pytest dengine-sm-my-engine\n"
            "  dengine-sm conformance my-engine\n"
        )

    @pytest.mark.parametrize(
        ("kind", "own"), [("key-value", {"store"}), ("custom", {"application", "workload"})]
    )
    def test_json_lists_the_files_that_are_there(self, kind: str, own: set[str]) -> None:
        result = call("x1", "--kind", kind, "--directory", "here/there", "--json")

        listed = json.loads(result.output)
        assert listed["files"] == sorted(content(Path("here/there")))
        assert set(listed["files"]) == {
            ".github/workflows/test.yml",
            ".gitignore",
            "CHANGELOG.md",
            "README.md",
            "pyproject.toml",
            "src/dengine_sm_x1/__init__.py",
            "src/dengine_sm_x1/py.typed",
            "tests/test_conformance.py",
            *(f"src/dengine_sm_x1/{module}.py" for module in own),
        }
        del listed["files"]
        assert listed == {
            "name": "x1",
            "kind": kind,
            "distribution": "dengine-sm-x1",
            "package": "dengine_sm_x1",
            "directory": "here/there",
        }

    @pytest.mark.parametrize("kind", KINDS)
    def test_registers_the_name_and_leaves_no_placeholder(self, kind: str) -> None:
        call("my-engine", "--kind", kind, "--directory", "out")

        project = tomllib.loads(Path("out/pyproject.toml").read_text())
        assert project["project"]["entry-points"] == {
            "dengine_sm": {"my-engine": "dengine_sm_my_engine"}
        }
        for path, text in content(Path("out")).items():
            assert "$" not in text.replace("${{ matrix.python }}", ""), path

    @pytest.mark.parametrize("kind", KINDS)
    def test_uses_public_names_only(self, kind: str) -> None:
        call("x", "--kind", kind, "--directory", "out")

        used = []
        for path in Path("out").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "dengine_sm"
                ):
                    used += [*(node.module or "").split("."), *(name.name for name in node.names)]
        assert {"StateMachine", "StateMachineTests"} <= set(used)
        assert [name for name in used if name.startswith("_")] == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["a", LONGEST])
    def test_is_formatted_and_lints_whatever_the_name_s_length(self, kind: str, name: str) -> None:
        call(name, "--kind", kind, "--directory", "out")

        for check in (["format", "--check"], ["check"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *check, "--no-cache", "."],
                cwd="out",
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize(("directory", "shown"), [(".", "'.[test]'"), ("a b", "'a b[test]'")])
    def test_writes_into_an_empty_directory(self, directory: str, shown: str) -> None:
        Path(directory).mkdir(exist_ok=True)

        result = call("x", "--directory", directory)

        assert result.exit_code == 0
        assert f"pip install -e {shown}\n" in result.output
        assert (Path(directory) / "pyproject.toml").exists()

    def test_every_template_is_package_data(self) -> None:
        templates = list((ROOT / "dengine_sm/cli/templates").rglob("*.*"))
        pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
        globs = pyproject["tool"]["setuptools"]["package-data"]["dengine_sm"]
        packed = {path for glob in globs for path in (ROOT / "dengine_sm").glob(glob)}

        assert templates
        assert set(templates) <= packed


class TestRefused:
    @pytest.mark.parametrize(
        "name", ["", "1st", "My", "a_b", "a--b", "-a", "a-", "é", "a b", "../a", LONGEST + "8"]
    )
    def test_a_name_that_is_no_backend_name(self, name: str, tmp_path: Path) -> None:
        result = call("--", name)

        assert result.exit_code == exit_codes.USAGE
        assert (
            f"backend name {name!r}: expected at most 40 lower case letters and digits, words "
            "parted by '-', such as 'my-engine'; nothing was written"
        ) in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_name_that_is_taken(self, tmp_path: Path) -> None:
        result = call("file")

        assert result.exit_code == exit_codes.USAGE
        assert "backend name 'file' is taken by dengine-sm " in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_that_is_not_empty(self, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").write_text("mine")

        result = call("x", "--directory", "full")

        assert result.exit_code == exit_codes.USAGE
        assert (
            "directory 'full' is not empty: expected an absent or an empty one; nothing was written"
        ) in result.stderr
        assert content(tmp_path) == {"full/mine": "mine"}

    @pytest.mark.parametrize("is_there", [False, True])
    def test_a_failing_disk_leaves_nothing_half_written(
        self, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if is_there:
            Path("out").mkdir()
        write_text, written = Path.write_text, []

        def fails_late(path: Path, *args: str, **options: str) -> int:
            written.append(path)
            if len(written) == 7:
                write_text(path, "half", encoding="utf-8")
                raise OSError(28, "No space left on device")
            return write_text(path, *args, **options)

        monkeypatch.setattr(Path, "write_text", fails_late)

        result = call("x", "--directory", "out" if is_there else "out/below")

        assert result.exit_code == exit_codes.STORAGE
        assert result.stderr.replace("/below", "") == (
            "error: directory 'out': cannot write the project: No space left on device; "
            "nothing was left behind\n"
        )
        assert list(tmp_path.rglob("*")) == ([tmp_path / "out"] if is_there else [])

    def test_a_directory_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")

        result = call("x", "--directory", "file/x")

        assert result.exit_code == exit_codes.STORAGE
        assert content(tmp_path) == {"file": "mine"}


NAMES = {"key-value": "made", "custom": "made-jobs"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh environment, with dengine_sm and a project of each kind installed by pip."""
    root = tmp_path_factory.mktemp("new")
    # A copy, as a build leaves files in the tree.
    source = root / "dengine_sm"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dengine_sm", source / "dengine_sm", ignore=ignore)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(ROOT / name, source)
    run(root, sys.executable, "-m", "venv", "env")
    run(root, "env/bin/python", "-m", "pip", "install", "-q", f"{source}[conformance]")
    for kind, name in NAMES.items():
        # By what pip installed: are the templates in the wheel?
        run(root, "env/bin/dengine-sm", "new", name, "--kind", kind, "--directory", kind)
    projects = [f"{root / kind}[test]" for kind in NAMES]
    run(root, "env/bin/python", "-m", "pip", "install", "-q", *projects)
    yield root
    shutil.rmtree(root)


def run(root: Path, command: str, *arguments: str) -> str:
    """Run a command of the environment and return what it printed."""
    program = root / command if command.startswith("env/") else command
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DENGINE_SM_", "PYTHONPATH"))}
    done = subprocess.run(
        [program, *arguments],
        cwd=root,
        env=kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, f"{command} {arguments}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
class TestInstalled:
    def test_its_own_tests_pass(self, installed: Path, kind: str) -> None:
        # A part of them, for the time they take: the command below runs every check.
        output = run(
            installed / kind, "../env/bin/python", "-m", "pytest", "-q",
            "--conformance-profile", "quick", "-k", "apply or life or crash_6 or takes or newer",
        )  # fmt: skip

        assert " passed" in output and "failed" not in output

    def test_is_strictly_typed(self, installed: Path, kind: str) -> None:
        assert "Success" in run(installed / kind, "../env/bin/mypy", "--cache-dir=/dev/null")

    def test_is_listed_and_passes_the_kit(self, installed: Path, kind: str) -> None:
        name = NAMES[kind]
        rows = run(installed, "env/bin/dengine-sm", "backends", "--json").splitlines()
        listed = {row["name"]: row for row in map(json.loads, rows)}

        assert listed[name]["distribution"] == f"dengine-sm-{name}"
        assert listed[name]["error"] is None
        assert "passed: of 55 clauses" in run(
            installed, "env/bin/dengine-sm", "conformance", name, "--profile", "quick"
        )
