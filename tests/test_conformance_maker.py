"""Makers: how another process finds the factory, wherever it was defined."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from odd_machine import Odd, nursery_of

from dengine_sm.conformance.maker import Maker, maker_of_callable, maker_of_fixture
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine


# Not that of the helper: another process has to find a function of this file.
def make_odd(directory: Path) -> Odd:
    return Odd(directory)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[RemoteMachine]:
    with nursery_of(make_odd) as nursery:
        yield nursery.spawn(tmp_path)


class TestMakers:
    """Where another process finds what a test file, a package or a script has made."""

    def value(self, maker: Maker | None, directory: Path) -> Any:
        assert maker is not None
        with Nursery(maker) as nursery:
            return nursery.spawn(directory).get(b"k")

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    MACHINE = """
        class Machine:
            def __init__(self, directory): pass
            def get(self, key): return b"found"
    """

    def test_a_function_of_this_test_file(self, machine: RemoteMachine):
        assert machine.get(b"value") == b"value"

    def test_an_installed_backend(self, tmp_path: Path):
        maker = Maker("installed", "file", options={"durability": "per_apply"})

        with Nursery(maker) as nursery:
            machine = nursery.spawn(tmp_path / "data")
            machine.start()
            assert machine.len() == 0

    def test_a_module_that_only_this_process_has_on_its_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        self.write(tmp_path / "lib" / "only_here_helper.py", self.MACHINE)
        self.write(tmp_path / "lib" / "only_here.py", "from only_here_helper import Machine\n")
        monkeypatch.syspath_prepend(str(tmp_path / "lib"))
        import only_here

        assert self.value(maker_of_callable(only_here.Machine), tmp_path) == b"found"

    def test_a_test_file_beside_its_helper(self, tmp_path: Path):
        self.write(tmp_path / "helper_beside.py", self.MACHINE)
        file = self.write(tmp_path / "test_it.py", "from helper_beside import Machine\n")

        maker = Maker("function", "Machine", "tests.odd.test_it", str(file))

        assert self.value(maker, tmp_path) == b"found"

    def test_a_test_file_in_a_package(self, tmp_path: Path):
        self.write(tmp_path / "root" / "suite_pkg" / "__init__.py", "")
        self.write(tmp_path / "root" / "suite_pkg" / "helper.py", self.MACHINE)
        file = self.write(
            tmp_path / "root" / "suite_pkg" / "unit" / "test_it.py", "from ..helper import Machine"
        )
        self.write(file.parent / "__init__.py", "")

        maker = Maker("function", "Machine", "whatever.pytest.says", str(file))

        assert self.value(maker, tmp_path) == b"found"

    def test_a_file_whose_name_is_taken(self, tmp_path: Path):
        file = self.write(tmp_path / "json.py", self.MACHINE)

        maker = Maker("function", "Machine", "json", str(file))

        assert self.value(maker, tmp_path) == b"found"

    def test_a_fixture_of_a_test_class(self, tmp_path: Path):
        file = self.write(
            tmp_path / "test_fixture.py",
            """
            import pytest

            class Machine:
                def __init__(self, directory, word): self.word = word
                def get(self, key): return self.word

            class TestIt:
                @pytest.fixture
                def open_state_machine(self):
                    return lambda directory: Machine(directory, b"closure")
            """,
        )

        maker = Maker("fixture", "TestIt", "test_fixture", str(file))

        assert self.value(maker, tmp_path) == b"closure"

    def run_script(self, path: Path, tail: str) -> subprocess.CompletedProcess[str]:
        header = """
            from pathlib import Path
            from dengine_sm.conformance.maker import maker_of_callable
            from dengine_sm.conformance.processes.remote import Nursery

            class Machine:
                def __init__(self, directory): pass
                def get(self, key): return b"found"

            def main():
                with Nursery(maker_of_callable(Machine)) as nursery:
                    print(nursery.spawn(Path(".")).get(b"k"))
        """
        self.write(path, textwrap.dedent(header) + tail)
        return subprocess.run(
            [sys.executable, path], capture_output=True, text=True, timeout=60, cwd=path.parent
        )

    def test_a_script(self, tmp_path: Path):
        done = self.run_script(tmp_path / "script.py", "if __name__ == '__main__':\n    main()\n")

        assert (done.stdout, done.stderr) == ("b'found'\n", "")

    def test_a_script_that_would_run_itself_again(self, tmp_path: Path):
        done = self.run_script(tmp_path / "script.py", "main()\n")

        assert done.returncode == 1
        assert "put that under: if __name__ == '__main__':" in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize(
        "factory", [lambda directory: None, Odd(Path("x")).get, SimpleNamespace()]
    )
    def test_what_has_no_name_of_its_own_is_not_found(self, factory: Any):
        assert maker_of_callable(factory) is None

    def test_a_fixture_that_asks_for_others_is_not_found(self):
        class Asks:
            @pytest.fixture
            def open_state_machine(self, tmp_path: Path) -> Any:
                return None

        assert maker_of_fixture(Asks) is None
