"""The kit over every broken machine: the table and the picture of the docs.

`python tests/kit/matrix.py table` writes `docs/reference/conformance-checks.md`, at once;
`python tests/kit/matrix.py run 1` runs the kit over the first broken machine of each
clause (many minutes) and draws `docs/conformance-matrix.svg`.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parent))

from broken import BROKEN
from broken_base import Broken, subject

from dengine_sm.conformance.catalogue import checks_for
from dengine_sm.conformance.clauses import clauses
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import run_check

DOCS = Path(__file__).resolve().parents[2] / "docs"
TABLE = DOCS / "reference" / "conformance-checks.md"
PICTURE = DOCS / "conformance-matrix.svg"
CELL, LEFT, TOP = 13, 300, 90


def table() -> str:
    """Return the page: clause by clause its checks and broken machines."""
    checks = checks_for(Profile.DEEP)
    lines = [
        "# The checks of the conformance kit",
        "",
        "Written by `make kit-docs`; a test holds it to the code.",
        f"{len(clauses())} clauses, {len(checks)} checks, and {len(BROKEN)} machines that are",
        "broken on purpose (`tests/kit/`), each caught under the clause where it stands.",
        "",
        "![a broken machine of each clause, and what the kit blames it for]"
        "(../conformance-matrix.svg)",
        "",
    ]
    for clause in clauses().values():
        lines += [f"## {clause.id}", "", f"{clause.sentence}", ""]
        for check in checks:
            if check.clause == clause.id:
                lines.append(f"- `{check.name}` ({check.profile.label}): {check.summary}")
        lines.append("")
        for broken in BROKEN:
            if broken.clause == clause.id:
                lines.append(f"- broken: `{broken.name}`: {broken.summary}")
        lines.append("")
    return "\n".join(lines)


def blamed_by_the_kit(broken: Broken) -> list[str]:
    """Return the clauses found violated: its own as standard looks, the others as quick does."""
    found = set()
    for check in checks_for(Profile.STANDARD):
        own = check.clause in (broken.clause, broken.found_by)
        if own or check.profile is Profile.QUICK:
            profile = Profile.STANDARD if own else Profile.QUICK
            result = run_check(check, subject(broken), profile=profile, hang_s=10)
            if result.status is Status.FAILED:
                found.add(result.violated)
    return [clause for clause in clauses() if clause in found]


def chosen(per_clause: int) -> list[int]:
    """Return the positions of the first so many machines of each clause."""
    seen: dict[str, int] = {}
    positions = []
    for position, broken in enumerate(BROKEN):
        seen[broken.clause] = seen.get(broken.clause, 0) + 1
        if seen[broken.clause] <= per_clause:
            positions.append(position)
    return positions


def run(positions: Sequence[int]) -> dict[str, list[str]]:
    """Run the kit over broken machines, in as many processes as there are cores."""
    found: dict[str, list[str]] = {}
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(blame, position): position for position in positions}
        for done in concurrent.futures.as_completed(running):
            broken = BROKEN[running[done]]
            found[broken.name] = done.result()
            print(
                f"{len(found):3}/{len(positions)} {broken.name}: {found[broken.name]}", flush=True
            )
    return {BROKEN[position].name: found[BROKEN[position].name] for position in positions}


def blame(position: int) -> list[str]:
    """Run the kit over one broken machine; what it prints is thrown away."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    return blamed_by_the_kit(BROKEN[position])


def picture(found: dict[str, list[str]]) -> str:
    """Draw machines as rows, clauses as columns: the intended clause and what else broke."""
    columns = list(clauses())
    rows = sorted(
        (broken for broken in BROKEN if broken.name in found),
        key=lambda broken: columns.index(broken.clause),
    )
    width, height = LEFT + CELL * len(columns) + 20, TOP + CELL * len(rows) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="9" role="img">',
        "<title>which clauses the kit blames for each broken machine</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="10" y="20" font-size="13">clause by broken machine</text>',
        f'<rect x="10" y="30" width="{CELL - 2}" height="{CELL - 2}" fill="#b2182b"/>',
        '<text x="28" y="40">the clause it breaks, blamed</text>',
        f'<rect x="10" y="46" width="{CELL - 2}" height="{CELL - 2}" fill="#f4a582"/>',
        '<text x="28" y="56">blamed too, as a consequence</text>',
    ]
    for number, clause in enumerate(columns):
        x = LEFT + CELL * number
        out.append(
            f'<text transform="translate({x + 9},{TOP - 6}) rotate(-60)">{escape(clause)}</text>'
        )
    for row, broken in enumerate(rows):
        y = TOP + CELL * row
        shade = "#f7f7f7" if row % 2 else "#ffffff"
        out.append(
            f'<rect x="0" y="{y}" width="{width}" height="{CELL}" fill="{shade}"/>'
            f'<text x="{LEFT - 6}" y="{y + 10}" text-anchor="end">{escape(broken.name)}</text>'
        )
        for number, clause in enumerate(columns):
            if clause in found[broken.name] or clause == broken.clause:
                own, caught = clause == broken.clause, clause in found[broken.name]
                colour = ("#b2182b" if caught else "#000000") if own else "#f4a582"
                out.append(
                    f'<rect x="{LEFT + CELL * number + 1}" y="{y + 1}" width="{CELL - 2}" '
                    f'height="{CELL - 2}" fill="{colour}">'
                    f"<title>{escape(broken.name)}: {escape(clause)}</title></rect>"
                )
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    """Write what the argument names."""
    if sys.argv[1:] == ["table"]:
        TABLE.write_text(table())
    elif sys.argv[1:2] == ["run"] and len(sys.argv) <= 3:
        found = run(chosen(int(sys.argv[2]) if len(sys.argv) == 3 else 1))
        PICTURE.write_text(picture(found))
        ran = [broken for broken in BROKEN if broken.name in found]
        missed = [broken.name for broken in ran if broken.clause not in found[broken.name]]
        alone = sum(found[broken.name] == [broken.clause] for broken in ran)
        print(json.dumps({"machines": len(ran), "missed": missed, "blamed alone": alone}))
    else:
        sys.exit("usage: matrix.py table | run [MACHINES PER CLAUSE]")


if __name__ == "__main__":
    main()
