"""Pages that are sessions run as a reader would run them: shell, files and edits, in order.

Of such a page every fenced block is used. `sh` blocks run, and a line that ends with
`# exit code N` must end with that; a `text` block is what the last one printed, where `...` stands
for anything; a `diff` edits the file that it names; a block after `<!-- file: NAME -->` is saved,
one after `<!-- in: NAME -->` must stand in that file. A block after `<!-- not run: why -->` is
what the environment of this test brings.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "<!-- session:" in page.read_text()
]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^:\n]+): (?P<of>[^\n]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXIT_CODE = re.compile(r"^(?P<command>.+?) +# exit code (?P<code>\d+)$", re.MULTILINE)
ENTRY_POINT = "#!{python}\nimport sys\nfrom dengine_sm.cli import main\nsys.exit(main())\n"


class Session:
    """A directory and an environment in which dengine_sm is installed, and nothing from it."""

    def __init__(self, root: Path) -> None:
        self.work = root / "work"
        self.work.mkdir()
        self.printed = ""
        home = root / "env"
        venv.EnvBuilder(with_pip=False).create(home)
        (site,) = home.glob("lib/python3*/site-packages")
        borrowed = sysconfig.get_path("purelib")
        (site / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")
        command = home / "bin" / "dengine-sm"
        command.write_text(ENTRY_POINT.format(python=home / "bin" / "python"))
        command.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DENGINE_SM_", "PIP_"))}
        self.environ = kept | {
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "DENGINE_SM_TARGET": listen,
            "DENGINE_SM__SERVER__LISTEN": listen,
            "XDG_STATE_HOME": str(root / "state"),
            "COLUMNS": "200",
            # What the project needs is there already, its build tool included.
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, page: str) -> None:
        blocks = list(BLOCK.finditer(page))
        fences = len(re.findall("^ *```", page, re.MULTILINE))
        assert fences == 2 * len(blocks), "fences that make no block"
        for block in blocks:
            self.use(block)

    def sh(self, text: str) -> None:
        script = EXIT_CODE.sub(
            r"code=0; \g<command> || code=$?; "
            r'[ "$code" = \g<code> ] || { echo "exit code $code"; exit 1; }',
            text,
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.work,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        self.printed = done.stdout
        assert done.returncode == 0, f"{text}\n{self.printed}"

    def expect(self, text: str) -> None:
        observed = " ".join(self.printed.split())
        at = 0
        for line in text.splitlines():
            pattern = ".*?".join(re.escape(" ".join(part.split())) for part in line.split("..."))
            found = re.compile(pattern).search(observed, at)
            assert found, f"expected {line!r} in\n{self.printed}"
            at = found.end()

    def edit(self, text: str) -> None:
        head, *lines = text.splitlines()
        path = self.work / head.removeprefix("--- ")
        old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        before = path.read_text()
        assert before.count(old) == 1, f"{path.name} holds this not once:\n{old}"
        path.write_text(before.replace(old, new))

    def use(self, block: re.Match[str]) -> None:
        text = block["text"]
        match block["mark"], block["language"]:
            case "not run", _:
                pass
            case "file", _:
                (self.work / block["of"]).write_text(text)
            case "in", _:
                assert text in (self.work / block["of"]).read_text(), textwrap.indent(text, "  ")
            case None, "sh":
                self.sh(text)
            case None, "text":
                self.expect(text)
            case None, "diff":
                self.edit(text)
            case mark, language:
                pytest.fail(f"a session has no use for a block {language!r} marked {mark!r}")


def test_there_are_sessions() -> None:
    assert ROOT / "docs" / "tutorial-backend.md" in PAGES


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sessions_run(page: Path, tmp_path: Path) -> None:
    Session(tmp_path).run(page.read_text())


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("```sh\nfalse\n```\n", "false"),
        ("```sh\nfalse   # exit code 2\n```\n", "exit code 1"),
        ("```sh\ntrue   # exit code 1\n```\n", "exit code 0"),
        ("```sh\necho b; echo a\n```\n\n```text\na\nb\n```\n", "expected 'b'"),
        ("<!-- file: f -->\n```toml\na\n```\n<!-- in: f -->\n```toml\nb\n```\n", "b\n"),
        ("<!-- file: f -->\n```toml\na\n```\n```diff\n--- f\n-b\n```\n", "f holds this not once"),
        ("```python\n1\n```\n", "no use for a block 'python'"),
        ("```sh\ntrue\n", "fences"),
    ],
)
def test_a_page_that_is_not_true_fails(page: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(problem)):
        Session(tmp_path).run(page)


def test_a_page_that_is_true_passes(tmp_path: Path) -> None:
    Session(tmp_path).run(
        "<!-- file: f -->\n```toml\na\nb\n```\n\n```diff\n--- f\n a\n-b\n+c\n```\n\n"
        "<!-- in: f -->\n```toml\na\nc\n```\n\n```sh\ncat f\nfalse  # exit code 1\n```\n\n"
        "```text\na\n...c\n```\n<!-- not run: no -->\n```sh\nfalse\n```\n"
    )
