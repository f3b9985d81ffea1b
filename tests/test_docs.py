"""The documentation is true: its code runs, its links lead somewhere, its clauses exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLAUSES = {
    f"{group}-{number}"
    for group, count in {
        "LIFE": 8,
        "APPLY": 10,
        "LOG": 4,
        "CRASH": 8,
        "SNAP": 13,
        "READ": 7,
        "DET": 3,
        "RESET": 2,
    }.items()
    for number in range(1, count + 1)
}
BLOCK = re.compile(
    r"(?P<skip><!-- not run: (?P<reason>[^\n]+?) -->\s*\n)?"
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CLAUSE = re.compile(r"\b(?:LIFE|APPLY|LOG|CRASH|SNAP|READ|DET|RESET)-\d+\b")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def program(page: Path) -> str:
    """Join the page's blocks, each on its own lines, so that a traceback fits the page."""
    text = page.read_text()
    if "<!-- session:" in text:
        return ""  # test_docs_sessions.py runs it
    lines: list[str] = []
    for block in BLOCK.finditer(text):
        if block["skip"]:
            continue
        first_line = text.count("\n", 0, block.start("code"))
        lines += [""] * (first_line - len(lines))
        lines += [line.removeprefix(block["indent"]) for line in block["code"].splitlines()]
    return "\n".join(lines)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = FENCED.sub("", page.read_text())
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [p for p in PAGES if program(p)], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "blocks" / page.with_suffix(".py").name
    script.parent.mkdir()
    script.write_text(program(page))
    work = tmp_path / "cwd"
    work.mkdir()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DENGINE_SM__")}

    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=work,
        env=environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, f"{name_of(page)}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.finditer(FENCED.sub("", page.read_text())):
        path, _, anchor = link["target"].partition("#")
        if ":" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link["target"])

    assert broken == []


def test_every_page_is_reachable_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link["target"].partition("#")[0]).resolve()
        for link in LINK.finditer(index.read_text())
    }

    assert [name_of(p) for p in PAGES if ROOT / "docs" in p.parents and p != index] == [
        name_of(p) for p in PAGES if p in linked and ROOT / "docs" in p.parents
    ]


def test_contract_page_defines_every_clause_once() -> None:
    text = (ROOT / "docs" / "reference" / "contract.md").read_text()

    defined = re.findall(r"^- \*\*([A-Z]+-\d+)\*\*", text, re.MULTILINE)

    assert sorted(defined) == sorted(CLAUSES)


def test_contract_docstrings_and_page_know_the_same_clauses() -> None:
    source = (ROOT / "dengine_sm" / "contract.py").read_text()
    mentioned = set(CLAUSE.findall(source))
    for group, low, high in re.findall(r"([A-Z]+)-(\d+) to [A-Z]+-(\d+)", source):
        mentioned |= {f"{group}-{number}" for number in range(int(low), int(high) + 1)}

    assert mentioned == CLAUSES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_name_no_unknown_clause(page: Path) -> None:
    mentioned = set(CLAUSE.findall(page.read_text()))

    assert mentioned - CLAUSES == set()
