import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dengine_sm.codec import encode
from dengine_sm.errors import (
    SnapshotCorruptionError,
    SnapshotError,
    StorageError,
)
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import (
    MANIFEST_NAME,
    PORTABLE_FORMAT,
    SessionRow,
    SnapshotAborted,
    read_portable,
    seal_snapshot,
    verify_snapshot,
    write_portable,
)

LAST = LogId(2, 17)
CLOCK = 1_700_000_000_000
ENTRIES = "entries.cbor"
SMALL = [(b"", b"empty key", None), (b"a", b"", 5), (b"b\x00\xff", b"value", None)]

Row = tuple[bytes, bytes, int | None]


def write(directory: Path, rows: list[Row]) -> SnapshotMetadata:
    checksum = write_portable(directory, last_included=LAST, clock_ms=CLOCK, entries=rows)
    return SnapshotMetadata(LAST, checksum, PORTABLE_FORMAT)


def verify(directory: Path, metadata: SnapshotMetadata) -> None:
    verify_snapshot(directory, metadata, formats=[PORTABLE_FORMAT])


def read_rows(directory: Path) -> list[Row]:
    rows: list[Row] = []
    for block in read_portable(directory).blocks:
        for position, (key, value) in enumerate(zip(block.keys, block.values, strict=True)):
            rows.append((key, value, block.deadlines.get(position)))
    return rows


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def forge(directory: Path, *items: object) -> None:
    """Make a sealed directory out of the items of an entries file."""
    directory.mkdir()
    (directory / ENTRIES).write_bytes(b"".join(map(encode, items)))
    seal_snapshot(directory, format=PORTABLE_FORMAT, last_included=LAST)


rows_by_key = st.dictionaries(
    st.binary(max_size=12),
    st.tuples(st.binary(max_size=40), st.none() | st.integers(0, 2**63 - 1)),
    max_size=60,
).map(lambda state: [(key, *state[key]) for key in sorted(state)])


@given(rows=rows_by_key)
@settings(deadline=None, max_examples=60)
def test_reads_what_was_written(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "snapshot"

        metadata = write(directory, rows)

        verify(directory, metadata)
        snapshot = read_portable(directory)
        assert (snapshot.last_included, snapshot.clock_ms) == (LAST, CLOCK)
        assert rows == read_rows(directory)


@pytest.mark.parametrize("total", [0, 1, 1023, 1024, 1025, 5000])
def test_reads_many_blocks(tmp_path: Path, total: int) -> None:
    rows = [(b"%05d" % n, b"v%d" % n, n if n % 3 == 0 else None) for n in range(total)]

    write(tmp_path / "s", rows)

    assert rows == read_rows(tmp_path / "s")
    sizes = [len(block.keys) for block in read_portable(tmp_path / "s").blocks]
    assert all(size == 1024 for size in sizes[:-1])


def test_a_block_ends_with_the_entry_that_fills_a_mebibyte(tmp_path: Path) -> None:
    rows: list[Row] = [(b"%d" % n, bytes(400_000), None) for n in range(7)]

    write(tmp_path / "s", rows)

    sizes = [len(block.keys) for block in read_portable(tmp_path / "s").blocks]
    assert sizes == [3, 3, 1]


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    rows = [(b"%05d" % n, b"x" * n, n or None) for n in range(1500)]
    (tmp_path / "two").mkdir()

    first = write(tmp_path / "one", rows)
    second = write_portable(
        tmp_path / "two",
        last_included=LAST,
        clock_ms=CLOCK,
        entries=((bytes(bytearray(key)), value, deadline) for key, value, deadline in rows),
        on_progress=lambda total: None,
    )

    assert first.checksum == second
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "s", SMALL)

    expected = (
        encode(["kv-portable", 1, [2, 17], CLOCK])
        + encode([[b"", b"a", b"b\x00\xff"], [b"empty key", b"", b"value"], [[1, 5]]])
        + encode([3])
    )
    assert expected == (tmp_path / "s" / ENTRIES).read_bytes()


SESSIONS = [SessionRow(3, 0, False, 3), SessionRow(4, 2**64 - 1, True, 17)]


def test_sessions_are_a_fifth_field_of_the_header(tmp_path: Path) -> None:
    write_portable(
        tmp_path / "s", last_included=LAST, clock_ms=CLOCK, entries=SMALL, sessions=SESSIONS
    )
    write(tmp_path / "none", SMALL)

    header = encode([*HEADER, [[3, 0, 0, 3], [4, 2**64 - 1, 1, 17]]])
    blocks = (tmp_path / "none" / ENTRIES).read_bytes().removeprefix(encode(HEADER))
    assert header + blocks == (tmp_path / "s" / ENTRIES).read_bytes()
    assert read_portable(tmp_path / "s").sessions == SESSIONS
    assert read_rows(tmp_path / "s") == SMALL
    assert read_portable(tmp_path / "none").sessions == []


