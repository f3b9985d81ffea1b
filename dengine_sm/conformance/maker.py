"""How a new process finds the factory of the machine under test."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from dengine_sm.contract import StateMachine

OpenStateMachine = Callable[[Path], StateMachine]


@attrs.frozen
class Maker:
    """Where a new process finds the factory; plain values, so that it can be told as JSON."""

    kind: str
    """`installed`: a backend by name; `function`: a callable of a module, taking the
    directory; `fixture`: method `open_state_machine` of a class, called without more."""
    name: str
    """Backend name, or qualified name of callable or class."""
    module: str = ""
    file: str = ""
    """Path of the module; a module that the new process cannot import by name is run from it."""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    """Options table of an installed backend."""

    def to_json(self) -> str:
        """Return the maker for a command line."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Maker:
        """Return the maker of a command line."""
        return cls(**json.loads(text))

    def resolve(self) -> OpenStateMachine:
        """Return the factory; called in the new process."""
        if self.kind == "installed":
            from dengine_sm.loader import find_backend, structure_options

            backend = find_backend(self.name)
            options = structure_options(backend, dict(self.options))
            return lambda directory: backend.factory(directory, options)
        target: Any = _module(self.module, self.file)
        for part in self.name.split("."):
            target = getattr(target, part)
        if self.kind == "fixture":
            function = inspect.unwrap(target.open_state_machine)
            factory: OpenStateMachine = function(target())
            return factory
        found: OpenStateMachine = target
        return found


def maker_of_callable(factory: Any) -> Maker | None:
    """Return how another process finds a function or class; None if it cannot."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    if not module or not name or "<" in name or not _is_found_by_name(factory, module, name):
        return None
    return Maker("function", name, module, _file_of(module))


def _is_found_by_name(factory: Any, module: str, name: str) -> bool:
    """Tell whether a name leads back to the factory: not that of a method or a decorated one."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is factory


def maker_of_fixture(cls: type) -> Maker | None:
    """Return how another process finds a test class's `open_state_machine`.

    None when the fixture asks for other fixtures, or the class is local to a function.
    """
    function = inspect.unwrap(cls.open_state_machine)  # type: ignore[attr-defined]  # the caller checks
    if list(inspect.signature(function).parameters) != ["self"] or "<" in cls.__qualname__:
        return None
    return Maker("fixture", cls.__qualname__, cls.__module__, _file_of(cls.__module__))


def _file_of(module: str) -> str:
    return str(getattr(sys.modules.get(module), "__file__", None) or "")


def _module(name: str, file: str) -> ModuleType:
    """Import by file where there is one: pytest's own module names mean nothing elsewhere."""
    if not file or _origin_of(name) == os.path.realpath(file):
        return importlib.import_module(name)
    if (Path(file).parent / "__init__.py").exists():
        return _module_of_package(Path(file))
    if name in sys.modules:  # such as __main__, which is another one here
        name = f"_dengine_sm_{name}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"module {name!r}: cannot be loaded from {file!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Neighbours of a test file are imported as pytest's rootdir-less modes do.
    sys.path.insert(0, str(Path(file).parent))
    spec.loader.exec_module(module)
    return module


def _origin_of(name: str) -> str | None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return os.path.realpath(found.origin) if found is not None and found.origin else None


def _module_of_package(file: Path) -> ModuleType:
    """Import a module below the outermost package it lies in: it may look at its siblings."""
    name, root = file.stem, file.parent
    while (root / "__init__.py").exists():
        name, root = f"{root.name}.{name}", root.parent
    sys.path.insert(0, str(root))
    return importlib.import_module(name)
