"""A directory of installed toy plugins, for tests of the loader and of what it lists."""

from __future__ import annotations

import importlib
import shutil
import tomllib
from pathlib import Path

TOYS = Path(__file__).parent.parent / "toy_plugins"


class Site:
    """A directory on sys.path with installed distributions, as pip would leave it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, version: str, entry_points: dict[str, str]) -> None:
        info = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
        (info / "entry_points.txt").write_text(f"[dengine_sm]\n{lines}")
        importlib.invalidate_caches()

    def toy(self, *names: str) -> None:
        for name in names:
            project = tomllib.loads((TOYS / name / "pyproject.toml").read_text())
            (module,) = project["tool"]["setuptools"]["py-modules"]
            shutil.copy(TOYS / name / f"{module}.py", self.root)
            meta = project["project"]
            self.add(meta["name"], meta["version"], meta["entry-points"]["dengine_sm"])

    def plugin(self, name: str, source: str) -> None:
        """Write and register a plugin from the body of a module."""
        module = f"dengine_sm_toy_{name}"
        prelude = (
            "from dengine_sm import Backend, CliCommand, Durability, LogEngine, hookimpl\n"
            "from dengine_sm.backends import create_memory\n"
        )
        (self.root / f"{module}.py").write_text(prelude + source)
        self.add(f"dengine-sm-toy-{name}", "1.0", {name: module})
