from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from dengine_sm.distribution import distribution_digest, distribution_files, requirement_versions

FILES = {
    "acme_dist/__init__.py": "",
    "acme_dist/engine.py": "x = 1\n",
    "acme_dist/data/table.bin": "\x00",
    "acme_dist/__pycache__/engine.pyc": "code",
    "acme_second/__init__.py": "",
    "acme_single.py": "y = 1\n",
    "acme.libs/libengine.so": "native",
    "acme_dist-1.0.dist-info/INSTALLER": "pip\n",
    "../bin/acme": "#!/usr/bin/python\n",
}
COUNTED = [
    "acme.libs/libengine.so",
    "acme_dist/__init__.py",
    "acme_dist/data/table.bin",
    "acme_dist/engine.py",
    "acme_second/__init__.py",
    "acme_single.py",
]


class Site:
    """A directory on sys.path, with one distribution that pip could have installed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, files: dict[str, str] = FILES, requires: tuple[str, ...] = ()) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.describe("acme_dist-1.0.dist-info", requires)
        record = "".join(f"{name},,\n" for name in (*files, "acme_dist-1.0.dist-info/RECORD"))
        (self.root / "acme_dist-1.0.dist-info" / "RECORD").write_text(record)

    def describe(self, directory: str, requires: tuple[str, ...] = ()) -> Path:
        info = self.root / directory
        info.mkdir(exist_ok=True)
        lines = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        text = f"Metadata-Version: 2.1\nName: acme-dist\nVersion: 1.0\n{lines}"
        (info / ("PKG-INFO" if directory.endswith("egg-info") else "METADATA")).write_text(text)
        importlib.invalidate_caches()
        return info

    @property
    def distribution(self) -> Distribution:
        return distribution("acme-dist")

    def digest(self, module: str = "acme_dist") -> str:
        return distribution_digest(self.distribution, module)

    def names(self, module: str = "acme_dist") -> list[str]:
        return sorted(distribution_files(self.distribution, module))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    yield Site(root)
    for name in [name for name in sys.modules if name.startswith("acme")]:
        del sys.modules[name]


def test_counts_packages_modules_and_what_is_recorded_besides(site: Site):
    site.install()

    assert site.names() == COUNTED


@pytest.mark.parametrize("name", COUNTED)
def test_every_counted_file_matters(site: Site, name: str):
    site.install()
    before = site.digest()

    (site.root / name).write_text("other")

    assert before != site.digest()


def test_what_is_recorded_but_was_never_there_does_not_count(site: Site):
    site.install()
    record = site.root / "acme_dist-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "acme.libs/libgone.so,,\n")

    assert site.names() == COUNTED


@pytest.mark.parametrize("name", COUNTED)
def test_a_file_that_is_gone_matters(site: Site, name: str):
    site.install()
    before = site.digest()

    (site.root / name).unlink()

    if name == "acme_dist/__init__.py":
        with pytest.raises(ValueError, match="module 'acme_dist' has no file"):
            site.digest()
    else:
        assert before != site.digest()


@pytest.mark.parametrize("package", ["acme_dist", "acme_second"])
def test_a_file_beside_the_recorded_ones_matters(site: Site, package: str):
    site.install()
    before = site.digest()

    (site.root / package / "engine.so").write_text("would be imported first")

    assert before != site.digest()


def test_a_name_matters_as_much_as_its_content(site: Site):
    site.install()
    before = site.digest()

    (site.root / "acme_dist/engine.py").rename(site.root / "acme_dist/motor.py")

    assert before != site.digest()


def test_byte_code_scripts_and_metadata_do_not_matter(site: Site):
    site.install()
    before = site.digest()

    (site.root / "acme_dist" / "__pycache__" / "engine.pyc").write_text("other code")
    (site.root / "acme_dist" / "data" / "__pycache__").mkdir()
    (site.root / "acme_dist" / "data" / "__pycache__" / "more.pyc").write_text("code")
    (site.root / "acme_dist-1.0.dist-info" / "INSTALLER").write_text("uv\n")
    (site.root / "../bin/acme").write_text("#!/opt/python\n")

    assert before == site.digest()


def test_is_what_sha256sum_prints(site: Site):
    site.install()
    pipeline = (
        "find -L acme_dist acme_second acme_single.py acme.libs -type f ! -path '*/__pycache__/*' "
        "| LC_ALL=C sort | xargs sha256sum | sha256sum"
    )

    printed = subprocess.check_output(pipeline, shell=True, text=True, cwd=site.root)

    assert printed == f"{site.digest()}  -\n"


def test_an_editable_installation_has_the_digest_of_the_wheel(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packages = {"acme_dist/__init__.py": "", "acme_dist/engine.py": "x = 1\n"}
    site.install(packages)
    installed = site.digest()
    source = tmp_path / "source"
    source.mkdir()
    shutil.move(site.root / "acme_dist", source)
    monkeypatch.syspath_prepend(str(source))

    site.install(
        {
            "__editable__.acme.pth": str(source),
            "_acme.pth": str(source),
            "__editable___acme_finder.py": "f",
        }
    )

    assert installed == site.digest()
    (source / "acme_dist" / "engine.py").write_text("x = 2\n")
    assert installed != site.digest()


def test_an_egg_info_directory_names_its_packages(site: Site):
    site.install({"acme_dist/__init__.py": "", "acme_other/__init__.py": "", "tests/t.py": ""})
    shutil.rmtree(site.root / "acme_dist-1.0.dist-info")
    info = site.describe("acme_dist.egg-info")
    (info / "top_level.txt").write_text("acme_dist\nacme_other\nacme_never_built\n")
    (info / "SOURCES.txt").write_text("acme_dist/__init__.py\ntests/t.py\n")

    assert site.names() == ["acme_dist/__init__.py", "acme_other/__init__.py"]


def test_of_a_namespace_only_the_distributions_own_files_count(site: Site):
    site.install({"acme_space/mine/__init__.py": "", "acme_space/lone.py": ""})
    (site.root / "acme_space" / "theirs").mkdir()
    (site.root / "acme_space" / "theirs" / "__init__.py").write_text("")
    (site.root / "acme_space" / "mine" / "extra.py").write_text("")

    assert site.names("acme_space.mine") == [
        "acme_space/lone.py",
        "acme_space/mine/__init__.py",
        "acme_space/mine/extra.py",
    ]
    assert "acme_space/lone.py" in site.names("acme_space.lone")


def test_code_is_taken_from_where_it_is_imported(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site.install()
    before = site.digest()
    shadow = tmp_path / "shadow"
    shutil.copytree(site.root / "acme_dist", shadow / "acme_dist")
    monkeypatch.syspath_prepend(str(shadow))
    assert before == site.digest()

    (shadow / "acme_dist" / "engine.py").write_text("patched")

    assert before != site.digest()


def test_a_linked_file_counts_with_its_content(site: Site, tmp_path: Path):
    site.install()
    before = site.digest()
    target = tmp_path / "engine.py"

    shutil.move(site.root / "acme_dist" / "engine.py", target)
    (site.root / "acme_dist" / "engine.py").symlink_to(target)

    assert before == site.digest()
    target.write_text("other")
    assert before != site.digest()


def test_a_linked_package_is_followed(site: Site, tmp_path: Path):
    site.install()
    before = site.digest()

    shutil.move(site.root / "acme_dist", tmp_path / "elsewhere")
    (site.root / "acme_dist").symlink_to(tmp_path / "elsewhere")

    assert before == site.digest()


def test_a_linked_directory_inside_is_refused(site: Site):
    site.install()
    link = site.root / "acme_dist" / "vendored"
    link.symlink_to("/")

    with pytest.raises(ValueError, match=f"^'{link}' is a symbolic link to a directory$"):
        site.digest()


def test_pipes_and_dangling_links_are_never_opened(site: Site):
    site.install()
    before = site.digest()

    os.mkfifo(site.root / "acme_dist" / "pipe")
    (site.root / "acme_dist" / "dangling").symlink_to("nowhere")

    assert before != site.digest()


def test_a_directory_that_cannot_be_read_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.install()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("acme_dist/data"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)

    with pytest.raises(PermissionError):
        site.digest()


def test_code_in_an_archive_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.install()
    archive = shutil.make_archive(str(site.root / "packed"), "zip", site.root, "acme_dist")
    shutil.rmtree(site.root / "acme_dist")
    monkeypatch.syspath_prepend(archive)

    with pytest.raises(ValueError, match="package 'acme_dist' is not a directory on disk"):
        site.digest()


def test_a_module_without_a_file_is_refused(site: Site):
    site.install()

    with pytest.raises(ValueError, match="module 'sys' is not a file on disk: built-in"):
        site.digest("sys")


def test_requirements_have_their_installed_versions(site: Site):
    site.install(
        requires=(
            "attrs>=22",
            "Click (>=8) ; python_version > '3'",
            "typing_extensions ; extra == 'dev'",
            "pluggy[dev]; extra=='x' and python_version > '3'",
            "acme_that_nobody_has; sys_platform == 'win32'",
        )
    )

    found = requirement_versions(site.distribution)

    assert {"attrs": distribution("attrs").version, "click": distribution("click").version} == found
