"""The floors of the house: who may import whom. Read the tables as documentation."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dengine_sm

ROOT = Path(dengine_sm.__file__).parent

FLOORS = {
    "errors": 0,
    "late": 0,
    "lazy_sequence": 0,
    "model": 1,
    "contract": 1,
    "entries": 1,
    "futures": 1,
    "log.contract": 1,
    "codec": 2,
    "files": 2,
    "snapshot": 2,
    "structuring": 2,
    "distribution": 2,
    "bookkeeping": 2,
    "kv": 3,
    "hookspecs": 4,
    "backends": 4,
    "log": 4,
    "application": 4,
    "application_snapshot": 4,
    "application_state": 4,
    "application_storage": 4,
    "validation": 4,
    "preflight": 4,
    "preflight_checks": 4,
    "loader": 5,
    "config": 5,
    "certificate": 5,
    "handler": 6,
    "copying": 6,
    "session": 6,
    "node": 7,
    "server": 8,
    "client": 8,
    "cli": 8,
    "conformance": 8,
    "": 9,  # dengine_sm/__init__.py: the public names
}

# Neighbours on one floor that may import each other in this direction only.
NEIGHBOURS = {
    ("contract", "model"),
    ("log.contract", "model"),
    ("entries", "model"),
    ("files", "codec"),
    ("snapshot", "codec"),
    ("snapshot", "files"),
    ("backends", "hookspecs"),
    ("log", "hookspecs"),
    ("application", "application_snapshot"),
    ("application", "application_state"),
    ("application", "application_storage"),
    ("application_snapshot", "application_state"),
    ("application_storage", "application_snapshot"),
    ("application_storage", "application_state"),
    ("preflight", "preflight_checks"),
    ("preflight", "validation"),
    ("certificate", "config"),
    ("loader", "certificate"),
    ("cli", "client"),
    ("cli", "server"),
    ("cli", "conformance"),
    ("client", "server"),  # the generated messages
}

THIRD_PARTY = {
    "cbor2": {"codec"},
    "cattrs": {"structuring"},
    "zstandard": {"snapshot.archive"},
    "sortedcontainers": {"kv.ram"},
    "pluggy": {"hookspecs", "loader"},
    "click": {"cli"},
    "rich": {"cli"},
    "grpc": {"server", "client"},
    "grpc_health": {"server", "client"},
    "grpc_reflection": {"server", "client"},
    "google": {"server", "client"},
    "pytest": {"conformance"},
    "hypothesis": {"conformance"},
    "jinja2": {"conformance.report_page"},
}


def module_name(path: Path) -> str:
    """Return the dotted name below dengine_sm; empty for dengine_sm itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(module: str) -> str:
    """Return the entry of FLOORS that a module belongs to."""
    while module not in FLOORS and "." in module:
        module = module.rpartition(".")[0]
    return module


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield the absolute names that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def own_module(name: str, known: dict[str, Path]) -> str | None:
    """Return which module of ours an imported name comes from."""
    if name != "dengine_sm" and not name.startswith("dengine_sm."):
        return None
    name = name.removeprefix("dengine_sm").removeprefix(".")
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def edges(known: dict[str, Path]) -> set[tuple[str, str]]:
    found = set()
    for module, path in known.items():
        for name in imports(module, ast.parse(path.read_text())):
            target = own_module(name, known)
            if target is not None and target != module:
                found.add((module, target))
    return found


def allowed(importer: str, imported: str) -> bool:
    ours, theirs = room(importer), room(imported)
    if ours == theirs or (ours, theirs) in NEIGHBOURS:
        return True
    return FLOORS[theirs] < FLOORS[ours]


def cycle_in(graph: set[tuple[str, str]]) -> list[str]:
    """Return the modules left when those that import nothing are taken away, again and again."""
    left = set(graph)
    while True:
        importers = {importer for importer, _ in left}
        kept = {(importer, imported) for importer, imported in left if imported in importers}
        if kept == left:
            return sorted(importers)
        left = kept


def test_every_module_has_a_floor():
    assert [module for module in sources() if room(module) not in FLOORS] == []


def test_imports_go_down_only():
    upward = [
        f"{importer} (floor {FLOORS[room(importer)]}) imports {imported or 'dengine_sm'} "
        f"(floor {FLOORS[room(imported)]})"
        for importer, imported in sorted(edges(sources()))
        if not allowed(importer, imported)
    ]

    assert upward == []


def test_no_cycles():
    assert cycle_in(edges(sources())) == []


def test_neighbours_do_not_import_each_other_both_ways():
    assert [pair for pair in NEIGHBOURS if pair[::-1] in NEIGHBOURS] == []


def test_only_its_command_imports_the_conformance_kit():
    outside = {
        importer
        for importer, imported in edges(sources())
        if room(imported) == "conformance" and room(importer) != "conformance"
    }

    assert outside == {"cli.certificate", "cli.conformance", "cli.conformance_progress"}


@pytest.mark.parametrize("package", list(THIRD_PARTY))
def test_a_third_party_package_has_one_importer(package: str):
    importers = {
        module
        for module, path in sources().items()
        for name in imports(module, ast.parse(path.read_text()))
        if name.partition(".")[0] == package
    }

    strangers = {
        module
        for module in importers
        if module not in THIRD_PARTY[package] and room(module) not in THIRD_PARTY[package]
    }
    assert strangers == set()


def test_no_other_third_party_package_is_imported():
    import sys

    known = {*THIRD_PARTY, *sys.stdlib_module_names, "dengine_sm", "attrs", "attr", "uvloop"}

    strangers = {
        f"{module}: {name}"
        for module, path in sources().items()
        for name in imports(module, ast.parse(path.read_text()))
        if name.partition(".")[0] not in known
    }
    assert strangers == set()


def test_the_walk_sees_imports_in_functions_and_type_checking_blocks():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from dengine_sm.node import Node\n"
        "def late():\n    import dengine_sm.loader\n"
    )
    known = {"node": ROOT, "loader": ROOT, "": ROOT}

    found = {own_module(name, known) for name in imports("x", ast.parse(source))}

    assert found == {None, "node", "loader"}


def test_a_cycle_is_seen():
    assert cycle_in({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) == ["a", "b", "c"]
    assert cycle_in({("a", "b"), ("b", "c"), ("a", "c")}) == []
    assert not allowed("model", "loader")
    assert not allowed("model", "contract")