@pytest.mark.parametrize("name", [ENTRIES, MANIFEST_NAME])
def test_every_flip_and_cut_is_found_by_verifying(tmp_path: Path, name: str) -> None:
    metadata = write(tmp_path / "s", SMALL)
    path = tmp_path / "s" / name
    original = path.read_bytes()
    others = [original[:size] for size in range(len(original))] + [original + b"\x81\x03"]
    for offset in range(len(original)):
        others += [
            original[:offset] + bytes([original[offset] ^ 1 << bit]) + original[offset + 1 :]
            for bit in range(8)
        ]

    for other in others:
        path.write_bytes(other)
        with pytest.raises(SnapshotCorruptionError):
            verify(tmp_path / "s", metadata)


def test_a_cut_is_found_by_reading_alone(tmp_path: Path) -> None:
    write(tmp_path / "s", SMALL)
    path = tmp_path / "s" / ENTRIES
    original = path.read_bytes()

    for size in range(len(original)):
        path.write_bytes(original[:size])
        with pytest.raises(SnapshotCorruptionError):
            read_rows(tmp_path / "s")


def test_an_altered_byte_never_escapes_the_snapshot_errors_of_the_reader(tmp_path: Path) -> None:
    write(tmp_path / "s", SMALL)
    path = tmp_path / "s" / ENTRIES
    original = path.read_bytes()

    refused = 0
    for offset in range(len(original)):
        for value in (0x00, 0x5F, 0x9F, 0xA0, 0xC1, 0xD8, 0xF6, 0xFB, 0xFF):
            path.write_bytes(original[:offset] + bytes([value]) + original[offset + 1 :])
            try:
                rows = read_rows(tmp_path / "s")
            except SnapshotCorruptionError:
                refused += 1
                continue
            assert len(rows) == 3
            assert all(type(key) is type(value) is bytes for key, value, _ in rows)
            assert rows == sorted(rows)

    assert refused > len(original)


HEADER = ["kv-portable", 1, [2, 17], CLOCK]
FORGERIES = {
    "nothing": [],
    "no header": [[[b"a"], [b"b"], []], [1]],
    "another version": [["kv-portable", 2, [2, 17], CLOCK], [0]],
    "another last_included": [["kv-portable", 1, [2, 18], CLOCK], [0]],
    "no trailer": [HEADER, [[b"a"], [b"b"], []]],
    "wrong count": [HEADER, [[b"a"], [b"b"], []], [2]],
    "after the trailer": [HEADER, [0], [0]],
    "empty block": [HEADER, [[], [], []], [0]],
    "fewer values": [HEADER, [[b"a", b"b"], [b"x"], []], [2]],
    "text key": [HEADER, [["a"], [b"x"], []], [1]],
    "null value": [HEADER, [[b"a"], [None], []], [1]],
    "equal keys": [HEADER, [[b"a", b"a"], [b"x", b"y"], []], [2]],
    "falling keys": [HEADER, [[b"b", b"a"], [b"x", b"y"], []], [2]],
    "equal keys of two blocks": [HEADER, [[b"a"], [b"x"], []], [[b"a"], [b"x"], []], [2]],
    "deadline of nothing": [HEADER, [[b"a"], [b"x"], [[1, 5]]], [1]],
    "negative position": [HEADER, [[b"a"], [b"x"], [[-1, 5]]], [1]],
    "two deadlines": [HEADER, [[b"a"], [b"x"], [[0, 5], [0, 6]]], [1]],
    "text deadline": [HEADER, [[b"a"], [b"x"], [[0, "5"]]], [1]],
    "no sessions": [[*HEADER, []], [0]],
    "six fields": [[*HEADER, [[1, 0, 0, 1]], []], [0]],
    "flat sessions": [[*HEADER, [1, 0, 0, 1]], [0]],
    "session zero": [[*HEADER, [[0, 0, 0, 1]]], [0]],
    "negative sequence": [[*HEADER, [[1, -1, 0, 1]]], [0]],
    "large sequence": [[*HEADER, [[1, 1 << 64, 0, 1]]], [0]],
    "odd outcome": [[*HEADER, [[1, 1, 2, 1]]], [0]],
    "outcome of another type": [[*HEADER, [[1, 1, True, 1]]], [0]],
    "sequence of another type": [[*HEADER, [[1, True, 1, 1]]], [0]],
    "used before it was opened": [[*HEADER, [[2, 1, 1, 1]]], [0]],
    "used after the end": [[*HEADER, [[2, 1, 1, 18]]], [0]],
    "two sessions used at once": [[*HEADER, [[1, 1, 1, 3], [2, 1, 1, 3]]], [0]],
    "falling sessions": [[*HEADER, [[2, 0, 0, 2], [1, 0, 0, 1]]], [0]],
    "flat deadlines": [HEADER, [[b"a"], [b"x"], [0, 5]], [1]],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_refuses_a_sealed_snapshot_of_wrong_content(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "s", *FORGERIES[name])

    with pytest.raises(SnapshotCorruptionError, match=ENTRIES):
        read_rows(tmp_path / "s")


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a")])
def test_refuses_keys_that_do_not_rise(tmp_path: Path, keys: tuple[bytes, ...]) -> None:
    with pytest.raises(SnapshotError, match="rise strictly"):
        write(tmp_path / "s", [(key, b"", None) for key in keys])

    assert not (tmp_path / "s").exists()


def test_refuses_keys_that_do_not_rise_from_block_to_block(tmp_path: Path) -> None:
    rows = [(b"%05d" % n, b"", None) for n in range(1024)]

    with pytest.raises(SnapshotError, match=r"b'01023' comes after b'01023'"):
        write(tmp_path / "s", [*rows, rows[-1]])


def test_refuses_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"mine")

    with pytest.raises(SnapshotError, match="not empty"):
        write(tmp_path, SMALL)

    assert content(tmp_path) == {"foreign": b"mine"}


