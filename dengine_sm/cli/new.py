"""`new`: writes a plugin project that is installable, and passes the kit as written."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import attrs
import click

from dengine_sm.cli.app import example
from dengine_sm.cli.output import print_json
from dengine_sm.cli.target import json_option
from dengine_sm.contract import CONTRACT_VERSION
from dengine_sm.errors import StorageError

KINDS = ("key-value", "custom")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME = 40
_COMMON = {
    "pyproject.toml": "pyproject.toml",
    "CHANGELOG.md": "CHANGELOG.md",
    "gitignore": ".gitignore",
    "test.yml": ".github/workflows/test.yml",
    "py.typed": "src/{package}/py.typed",
}
_OF_KIND = {
    "key-value": {"store.py": "src/{package}/store.py"},
    "custom": {
        "application.py": "src/{package}/application.py",
        "workload.py": "src/{package}/workload.py",
    },
}
_OF_EVERY_KIND = {
    "README.md": "README.md",
    "init.py": "src/{package}/__init__.py",
    "test_conformance.py": "tests/test_conformance.py",
}


@attrs.frozen
class _Project:
    """What is asked for, and the names that follow from it."""

    name: str
    kind: str

    @property
    def distribution(self) -> str:
        return f"dengine-sm-{self.name}"

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")


class BackendName(click.ParamType[str]):
    """The name of a backend that does not exist yet."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form, and that nothing installed has the name."""
        text = str(value)
        if not _NAME.fullmatch(text) or len(text) > _MAX_NAME:
            self.fail(
                f"backend name {text!r}: expected at most {_MAX_NAME} lower case letters and "
                "digits, words parted by '-', such as 'my-engine'; nothing was written",
                param,
                ctx,
            )
        return text


@click.command(
    epilog=example(
        "dengine-sm new my-engine",
        "dengine-sm new jobs --kind custom --directory plugins/jobs",
    )
)
@click.argument("name", type=BackendName())
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default=KINDS[0],
    show_default=True,
    help="A store of keys and values, or a machine with commands of its own.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where to write it: absent, or an empty directory.  [default: dengine-sm-NAME]",
)
@json_option
def new(name: str, kind: str, directory: Path | None, as_json: bool) -> None:
    """Write a plugin project for a backend NAME: a toy that works, and tests that prove it.

    It can be installed, and passes the conformance kit as it is written. Put your own engine,
    or your own commands, in the place of the toy.
    """
    _refuse_taken(name)
    project = _Project(name, kind)
    target = directory or Path(project.distribution)
    written = _rendered(project)
    _write(target, written)
    if as_json:
        print_json(
            {
                "name": name,
                "kind": kind,
                "distribution": project.distribution,
                "package": project.package,
                "directory": str(target),
                "files": sorted(written),
            }
        )
    else:
        click.echo(f"wrote {len(written)} files to {target}; next:")
        for line in (
            f"python -m pip install -e {shlex.quote(f'{target}[test]')}",
            f"python -m pytest {shlex.quote(str(target))}",
            f"dengine-sm conformance {name}",
        ):
            click.echo(f"  {line}")


def _refuse_taken(name: str) -> None:
    from dengine_sm.loader import installed_backends

    for found in installed_backends():
        if found.name == name:
            raise click.UsageError(
                f"backend name {name!r} is taken by {found.distribution} {found.version}: "
                "expected one of your own; nothing was written"
            )


def _rendered(project: _Project) -> dict[str, str]:
    """Return the content of every file by its path in the project."""
    templates = files("dengine_sm.cli") / "templates" / "new"
    values = {
        "name": project.name,
        "distribution": project.distribution,
        "package": project.package,
        "version": version("dengine-sm"),
        "contract": str(CONTRACT_VERSION),
    }
    written = {}
    for folder, table in (
        ("common", _COMMON),
        (project.kind, _OF_EVERY_KIND | _OF_KIND[project.kind]),
    ):
        for template, path in table.items():
            text = (templates / folder / f"{template}.tmpl").read_text(encoding="utf-8")
            written[path.format(package=project.package)] = Template(text).substitute(values)
    return written


def _write(target: Path, written: Mapping[str, str]) -> None:
    """Write all files, or leave the target as it was.

    Raises:
        StorageError: the disk refused.
    """
    made = _topmost_absent(target)
    if made is None and any(target.iterdir()):
        raise click.UsageError(
            f"directory {str(target)!r} is not empty: expected an absent or an empty one; "
            "nothing was written"
        )
    try:
        for path, text in written.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
    except BaseException as exc:
        _remove(target, written, made)
        if isinstance(exc, OSError):
            raise StorageError(
                f"directory {str(target)!r}: cannot write the project: {exc.strerror or exc}; "
                "nothing was left behind",
                path=target,
            ) from exc
        raise


def _topmost_absent(path: Path) -> Path | None:
    """Return the directory that has to be made first; None if `path` is there."""
    absent = None
    while not path.exists():
        absent, path = path, path.parent
    return absent


def _remove(target: Path, written: Mapping[str, str], made: Path | None) -> None:
    """Take back what `_write` wrote."""
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)
        return
    for top in {Path(path).parts[0] for path in written}:
        shutil.rmtree(target / top, ignore_errors=True)
        # A directory is gone by now.
        (target / top).unlink(missing_ok=True)
