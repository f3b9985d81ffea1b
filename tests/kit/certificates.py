"""What the tests of certificates share: a toy backend, and how to issue, edit and require one."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.certificate import Certificate, issue_certificate
from dengine_sm.errors import CertificateError
from dengine_sm.loader import backend_identity, create_state_machine

TOY = Path(__file__).parent.parent / "toy_plugins" / "good"
MODULE = "dengine_sm_toy_good"
KIT = version("dengine-sm")
PASSED = {"APPLY-1": "passed", "LIFE-6": "not bound"}


def installed_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The backend `good`, installed; its module."""
    site = tmp_path / "site"
    info = site / "dengine_sm_toy_good-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(TOY / f"{MODULE}.py", site)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dengine-sm-toy-good\nVersion: 1.0\n"
        "Requires-Dist: dengine-sm\nRequires-Dist: attrs\n"
    )
    (info / "entry_points.txt").write_text(f"[dengine_sm]\ngood = {MODULE}\n")
    (info / "RECORD").write_text(f"{MODULE}.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site / f"{MODULE}.py"
    sys.modules.pop(MODULE, None)


def issue(
    path: Path, name: str = "good", options: Any = None, *, profile: str = "standard", **other: Any
) -> Certificate:
    """Issue a certificate of the installed backend, with some fields of its identity changed."""
    identity = attrs.evolve(backend_identity(name, options), **other)
    return issue_certificate(
        identity, identity, profile=profile, seed=7, is_complete=True, clauses=PASSED, path=path
    )


def create(path: Path | None, profile: str = "standard", options: Any = None) -> Any:
    return create_state_machine(
        "good",
        Path("/nonexistent"),
        options,
        validate="structure",
        require_certificate=profile,
        certificate=path,
    )


def refusal(path: Path, profile: str = "standard", options: Any = None) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        create(path, profile, options)
    return caught.value


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, reseal: bool = False) -> None:
    document = json.loads(path.read_text())
    change(document)
    if reseal:
        document.pop("certificate_digest", None)
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        document["certificate_digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(document))
