"""What the tests of `dengine-sm conformance` share: plugins to install, a call, a plain place."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dengine_sm.cli import main

Install = Callable[[str, str], Path]


def plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("DENGINE_SM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a plugin, as pip would leave it, from the body of its module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)

    def add(name: str, source: str) -> Path:
        prelude = "from dengine_sm import Backend, Durability, Limits, hookimpl\n"
        (site / f"kit_toy_{name}.py").write_text(prelude + source)
        info = site / f"kit_toy_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: kit-toy-{name}\nVersion: 1.5\n"
        )
        (info / "entry_points.txt").write_text(f"[dengine_sm]\n{name} = kit_toy_{name}\n")
        importlib.invalidate_caches()
        return site

    yield add
    for name in [name for name in sys.modules if name.startswith("kit_toy_")]:
        del sys.modules[name]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["conformance", *(str(a) for a in arguments)])
