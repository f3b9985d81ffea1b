"""The plugins are what anybody else's would be: separate, light, and built on public names."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
BACKENDS = {
    "dengine-sm-lmdb": "lmdb",
    "dengine-sm-rocksdb": "rocksdb",
    "dengine-sm-sqlite": "sqlite",
}
NATIVE = {"rocksdict", "rocksdb", "aimrocks", "lmdb", "sqlite3"}

each_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)


def sources(plugin: Path) -> list[Path]:
    return sorted((plugin / "src").rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of everything that a file imports; no name for a whole module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_the_first_party_plugins_are_here():
    assert BACKENDS.keys() <= {plugin.name for plugin in PLUGINS}


@each_plugin
def test_uses_public_names_only(plugin: Path):
    for path in sources(plugin):
        for module, name in imported(path):
            if module.split(".")[0] != "dengine_sm":
                continue
            where = f"{path.relative_to(ROOT)}: from {module} import {name}"
            assert not any(part.startswith("_") for part in (*module.split("."), name)), where
            public = getattr(importlib.import_module(module), "__all__", None)
            # A module without a list of its own, such as dengine_sm.errors, is public as a whole.
            assert public is None or name in public, where


def private_names(tree: ast.AST, *, used: bool) -> Iterator[str]:
    """Yield private attributes that are used, or private names that are made."""
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) == used:
            name = node.attr
        elif not used and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif not used and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name.startswith("_") and not name.startswith("__"):
            yield name


@each_plugin
def test_uses_no_private_attribute_but_its_own(plugin: Path):
    trees = [ast.parse(path.read_text()) for path in sources(plugin)]
    its_own = {name for tree in trees for name in private_names(tree, used=False)}

    assert {name for tree in trees for name in private_names(tree, used=True)} <= its_own


@each_plugin
def test_has_what_a_distribution_needs(plugin: Path):
    for name in ("README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"):
        assert (plugin / name).stat().st_size > 0, name
    [package] = [init.parent for init in (plugin / "src").glob("*/__init__.py")]
    assert (package / "py.typed").exists()
    assert list((plugin / "tests").glob("test_*.py"))
    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    assert project["name"] == plugin.name
    assert package.name in project["entry-points"]["dengine_sm"].values()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = plugin.name.removeprefix("dengine-sm-")
    assert extras["optional-dependencies"][extra] == [plugin.name]
    [everything] = extras["optional-dependencies"]["all"]
    assert extra in everything.partition("[")[2].rstrip("]").split(",")


def test_the_core_knows_no_plugin():
    names = {plugin.name.removeprefix("dengine-sm-") for plugin in PLUGINS}
    for path in (ROOT / "dengine_sm").rglob("*.py"):
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not names & strings, path


def test_backends_are_listed_without_their_engines():
    code = (
        "import sys, dengine_sm\n"
        "found = {b.name: str(b.error) for b in dengine_sm.installed_backends()}\n"
        "import json\n"
        f"print(json.dumps([found, sorted(set(sys.modules) & {NATIVE!r})]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    found, loaded = json.loads(run.stdout)

    assert {*BACKENDS.values(), "file", "memory"} <= found.keys()
    assert set(found.values()) == {"None"}
    assert loaded == []


def built(project: Path, out: Path, kind: str) -> Path:
    """Build a wheel or an sdist; return its path."""
    code = (
        "import sys; from setuptools import build_meta; "
        f"print(build_meta.build_{kind}(sys.argv[1]), file=sys.stderr)"
    )
    out.mkdir(parents=True, exist_ok=True)
    run = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=project, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return out / run.stderr.strip().splitlines()[-1]


def copied(project: Path, to: Path) -> Path:
    """Copy what git would give a user: builds leave traces beside their sources."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if name.startswith("plugins/") or not (project / name).exists():
            continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes((project / name).read_bytes())
    return to


@pytest.mark.long
@pytest.mark.timeout(600)
def test_built_and_installed_in_a_fresh_environment_they_pass_the_kit(tmp_path: Path):
    projects = {path.name: copied(path, tmp_path / "src" / path.name) for path in (ROOT, *PLUGINS)}
    core = projects.pop(ROOT.name)
    wheels = [built(path, tmp_path / "wheels", "wheel") for path in projects.values()]
    sdists = [built(path, tmp_path / "sdists", "sdist") for path in projects.values()]
    wheel = built(core, tmp_path / "wheels", "wheel")
    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv" / "bin"

    def pip(*arguments: str) -> None:
        command = [str(bin_ / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        run = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    def listed() -> dict[str, str]:
        command = [str(bin_ / "dengine-sm"), "backends", "--json"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
        rows = map(json.loads, run.stdout.splitlines())
        return {row["name"]: row["distribution"] for row in rows}

    pip(f"{wheel}[conformance]", *map(str, wheels))
    expected = {name: distribution for distribution, name in BACKENDS.items()}
    assert expected.items() <= listed().items()
    for name in expected if shutil.which("strace") else ():
        command = [str(bin_ / "dengine-sm"), "conformance", name, "--profile", "quick"]
        # All of it for one; for the others what it takes to see that engine and kit are there.
        if name != "rocksdb":
            command += ["--clause", "CRASH-6", "--clause", "SNAP-1"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]

    pip("setuptools>=77")
    pip("--force-reinstall", "--no-deps", "--no-build-isolation", *map(str, sdists))
    assert expected.items() <= listed().items()
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: the quick profile of a native engine needs it")
