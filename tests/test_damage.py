"""Small data directories, damaged at every byte: the truth or `CorruptionError`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from dengine_sm.backends.file_store import FileStore
from dengine_sm.conformance.power import UnsyncedFileSystem
from dengine_sm.errors import CorruptionError
from dengine_sm.kv import Delete, KeyValueStateMachine, Put, encode_command
from dengine_sm.log.embedded import EmbeddedLog, EmbeddedLogOptions
from dengine_sm.model import Entry, SnapshotMetadata

Tree = dict[str, bytes]
State = tuple[tuple[bytes, bytes], ...]


@attrs.frozen
class Damage:
    file: str
    content: bytes | None
    """None: the file is gone."""
    what: str


def read_tree(directory: Path) -> Tree:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def lay_out(directory: Path, wanted: Tree) -> None:
    """Make the directory hold just these files."""
    for path in directory.rglob("*"):
        if path.is_file() and str(path.relative_to(directory)) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = directory / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def damages(tree: Tree, stride: int = 1) -> Iterator[Damage]:
    """Flip a bit of every byte, cut at every offset, delete; large files by strides."""
    for file, content in tree.items():
        step = stride if len(content) > 1500 else 1
        for at in range(0, len(content), step):
            flipped = bytearray(content)
            flipped[at] ^= 1 << (at % 8)
            yield Damage(file, bytes(flipped), f"flipped at {at}")
            yield Damage(file, content[:at], f"cut at {at}")
        yield Damage(file, content + b"\0" * 40, "40 zeros more")
        yield Damage(file, None, "deleted")


def damaged(tree: Tree, damage: Damage) -> Tree:
    rest = {name: content for name, content in tree.items() if name != damage.file}
    return rest if damage.content is None else rest | {damage.file: damage.content}


def check_error(error: CorruptionError, directory: Path, damage: Damage) -> None:
    """It names a place inside, and left it for whoever repairs it, if it says so."""
    assert error.path is not None and error.path.is_relative_to(directory), damage
    assert error.path.name in str(error) and str(directory) in str(error), damage
    assert isinstance(error.offset, int) and error.offset >= 0
    if "nothing was changed" in str(error):
        path = directory / damage.file
        assert (path.read_bytes() if path.exists() else None) == damage.content, damage


def machine_on(directory: Path) -> KeyValueStateMachine:
    store = FileStore(
        directory, segment_bytes=500, checkpoint_bytes=1 << 30, fs=UnsyncedFileSystem()
    )
    return KeyValueStateMachine(store)


def chunk_at(number: int, first: int) -> list[Entry]:
    commands = [Put(b"key %d" % (number % 5), b"value %d" % number), Put(b"", b"")]
    if number % 4 == 3:
        commands.append(Delete(b"key %d" % ((number - 2) % 5)))
    return [
        Entry(first + at, 1 + number // 3, 1000 + number, encode_command(command))
        for at, command in enumerate(commands)
    ]


@attrs.define
class Machine:
    """A directory as a kill left it, and every state that the machine went through."""

    tree: Tree
    states: dict[int, State] = attrs.field(factory=dict)
    """By applied index, of chunk boundaries."""
    flushed: list[int] = attrs.field(factory=list)
    terms: dict[int, int] = attrs.field(factory=dict)
    installed: int = 0
    metadata: SnapshotMetadata | None = None

    def terms_to(self, last: int) -> dict[int, int | None]:
        """Return what `entry_term` says from the installed snapshot on (LOG-2)."""
        exact = {i: t for i, t in self.terms.items() if self.installed <= i <= last}
        return {**exact, last + 1: None}


def used_machine(directory: Path, *, unsynced: int) -> Machine:
    """Apply, install (which makes a checkpoint), apply over several segments."""

    async def use() -> Machine:
        machine = machine_on(directory)
        used = Machine({})
        machine.start()
        used.states[0] = ()
        last = 0
        for number in range(14):
            chunk = chunk_at(number, last + 1)
            await machine.apply_chunk(chunk)
            last = chunk[-1].index
            used.terms.update((entry.index, entry.term) for entry in chunk)
            used.states[last] = machine.scan_prefix(b"").entries
            if number < 14 - unsynced:
                machine.flush()
                used.flushed.append(last)
            if number == 5:
                aside = directory.with_name("snapshot")
                await machine.generate_snapshot_data(aside, machine.last_applied())
                metadata = machine.snapshot_metadata()
                assert metadata is not None
                await machine.apply_snapshot_from_file(metadata, aside)
                used.installed, used.metadata = last, metadata
        used.tree = read_tree(directory)
        machine.stop()
        return used

    used = asyncio.run(use())
    assert any(name.startswith("checkpoint-") for name in used.tree)
    assert sum(name.endswith(".seg") and name.startswith("log/") for name in used.tree) > 1
    return used


@pytest.mark.parametrize("unsynced", [0, 3])
def test_a_damaged_machine_is_right_or_refused(tmp_path: Path, unsynced: int) -> None:
    used = used_machine(tmp_path / "first", unsynced=unsynced)
    directory = tmp_path / "machine"
    # Within the last synced write damage may take that write, and no more (CRASH-5).
    floor = used.flushed[-2]
    refused = recovered = 0

    for damage in damages(used.tree, 3):
        lay_out(directory, damaged(used.tree, damage))
        machine = machine_on(directory)
        try:
            machine.start()
        except CorruptionError as exc:
            check_error(exc, directory, damage)
            if refused % 10 == 0:
                with pytest.raises(CorruptionError):
                    machine.start()
            refused += 1
            continue
        last = machine.last_applied().index
        assert damage.content is not None, damage
        assert last >= floor, f"lost {floor} to {last}: {damage.file} {damage.what}"
        assert used.states[last] == machine.scan_prefix(b"").entries, damage
        terms = {index: machine.entry_term(index) for index in range(used.installed, last + 2)}
        assert terms == used.terms_to(last), damage
        assert used.metadata == machine.snapshot_metadata(), damage
        machine.stop()
        recovered += 1

    assert refused > 1000
    assert recovered > 10


@functools.cache
def payloads_of(group: int) -> tuple[bytes, ...]:
    return tuple(
        b"%d/%d " % (group, at) * (40 if group % 2 else 300) for at in range(1 + group % 3)
    )


async def entries_of(log: EmbeddedLog) -> list[bytes]:
    entries: list[bytes] = []
    if log.last_log_id().index:
        async for some in log.follow(1):
            entries += [entry.data for entry in some]
            if len(entries) >= log.last_log_id().index:
                break
    return entries


async def test_a_damaged_commit_log_is_right_or_refused(tmp_path: Path) -> None:
    options = EmbeddedLogOptions(segment_bytes=4096)
    log = EmbeddedLog(tmp_path / "first", options)
    await log.open()
    boundaries, written = [0], []
    for group in range(6):
        written += payloads_of(group)
        await log.append(payloads_of(group))
        boundaries.append(len(written))
    tree = read_tree(tmp_path / "first")
    await log.close()
    assert sum(name.endswith(".seg") for name in tree) > 1
    directory = tmp_path / "log"
    refused = recovered = 0

    for damage in damages(tree, 13):
        lay_out(directory, damaged(tree, damage))
        log = EmbeddedLog(directory, options)
        try:
            await log.open()
        except CorruptionError as exc:
            check_error(exc, directory, damage)
            if refused % 10 == 0:
                with pytest.raises(CorruptionError):
                    await log.open()
            refused += 1
            continue
        observed = await entries_of(log)
        assert damage.content is not None, damage
        assert len(observed) in boundaries[-2:], f"{damage.file} {damage.what}"
        assert written[: len(observed)] == observed, f"{damage.file} {damage.what}"
        assert log.last_log_id().index == len(observed)
        await log.close()
        recovered += 1

    assert refused > 500
    assert recovered > 10
