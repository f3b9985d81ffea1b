"""What an installed distribution is made of: its files, their digest, its requirements.

The files are those that are imported here, wherever they are and however they were
installed: an editable installation has the same digest as a wheel with the same files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution
from pathlib import Path

_CACHE = "__pycache__"
_ELSEWHERE = re.compile(r"\.\.|/|[^/]+\.(dist-info|egg-info)/|[^/]+\.pth$|__editable__[^/]*$")
"""Recorded names that are no code: scripts, metadata, and what makes it editable."""
_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NEEDS_EXTRA = re.compile(r"\bextra\s*==")


def distribution_digest(distribution: Distribution, module: str) -> str:
    """Return the SHA-256 over the names and contents of a distribution's files, in hex.

    It is the digest of one line for each file, `SHA256  NAME`, in the order of the names'
    bytes, as sha256sum prints them.

    Args:
        distribution: the installed one.
        module: one that it provides, already imported.

    Raises:
        ValueError: code is in an archive, or behind a symbolic link to a directory.
        OSError: a file cannot be read.
    """
    files = distribution_files(distribution, module)
    whole = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        whole.update(f"{_file_digest(files[name])}  ".encode() + os.fsencode(name) + b"\n")
    return whole.hexdigest()


def distribution_files(distribution: Distribution, module: str) -> dict[str, Path]:
    """Return every file of a distribution by its name, which begins with the package's.

    They are the files below its packages, its single modules, and what its RECORD lists
    besides, such as bundled libraries. `__pycache__`, the `.dist-info` directory and
    scripts do not count. A package is taken from where it is imported.

    Raises:
        ValueError, OSError: as for `distribution_digest`.
    """
    recorded = _recorded(distribution)
    files: dict[str, Path] = {}
    for spec in (_owner(module), *_top_level(distribution, recorded)):
        files.update(_module_files(spec))
    return {**recorded, **files}


def requirement_versions(distribution: Distribution) -> dict[str, str]:
    """Return what a distribution requires by itself, without extras: name to version.

    Versions are those that are installed; a requirement that is not, is left out.
    """
    found = {}
    for requirement in distribution.requires or ():
        name = _REQUIREMENT_NAME.match(requirement)
        if name is None or _NEEDS_EXTRA.search(requirement):
            continue
        try:
            version = importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            continue  # its marker names another platform or Python
        found[re.sub(r"[-_.]+", "-", name[0]).lower()] = version
    return found


def _recorded(distribution: Distribution) -> dict[str, Path]:
    """Return what RECORD lists and is there, scripts and metadata left out."""
    if distribution.read_text("RECORD") is None:
        return {}  # an .egg-info lists tests and documentation as well
    located = {
        file.as_posix(): Path(str(distribution.locate_file(file)))
        for file in distribution.files or ()
        if not _ELSEWHERE.match(file.as_posix()) and _CACHE not in file.parts
    }
    return {name: path for name, path in located.items() if path.exists()}


def _owner(module: str) -> ModuleSpec:
    """Return the outermost package on the way to a module that is no namespace."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]))
        if spec is not None and spec.origin is not None:
            return spec
    raise ValueError(f"module {module!r} has no file")


def _top_level(distribution: Distribution, recorded: dict[str, Path]) -> Iterator[ModuleSpec]:
    names = set((distribution.read_text("top_level.txt") or "").split())
    names |= {name.partition("/")[0] for name in recorded if "/" in name}
    for name in sorted(names):
        spec = _spec(name)
        # A namespace has no origin; other distributions have files there too.
        if spec is not None and spec.origin is not None:
            yield spec


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _module_files(spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    parent, _, own = spec.name.replace(".", "/").rpartition("/")
    prefix = f"{parent}/" if parent else ""
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        if not path.is_file():
            raise ValueError(f"module {spec.name!r} is not a file on disk: {spec.origin}")
        yield prefix + path.name, path
        return
    for location in spec.submodule_search_locations:
        if not Path(location).is_dir():
            raise ValueError(f"package {spec.name!r} is not a directory on disk: {location}")
        for path in _files_below(Path(location)):
            yield f"{prefix}{own}/{path.relative_to(location).as_posix()}", path


def _files_below(root: Path) -> Iterator[Path]:
    for parent, directories, names in os.walk(root, onerror=_raise):
        directories[:] = [name for name in directories if name != _CACHE]
        for directory in (Path(parent, name) for name in directories):
            if directory.is_symlink():
                # Following it could lead anywhere, ignoring it would miss imported code.
                raise ValueError(f"{str(directory)!r} is a symbolic link to a directory")
        for name in names:
            yield Path(parent, name)


def _raise(error: OSError) -> None:
    raise error


def _file_digest(path: Path) -> str:
    """Return the digest of a file, or of what a symbolic link to one leads to."""
    if not path.is_file():
        return "not a file"  # never opened: a pipe would wait for its writer
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