def test_stops_between_blocks_and_leaves_nothing(tmp_path: Path) -> None:
    answers = iter([False, False, True])
    progress: list[int] = []

    with pytest.raises(SnapshotAborted):
        write_portable(
            tmp_path / "s",
            last_included=LAST,
            clock_ms=CLOCK,
            entries=((b"%09d" % n, b"", None) for n in count()),
            should_stop=lambda: next(answers),
            on_progress=progress.append,
        )

    assert progress == [1024, 2048]
    assert not (tmp_path / "s").exists()


def test_a_failing_source_leaves_an_empty_directory_empty(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield b"a", b"", None
        raise RuntimeError("view lost")

    with pytest.raises(RuntimeError, match="view lost"):
        write_portable(tmp_path, last_included=LAST, clock_ms=CLOCK, entries=rows())

    assert content(tmp_path) == {}


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError):
        write(tmp_path / "file" / "s", SMALL)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    child = """if True:
        import resource, signal, sys
        from pathlib import Path
        from dengine_sm.errors import StorageError
        from dengine_sm.model import LogId
        from dengine_sm.snapshot import write_portable
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        rows = ((b"%09d" % n, bytes(1000), None) for n in range(5000))
        try:
            write_portable(Path(sys.argv[1]), last_included=LogId(1, 1), clock_ms=0, entries=rows)
        except StorageError as exc:
            print(type(exc).__name__, Path(sys.argv[1]).exists())
    """
    run = subprocess.run(
        [sys.executable, "-c", child, tmp_path / "s"], capture_output=True, text=True, check=True
    )

    assert run.stdout.strip() == "StorageError False"


def test_memory_does_not_grow_with_the_snapshot(tmp_path: Path) -> None:
    """Writing, verifying and reading 200 MB."""
    child = """if True:
        import sys, tracemalloc
        from pathlib import Path
        from dengine_sm.model import LogId, SnapshotMetadata
        from dengine_sm.snapshot import *
        directory, last = Path(sys.argv[1]), LogId(1, 1)
        rows = ((b"%09d" % n, bytes(10_000), None) for n in range(20_000))
        tracemalloc.start()
        checksum = write_portable(directory, last_included=last, clock_ms=0, entries=rows)
        metadata = SnapshotMetadata(last, checksum, PORTABLE_FORMAT)
        verify_snapshot(directory, metadata, formats=[PORTABLE_FORMAT])
        total = sum(len(block.keys) for block in read_portable(directory).blocks)
        print(total, tracemalloc.get_traced_memory()[1])
    """
    run = subprocess.run(
        [sys.executable, "-c", child, tmp_path / "s"], capture_output=True, text=True, check=True
    )

    total, peak = map(int, run.stdout.split())
    assert total == 20_000
    assert peak < 30_000_000


def test_reading_leaves_the_source_as_it_was(tmp_path: Path) -> None:
    metadata = write(tmp_path / "s", SMALL)
    before = content(tmp_path / "s")

    verify(tmp_path / "s", metadata)
    read_rows(tmp_path / "s")

    assert before == content(tmp_path / "s")
    assert metadata.checksum == hashlib.sha256(before[MANIFEST_NAME]).digest()
