"""Copies between backends: the same state, what is refused, a node that goes on."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import attrs
import pytest
from copies import content, copied, entries, fill, install_engines, names_in, opened

from dengine_sm import (
    BackendNotFoundError,
    ConfigError,
    Entry,
    LogId,
    NodeBuilder,
    NodeConfig,
    SnapshotCorruptionError,
    SnapshotFormatError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.config import NodeSection, StateMachineSection
from dengine_sm.copying import (
    MARKER,
    BackendDirectory,
    CopyProgress,
    Stage,
)
from dengine_sm.kv import CompareAndSwap, InSession, OpenSession, Put, encode_command
from dengine_sm.model import Outcome, SnapshotMetadata

ENTRIES = 500
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


def bytes_in(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def refused(
    error: type[Exception], message: str, source: BackendDirectory, target: BackendDirectory
) -> None:
    """Assert that a copy is refused and leaves everything as it was."""
    root = target.directory.parent
    before = bytes_in(root)

    with pytest.raises(error, match=message):
        copied(source, target)

    after = bytes_in(root)
    # Whoever took the lock last wrote its process id.
    locks = {path for path in after if path.name == "LOCK"}
    assert {p: b for p, b in after.items() if p not in locks} == {
        p: b for p, b in before.items() if p not in locks
    }


class TestCopies:
    @pytest.mark.parametrize(("one", "other"), PAIRS)
    def test_the_target_holds_what_the_source_holds(self, root: Path, one: str, other: str):
        source = fill(one, root / "source", entries(ENTRIES))
        expected = content(one, source)

        report = copied(BackendDirectory(one, source), BackendDirectory(other, root / "target"))

        assert content(other, root / "target") == expected
        assert content(one, source) == expected
        assert report.last_applied == expected[0] == LogId(6, ENTRIES)
        assert report.entries == len(expected[2])
        assert names_in(root) == ["source", "target"]

    def test_sessions_are_copied(self, root: Path):
        swap = encode_command(InSession(1, 1, CompareAndSwap(b"once", None, b"1")))
        opening = encode_command(OpenSession())
        log = [Entry(index, 1, index, data) for index, data in enumerate((opening, swap), 1)]
        source = fill("file", root / "source", log)

        copied(BackendDirectory("file", source), BackendDirectory("toy-sqlite", root / "target"))

        machine = opened("toy-sqlite", root / "target")
        (result,) = asyncio.run(machine.apply_chunk([Entry(3, 1, 3, swap)]))
        machine.stop()
        assert result.outcome is Outcome.APPLIED, "a repetition answers as the original did"

    def test_both_machines_write_the_snapshot_that_the_report_names(self, root: Path):
        source = fill("file", root / "source", entries(ENTRIES))

        report = copied(
            BackendDirectory("file", source), BackendDirectory("toy-sqlite", root / "target")
        )

        expected = SnapshotMetadata(report.last_applied, report.checksum, "kv-portable/1")
        for backend, directory in (("file", source), ("toy-sqlite", root / "target")):
            machine = opened(backend, directory)
            assert machine.snapshot_metadata() == expected
            machine.stop()

    def test_the_source_keeps_its_newest_snapshot(self, root: Path):
        source = fill("file", root / "source", entries(20))
        machine = opened("file", source)
        newest = SnapshotMetadata(LogId(1, 5), b"\1" * 32, "kv-portable/1")
        machine.persist_last_snapshot_metadata(newest)
        machine.stop()

        copied(BackendDirectory("file", source), BackendDirectory("file", root / "target"))

        machine = opened("file", source)
        assert machine.snapshot_metadata() == newest
        machine.stop()

    def test_options_of_both_sides_are_used(self, root: Path):
        source = fill("file", root / "source", entries(20))

        refused(
            ConfigError,
            re.escape("cannot copy file:") + r".* 2 problems:\n"
            r"  - source: .*segment_bytes: .*\n  - target: .*durability",
            BackendDirectory("file", source, {"segment_bytes": 1}),
            BackendDirectory("file", root / "target", {"durability": "never"}),
        )

    def test_an_initial_state_is_a_state(self, root: Path):
        source = fill("file", root / "source", [])

        report = copied(
            BackendDirectory("file", source), BackendDirectory("toy-sqlite", root / "target")
        )

        assert (report.entries, report.last_applied) == (0, LogId.ZERO)
        assert content("toy-sqlite", root / "target")[0] == LogId.ZERO

    def test_an_empty_target_directory_is_replaced(self, root: Path):
        source = fill("file", root / "source", entries(20))
        (root / "target").mkdir()

        copied(BackendDirectory("file", source), BackendDirectory("file", root / "target"))

        assert content("file", root / "target") == content("file", source)

    def test_a_symbolic_link_to_an_empty_directory_stays_one(self, root: Path):
        source = fill("file", root / "source", entries(20))
        (root / "real").mkdir()
        (root / "link").symlink_to("real")

        report = copied(BackendDirectory("file", source), BackendDirectory("file", root / "link"))

        assert report.target.directory == root / "real"
        assert (root / "link").is_symlink()
        assert content("file", root / "link") == content("file", source)

    def test_a_custom_machine_is_copied_to_one_of_its_format(self, root: Path):
        log = [Entry(index, 1, index, b"%d" % index) for index in range(1, 11)]
        source = fill("toy-sum", root / "source", log)

        copied(BackendDirectory("toy-sum", source), BackendDirectory("toy-sum", root / "target"))

        machine = opened("toy-sum", root / "target")
        assert (machine.get(b""), machine.last_applied()) == (b"55", LogId(1, 10))
        machine.stop()

    def test_tells_each_stage_with_bytes_and_entries(self, root: Path):
        source = fill("file", root / "source", entries(ENTRIES))
        told: list[CopyProgress] = []

        report = copied(
            BackendDirectory("file", source),
            BackendDirectory("file", root / "target"),
            on_progress=told.append,
        )

        ends = [progress for progress in told if progress.is_done]
        assert [end.stage for end in ends] == list(Stage) == list(report.seconds)
        assert {end.entries for end in ends} == {report.entries}
        assert ends[2].written_bytes == ends[2].total_bytes == ends[0].written_bytes > 0
        assert [progress.is_done for progress in told[:2]] == [False, True]

    def test_memory_does_not_grow_with_the_state(self, root: Path):
        log = entries(20_000, b"v" * 1024)
        source = fill("toy-sqlite", root / "source", log)
        del log
        tracemalloc.start()
        try:
            copied(
                BackendDirectory("toy-sqlite", source),
                BackendDirectory("toy-sqlite", root / "target"),
            )
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak_bytes < 10 << 20


class TestRefusals:
    @pytest.fixture
    def source(self, root: Path) -> BackendDirectory:
        return BackendDirectory("file", fill("file", root / "source", entries(50)))

    def test_an_unknown_backend(self, root: Path, source: BackendDirectory):
        refused(
            BackendNotFoundError, "no state machine backend named 'fiel'",
            source, BackendDirectory("fiel", root / "target"),
        )  # fmt: skip

    @pytest.mark.parametrize("backends", [("memory", "file"), ("file", "memory")])
    def test_a_transient_backend(self, root: Path, backends: tuple[str, str]):
        one, other = backends
        fill("file", root / "source", entries(5))
        therefore = "nothing to copy" if one == "memory" else "the copy would be lost"

        refused(
            ConfigError, f"backend 'memory' is TRANSIENT: .*{therefore}",
            BackendDirectory(one, root / "source"), BackendDirectory(other, root / "target"),
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("target", "problem"),
        [
            ("source", "are one directory"),
            ("other/../source", "are one directory"),
            ("link", "are one directory"),
            ("source/below", "inside of the other"),
            (".", "inside of the other"),
        ],
    )
    def test_one_directory_in_the_other(
        self, root: Path, source: BackendDirectory, target: str, problem: str
    ):
        (root / "link").symlink_to("source")

        refused(ConfigError, problem, source, BackendDirectory("file", root / target))

    def test_a_source_where_the_copy_would_work(self, root: Path):
        half = fill("file", root / "target.partial" / "machine", entries(5))
        (root / "target.partial" / MARKER).touch()

        refused(
            ConfigError, "is where the copy to .* would work",
            BackendDirectory("file", half), BackendDirectory("file", root / "target"),
        )  # fmt: skip

    def test_a_source_in_use(self, root: Path, source: BackendDirectory):
        machine = opened("file", source.directory)

        refused(
            StorageLockedError,
            rf"source file:\S+ is in use: .* locked by process {os.getpid()} .*Stop the node",
            source,
            BackendDirectory("file", root / "target"),
        )
        machine.stop()

    @pytest.mark.parametrize("name", ["absent", "empty"])
    def test_a_source_without_a_state(self, root: Path, name: str):
        (root / "empty").mkdir()

        refused(
            StorageError, f"source '.*{name}' is absent or empty",
            BackendDirectory("file", root / name), BackendDirectory("file", root / "target"),
        )  # fmt: skip

        assert names_in(root) == ["empty"]

    def test_a_source_of_another_backend(self, root: Path, source: BackendDirectory):
        refused(
            StorageFormatError, "is not this store's",
            BackendDirectory("toy-sqlite", source.directory),
            BackendDirectory("file", root / "target"),
        )  # fmt: skip

        assert names_in(root) == ["source"]

    def test_a_target_that_holds_something(self, root: Path, source: BackendDirectory):
        (root / "target").mkdir()
        (root / "target" / "precious").write_text("data")

        refused(
            StorageError, "target '.*' is not empty, it holds 'precious'",
            source, BackendDirectory("file", root / "target"),
        )  # fmt: skip

    def test_a_target_that_is_a_file(self, root: Path, source: BackendDirectory):
        (root / "target").write_text("data")

        refused(StorageError, "Not a directory", source, BackendDirectory("file", root / "target"))

    def test_a_target_in_no_directory(self, root: Path, source: BackendDirectory):
        target = root / "absent" / "target"

        with pytest.raises(StorageError, match="expected its parent to be a directory"):
            copied(source, BackendDirectory("file", target))

        assert names_in(root) == ["source"]

    def test_a_target_that_is_a_mount_point(
        self, root: Path, source: BackendDirectory, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(os.path, "ismount", lambda path: path == root / "target")

        refused(StorageError, "is a mount point", source, BackendDirectory("file", root / "target"))

    def test_a_work_directory_of_somebody_else(self, root: Path, source: BackendDirectory):
        (root / "target.partial").mkdir()
        (root / "target.partial" / "precious").write_text("data")

        refused(
            StorageError, "is not a leftover of a copy",
            source, BackendDirectory("file", root / "target"),
        )  # fmt: skip

    def test_a_work_directory_that_leads_elsewhere(self, root: Path, source: BackendDirectory):
        elsewhere = root / "elsewhere"
        elsewhere.mkdir()
        for name in (MARKER, "precious"):
            (elsewhere / name).touch()
        (root / "target.partial").symlink_to("elsewhere")

        refused(
            StorageError, "is not a leftover of a copy",
            source, BackendDirectory("file", root / "target"),
        )  # fmt: skip

    def test_a_second_copy_to_one_target(self, root: Path, source: BackendDirectory):
        # In a process of its own, from a callback: the first copy waits for it.
        code = (
            "import asyncio, sys; from pathlib import Path\n"
            "from dengine_sm.copying import *\n"
            "a, b = (BackendDirectory('file', Path(p)) for p in sys.argv[1:])\n"
            "asyncio.run(copy_state(a, b))\n"
        )
        told: list[str] = []

        def start_another(progress: CopyProgress) -> None:
            if progress.stage is Stage.INSTALL and not told:
                command = [sys.executable, "-c", code, source.directory, root / "target"]
                told.append(subprocess.run(command, capture_output=True, text=True).stderr)

        copied(source, BackendDirectory("file", root / "target"), on_progress=start_another)

        assert "StorageLockedError: another copy to" in told[0]
        assert content("file", root / "target") == content("file", source.directory)

    @pytest.mark.parametrize(("one", "other"), [("file", "toy-sum"), ("toy-sum", "file")])
    def test_machines_of_two_formats(self, root: Path, one: str, other: str):
        source = fill(one, root / "source", [Entry(1, 1, 1, b"")])

        refused_format = pytest.raises(
            SnapshotFormatError, match="the target does not read the snapshots of the source"
        )
        with refused_format:
            copied(BackendDirectory(one, source), BackendDirectory(other, root / "target"))

        assert names_in(root) == ["source"]

    def test_a_target_that_differs_on_disk_from_what_it_has_in_memory(self, root: Path):
        put = encode_command(Put(b"victim", b"x"))
        source = fill("file", root / "source", [*entries(50), Entry(51, 1, 2_000_000, put)])
        (root / "target").mkdir()

        with pytest.raises(SnapshotCorruptionError, match="differs from the source") as caught:
            copied(BackendDirectory("file", source), BackendDirectory("toy-liar", root / "target"))

        assert caught.value.expected != caught.value.observed
        assert names_in(root) == ["source", "target"]
        assert names_in(root / "target") == []

    def test_a_full_disk(
        self, root: Path, source: BackendDirectory, monkeypatch: pytest.MonkeyPatch
    ):
        from dengine_sm.files import OsFileSystem

        def refuse(self: OsFileSystem, fd: int) -> None:
            raise OSError(28, "No space left on device")

        def told(progress: CopyProgress) -> None:
            if progress.stage is Stage.INSTALL:
                monkeypatch.setattr(OsFileSystem, "fsync", refuse)

        target = BackendDirectory("file", root / "target")
        with pytest.raises(StorageError, match="No space left"):
            copied(source, target, on_progress=told)
        monkeypatch.undo()

        assert names_in(root) == ["source"]


class TestNode:
    @pytest.mark.parametrize("backend", ["file", "toy-sqlite"])
    def test_a_node_goes_on_with_another_backend(self, root: Path, backend: str):
        data = root / "data"
        here, early = data / "state_machine", root / "early"
        before = NodeConfig(node=NodeSection(data_dir=data))
        after = attrs.evolve(
            before, state_machine=StateMachineSection(backend=backend, validate="structure")
        )

        async def write(config: NodeConfig, first: int, last: int) -> None:
            async with NodeBuilder(config).build() as node:
                for index in range(first, last + 1):
                    await node.propose(encode_command(Put(b"%d" % index, b"%d" % index)))

        async def read(config: NodeConfig) -> tuple[Any, LogId]:
            async with NodeBuilder(config).build() as node:
                return (await node.scan()).entries, node.status().last_applied

        asyncio.run(write(before, 1, 40))
        shutil.copytree(here, early)
        asyncio.run(write(before, 41, 100))
        # As after a power failure: the log goes further than the state.
        shutil.rmtree(here)
        early.rename(here)
        report = copied(
            BackendDirectory("file", here), BackendDirectory(backend, data / "state_machine.new")
        )
        here.rename(data / "state_machine.old")
        (data / "state_machine.new").rename(here)
        asyncio.run(write(after, 101, 120))
        found, applied = asyncio.run(read(after))

        expected = sorted((b"%d" % index, b"%d" % index) for index in range(1, 121))
        assert report.last_applied.index == 40
        assert list(found) == expected
        assert applied.index == 120

        # And back: the log replays what the old state is missing.
        here.rename(data / "state_machine.new")
        (data / "state_machine.old").rename(here)
        assert asyncio.run(read(before)) == (found, applied)
