"""Pictures of directories: taken, changed, and put back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs


@attrs.frozen
class Image:
    """What a directory holds: files and directories, by path relative to it."""

    files: dict[str, bytes]
    directories: frozenset[str] = frozenset()

    @classmethod
    def of(cls, directory: Path) -> Image:
        """Take the picture of a directory that nobody is writing to."""
        files: dict[str, bytes] = {}
        directories = set()
        for name, path in _below(directory):
            if path.is_dir():
                directories.add(name)
            else:
                files[name] = path.read_bytes()
        return cls(files, frozenset(directories))

    @property
    def key(self) -> frozenset[tuple[str, bytes]]:
        """Equal for equal images."""
        return frozenset({*self.files.items(), *((name, b"") for name in self.directories)})

    def with_file(self, name: str, content: bytes | None) -> Image:
        """Return an image with another content of a file; None takes the file away."""
        files = {other: known for other, known in self.files.items() if other != name}
        return attrs.evolve(self, files=files if content is None else files | {name: content})

    def without(self, name: str, *, keeps_directory: bool = False) -> Image:
        """Return an image without a directory, or only without all that is below it."""
        kept = {path: content for path, content in self.files.items() if not _is_in(path, name)}
        directories = {path for path in self.directories if not _is_in(path, name)}
        directories -= set() if keeps_directory else {name}
        return attrs.evolve(self, files=kept, directories=frozenset(directories))

    def restore(self, directory: Path) -> Path:
        """Make a directory hold just this, whether it exists or not; return it."""
        directory.mkdir(exist_ok=True)
        for name, path in sorted(_below(directory), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if name not in self.directories:
                    shutil.rmtree(path)
            elif name not in self.files:
                path.unlink()
        for name in sorted(self.directories):
            (directory / name).mkdir(exist_ok=True)
        for name, content in self.files.items():
            path = directory / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        return directory

    def differing(self, other: Image) -> list[str]:
        """Return the files that are not the same in both, sorted."""
        names = self.files.keys() | other.files.keys()
        return sorted(name for name in names if self.files.get(name) != other.files.get(name))


def _below(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in directory.rglob("*"):
        yield str(path.relative_to(directory)), path


def _is_in(path: str, directory: str) -> bool:
    return path.startswith(f"{directory}/")
