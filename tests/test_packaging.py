"""What a user gets: public names, extras, and an import that stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import dengine_sm

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there_and_sorted():
    assert dengine_sm.__all__ == sorted(
        dengine_sm.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n)
    )
    for name in dengine_sm.__all__:
        assert getattr(dengine_sm, name) is not None


def test_core_needs_neither_server_nor_kit():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'grpc', 'google', 'pytest', 'hypothesis', 'uvloop'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import dengine_sm, dengine_sm.kv, dengine_sm.application, dengine_sm.cli\n"
        "print(*(b.name for b in dengine_sm.installed_backends() if b.error is None))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {"file", "memory"} <= set(run.stdout.split())


def test_pyproject_names_what_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"server", "conformance"} <= set(project["project"]["optional-dependencies"])
    registered = {point.name for point in entry_points(group="dengine_sm")}
    assert set(project["project"]["entry-points"]["dengine_sm"]) <= registered
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert include == ["dengine_sm", "dengine_sm.*"]


def test_setup_cfg_says_what_it_is_for():
    first = (ROOT / "setup.cfg").read_text().splitlines()[0]
    assert first.startswith("#") and "pyproject.toml" in first
