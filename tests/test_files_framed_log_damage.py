"""The framed log after damage: every cut and flip, files that are missing or strange."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from framed_logs import opened, segments_of

from dengine_sm.conformance.power import UnsyncedFileSystem
from dengine_sm.errors import CorruptionError, StorageFormatError
from dengine_sm.files import FramedLog, RecoveryReport
from dengine_sm.files import frames as layout


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def lay_out(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)


PAYLOADS = [
    b"a" * 40,
    b"",
    b"ccc" * 11,
    b"d",
    b"e" * 33,
    b"f" * 20,
    b"g" * 5,
    b"h",
    b"i" * 9,
    b"j",
]


@pytest.fixture(params=[10, 8, 7], ids=["all synced", "two unsynced", "three unsynced"])
def small_log(request, tmp_path) -> tuple[dict[str, bytes], int]:
    """Three segments and more; the content of the directory and the number synced."""
    log = opened(tmp_path / "source", segment_bytes=130)
    for at, payload in enumerate(PAYLOADS, 1):
        log.append(payload)
        if at == request.param:
            log.sync()
    log.close()
    files = contents(tmp_path / "source")
    assert len(files) == 5
    return files, request.param


def recovered(
    directory: Path, files: dict[str, bytes]
) -> tuple[RecoveryReport, list[bytes]] | None:
    """Return what a log with these files holds, or None for damage that is refused."""
    lay_out(directory, files)
    log = FramedLog(directory, segment_bytes=130, fs=UnsyncedFileSystem())
    try:
        report = log.open()
    except CorruptionError as exc:
        assert exc.path.parent == directory
        assert 0 <= exc.offset <= max(map(len, files.values()))
        assert files == contents(directory)
        return None
    payloads = [record.payload for record in log.read(1)]
    assert len(payloads) == report.last_sequence
    assert len(payloads) + 1 == log.append(b"goes on")
    log.close()
    assert (1, len(payloads) + 1) == (log.open().first_sequence, log.last_sequence)
    log.close()
    return report, payloads


def test_a_cut_at_every_byte_of_every_file_is_a_torn_tail_or_damage(small_log, tmp_path):
    files, synced = small_log
    newest = max(name for name in files if name.endswith(".seg"))
    outcomes = set()

    for name, data in files.items():
        for size in range(len(data)):
            found = recovered(tmp_path / f"{name}-{size}", {**files, name: data[:size]})
            if found is None:
                outcomes.add((name == newest, None))
                continue
            report, payloads = found
            assert name == newest
            assert PAYLOADS[: len(payloads)] == payloads
            assert synced - 1 <= len(payloads) < len(PAYLOADS)
            if report.truncated_bytes:
                assert report.truncated_path.name == name
            else:
                assert synced <= len(payloads)
            outcomes.add((True, len(payloads)))

    kept = {(True, count) for count in range(synced - 1, len(PAYLOADS))}
    assert {(True, None), (False, None)} | kept == outcomes


def test_a_flip_at_every_byte_of_every_file_is_damage_or_an_unsynced_tail(small_log, tmp_path):
    files, synced = small_log
    newest = max(name for name in files if name.endswith(".seg"))
    outcomes = set()

    for name, data in files.items():
        for at in range(len(data)):
            bad = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            found = recovered(tmp_path / f"{name}-{at}", {**files, name: bad})
            if found is None:
                outcomes.add(None)
                continue
            report, payloads = found
            assert name == newest
            assert PAYLOADS[:-1] == payloads
            assert synced < len(PAYLOADS)
            assert report.truncated_path.name == name
            outcomes.add(len(payloads))

    assert outcomes == ({None} if synced == len(PAYLOADS) else {None, len(PAYLOADS) - 1})


def test_every_missing_file_is_damage(small_log, tmp_path):
    files, _ = small_log

    for name in files:
        rest = {other: data for other, data in files.items() if other != name}
        assert recovered(tmp_path / f"without-{name}", rest) is None


@pytest.mark.parametrize("name", ["START", "SYNCED"])
def test_a_missing_small_file_of_an_empty_log_is_damage(tmp_path, name):
    opened(tmp_path / "log", first_sequence=70).close()
    (tmp_path / "log" / name).unlink()

    with pytest.raises(CorruptionError, match="is missing while others of its log exist"):
        opened(tmp_path / "log")


def test_a_segment_of_another_place_is_damage(tmp_path):
    log = opened(tmp_path / "log", segment_bytes=150)
    for _ in range(6):
        log.append(b"x" * 60)
    log.close()
    files = contents(tmp_path / "log")
    first, second, third = sorted(name for name in files if name.endswith(".seg"))

    assert recovered(tmp_path / "a", {**files, second: files[first]}) is None
    assert recovered(tmp_path / "b", {**files, third: files[second]}) is None


@pytest.mark.parametrize("records", [0, 1])
def test_a_start_older_than_the_records_is_damage(tmp_path, records):
    log = opened(tmp_path / "log")
    log.append(b"old")
    log.close()
    older = contents(tmp_path / "log")
    log.open()
    log.clear(1)
    for _ in range(records):
        log.append(b"new")
    log.close()
    newer = contents(tmp_path / "log")

    found = recovered(tmp_path / "mixed", {**newer, **older})

    assert (None if records else [b"old"]) == (found and found[1])


def test_bytes_after_the_last_frame_of_an_inner_segment_are_damage(small_log, tmp_path):
    files, _ = small_log
    inner = min(name for name in files if name.endswith(".seg"))

    lay_out(tmp_path / "log", {**files, inner: files[inner] + b"x"})

    with pytest.raises(CorruptionError) as caught:
        opened(tmp_path / "log", segment_bytes=130)
    assert caught.value.path.name == inner
    assert caught.value.offset == len(files[inner])


@pytest.mark.parametrize(("sequence", "count"), [(1, 1), (3, 1), (2, 0)])
def test_a_valid_frame_of_another_sequence_is_damage(tmp_path, sequence, count):
    log = opened(tmp_path / "log")
    log.append(b"a")
    log.close()
    segment = segments_of(tmp_path / "log")[0]
    data = segment.read_bytes()
    segment.write_bytes(data + layout.frame_header(b"b", sequence, count, 0, len(data)) + b"b")

    with pytest.raises(CorruptionError, match=f"sequence {sequence} .* at offset {len(data)}"):
        opened(tmp_path / "log")


def test_damage_of_an_unsynced_frame_before_a_valid_one_is_refused(tmp_path):
    log = opened(tmp_path / "log")
    for payload in (b"a" * 1000, b"b" * 1000, b"c" * 1000):
        log.append(payload)
    log.close()
    files = contents(tmp_path / "log")
    name = next(name for name in files if name.endswith(".seg"))
    data = files[name]
    flipped = data.replace(b"b" * 10, b"b" * 9 + b"B", 1)
    lost = data[:1536] + bytes(512) + data[2048:]

    assert recovered(tmp_path / "flipped", {**files, name: flipped}) is None
    report, payloads = recovered(tmp_path / "lost", {**files, name: lost})

    assert payloads == [b"a" * 1000]
    assert len(data) - 32 - 1024 == report.truncated_bytes


def test_a_copy_of_a_frame_inside_a_torn_payload_is_no_frame(tmp_path):
    log = opened(tmp_path / "log")
    log.append(b"a")
    for _ in range(5):
        log.append(b"n")
    log.close()
    inner = segments_of(tmp_path / "log")[0].read_bytes()[32:]
    log.open()
    log.clear(1)
    log.append(inner * 2)
    log.close()
    newest = segments_of(tmp_path / "log")[0]
    os.truncate(newest, newest.stat().st_size - 1)

    report = log.open()

    assert report.last_sequence == 0
    assert report.truncated_bytes > 0
    log.close()


def test_damage_under_a_running_log_is_reported_to_the_reader(tmp_path):
    log = opened(tmp_path / "log")
    for payload in (b"a" * 50, b"b" * 50, b"c" * 50):
        log.append(payload)
    segment = segments_of(tmp_path / "log")[0]
    segment.write_bytes(segment.read_bytes().replace(b"bb", b"bB", 1))

    reader = log.read(1)
    assert next(reader).payload == b"a" * 50
    with pytest.raises(CorruptionError) as caught:
        next(reader)

    assert segment == caught.value.path
    assert caught.value.offset == 32 + 24 + 50
    log.close()


def test_a_newer_format_is_refused(tmp_path):
    opened(tmp_path / "log").close()
    segment = segments_of(tmp_path / "log")[0]
    header = bytearray(segment.read_bytes()[:-4])
    header[7] += 1
    segment.write_bytes(layout._with_crc(bytes(header)))

    with pytest.raises(StorageFormatError, match="has format 2, expected 1"):
        opened(tmp_path / "log")


def test_leftovers_of_writing_aside_are_removed(tmp_path):
    opened(tmp_path / "log").close()
    (tmp_path / "log" / "START.tmp").write_bytes(b"")

    opened(tmp_path / "log").close()

    assert not (tmp_path / "log" / "START.tmp").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_log_that_must_exist_is_not_begun_anew(tmp_path, is_there):
    directory = tmp_path / "log"
    if is_there:
        directory.mkdir()

    with pytest.raises(CorruptionError, match="the file is missing, and all of its log") as caught:
        FramedLog(directory).open(must_exist=True)

    assert caught.value.path == directory / "START"
    assert directory.exists() == is_there
    assert not is_there or not list(directory.iterdir())
