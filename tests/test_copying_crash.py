"""Copies that are cancelled, or killed at many points: nothing is left, or a whole target."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from copies import copied, entries, fill, install_engines, names_in, opened

from dengine_sm import StorageError
from dengine_sm.copying import BackendDirectory, CopyProgress, Stage, copy_state

CHILD = Path(__file__).parent / "copy_child.py"
PAIRS = [("file", "file"), ("file", "toy-sqlite"), ("toy-sqlite", "file")]


@pytest.fixture(autouse=True)
def _engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_engines(tmp_path / "site", monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where source and target are, and nothing else."""
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


class TestInterrupted:
    @pytest.mark.parametrize("stage", list(Stage))
    def test_a_cancelled_copy_leaves_nothing(self, root: Path, stage: Stage):
        source = fill("file", root / "source", entries(500))

        async def cancelled() -> None:
            def told(progress: CopyProgress) -> None:
                if progress.stage is stage:
                    task.cancel()

            task = asyncio.ensure_future(
                copy_state(
                    BackendDirectory("file", source),
                    BackendDirectory("toy-sqlite", root / "target"),
                    on_progress=told,
                )
            )
            await task

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancelled())

        assert names_in(root) == ["source"]
        opened("file", source).stop()

    @pytest.mark.parametrize(("one", "other"), PAIRS)
    @pytest.mark.storm
    def test_killed_at_any_point(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str
    ):
        source = BackendDirectory(one, fill(one, root / "source", entries(60)))
        target = BackendDirectory(other, root / "target")
        expected = look(one, source.directory)
        monkeypatch.setattr("dengine_sm.loader.creating.run_preflight", lambda *_, **__: [])
        is_whole: list[bool] = []

        with killer(source, target) as kill:
            many = 1_000_000
            total = many - int(kill(many))
            shutil.rmtree(target.directory)
            # The last ones are around the rename.
            points = sorted({*range(1, total, max(1, total // 12)), *range(total - 10, total + 1)})
            for point in points:
                assert kill(point) == "killed"
                is_whole.append(target.directory.exists())
                if is_whole[-1]:
                    with pytest.raises(StorageError, match="is not empty"):
                        copied(source, target)
                else:
                    copied(source, target)
                assert look(other, target.directory) == expected
                assert names_in(root) == ["source", "target"]
                shutil.rmtree(target.directory)

        # Absent up to one point, and whole from there on.
        assert is_whole == sorted(is_whole)
        assert set(is_whole) == {False, True}


def look(backend: str, directory: Path) -> Any:
    """Return the state, by a shorter way than `content`."""
    machine = opened(backend, directory)
    found = machine.scan_prefix(b"")
    machine.stop()
    return found


@contextmanager
def killer(source: BackendDirectory, target: BackendDirectory) -> Iterator[Callable[[int], str]]:
    """Yield what kills a copy before its n-th operation; see `copy_child.py`."""
    command = [sys.executable, CHILD, str(source), str(target)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:

        def kill(operation: int) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{operation}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield kill
