"""The framed log: appends, reads, rolls, purges, and every kind of damage."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dengine_sm.errors import CorruptionError, LogGapError, StorageError, StorageFormatError
from dengine_sm.files import FramedLog, LogRecord, OsFileSystem, RecoveryReport
from dengine_sm.files import frames as layout


class Unsynced(OsFileSystem):
    """The real file system without its waits; power loss has its own test."""

    def fsync(self, fd: int) -> None:
        pass

    def fdatasync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


def opened(directory: Path, segment_bytes: int = 64 << 20, first_sequence: int = 1) -> FramedLog:
    log = FramedLog(directory, segment_bytes=segment_bytes, fs=Unsynced())
    log.open(first_sequence)
    return log


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def lay_out(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)


def segments_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def test_a_new_log_is_empty_and_begins_where_it_is_told(tmp_path):
    log = FramedLog(tmp_path / "log")

    report = log.open(first_sequence=41)

    assert RecoveryReport(41, 40, 0, None) == report
    assert (
        log.first_sequence,
        log.next_sequence,
        log.last_sequence,
        log.synced_sequence,
    ) == (41, 41, 40, 40)
    assert list(log.read(41)) == []
    log.close()
    assert RecoveryReport(41, 40, 0, None) == log.open(first_sequence=7)
    log.close()


def test_sequences_count_what_records_cover(tmp_path):
    log = opened(tmp_path / "log")

    assert log.append(b"one") == 1
    assert log.append(b"five", count=5) == 2
    assert log.append(b"") == 7

    assert [LogRecord(2, 5, b"five"), LogRecord(7, 1, b"")] == list(log.read(4))
    assert log.synced_sequence == 0
    log.sync()
    assert log.synced_sequence == 7
    log.close()


@pytest.mark.parametrize("count", [0, -1])
def test_a_record_covers_at_least_one_sequence(tmp_path, count):
    log = opened(tmp_path / "log")

    with pytest.raises(ValueError, match="out of range"):
        log.append(b"x", count=count)

    log.close()


def test_a_closed_log_refuses_everything_and_close_is_idempotent(tmp_path):
    log = opened(tmp_path / "log")
    log.close()
    log.close()

    for act in (
        lambda: log.append(b""),
        log.sync,
        lambda: log.read(1),
        lambda: log.purge(1),
        lambda: log.clear(1),
        lambda: log.undo_append(1),
        lambda: log.next_sequence,
    ):
        with pytest.raises(StorageError, match="is not open"):
            act()


def test_a_log_is_opened_once(tmp_path):
    log = opened(tmp_path / "log")

    with pytest.raises(StorageError, match="is open"):
        log.open()

    assert log.append(b"") == 1
    log.close()


def test_cycles_leak_no_descriptor(tmp_path):
    log = FramedLog(tmp_path / "log", segment_bytes=100)
    before = len(os.listdir("/proc/self/fd"))

    for cycle in range(50):
        log.open()
        log.append(b"x" * 60)
        list(log.read(1 + cycle // 2))
        next(log.read(1))
        log.close()
    segments_of(tmp_path / "log")[3].unlink()
    with pytest.raises(CorruptionError):
        log.open()

    assert before == len(os.listdir("/proc/self/fd"))


records = st.tuples(st.binary(max_size=80), st.integers(1, 5))


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(st.lists(records, max_size=6), max_size=5),
    segment_bytes=st.integers(1, 300),
    first=st.integers(1, 1 << 60),
)
def test_what_is_appended_is_read_after_every_reopening(
    tmp_path_factory, batches, segment_bytes, first
):
    log = FramedLog(tmp_path_factory.mktemp("log"), segment_bytes=segment_bytes, fs=Unsynced())
    expected: list[LogRecord] = []
    following = first

    for batch in batches:
        log.open(first)
        for payload, count in batch:
            expected.append(LogRecord(following, count, payload))
            assert following == log.append(payload, count)
            following += count
        assert expected == list(log.read(first))
        log.close()

    report = log.open(first)
    assert RecoveryReport(first, following - 1, 0, None) == report
    assert following == log.next_sequence
    assert expected == list(log.read(first))
    for sequence in range(first, following):
        record = next(log.read(sequence))
        assert record.sequence <= sequence < record.sequence + record.count
    log.close()


def test_large_and_many_records_are_found_from_the_middle(tmp_path):
    log = opened(tmp_path / "log", segment_bytes=3 << 20)
    payloads = [bytes([n % 256]) * (2_600_000 if n % 50 == 0 else 3000) for n in range(1, 301)]
    for payload in payloads:
        log.append(payload)

    for reopened in (False, True):
        if reopened:
            log.close()
            log.open()
        for at in (1, 50, 51, 120, 299, 300):
            assert payloads[at - 1 :] == [record.payload for record in log.read(at)]
    log.close()


def test_undo_takes_back_the_newest_record_only(tmp_path):
    log = opened(tmp_path / "log")
    log.append(b"a")
    log.append(b"b", count=3)

    with pytest.raises(ValueError, match="record 1 is not the newest"):
        log.undo_append(1)
    log.undo_append(2)
    with pytest.raises(ValueError, match="record 1 is not the newest"):
        log.undo_append(1)

    assert log.next_sequence == 2
    assert log.append(b"c") == 2
    assert [record.payload for record in log.read(1)] == [b"a", b"c"]
    log.close()


def test_a_synced_record_can_be_undone_and_a_torn_one_in_its_place_is_cut(tmp_path):
    log = opened(tmp_path / "log")
    log.append(b"a")
    log.append(b"long record " * 9)
    log.sync()
    log.undo_append(2)
    assert log.synced_sequence == 1
    log.append(b"another " * 40)
    log.close()
    newest = segments_of(tmp_path / "log")[-1]
    os.truncate(newest, newest.stat().st_size - 1)

    report = log.open()

    assert report.last_sequence == 1
    assert newest == report.truncated_path
    assert [record.payload for record in log.read(1)] == [b"a"]
    log.close()


def test_a_sync_after_an_undo_still_lets_the_newest_record_be_cut(tmp_path):
    log = opened(tmp_path / "log")
    for payload in (b"a", b"b", b"c"):
        log.append(payload)
    log.undo_append(3)
    log.sync()
    log.close()
    newest = segments_of(tmp_path / "log")[-1]
    os.truncate(newest, newest.stat().st_size - 1)

    assert log.open().last_sequence == 1
    log.close()


def test_purge_deletes_whole_segments_and_a_reader_of_them_learns_it(tmp_path):
    log = opened(tmp_path / "log", segment_bytes=150)
    for _ in range(8):
        log.append(b"x" * 60)
    before = log.size_bytes
    slow = log.read(1)
    next(slow)

    log.purge(5)

    assert log.first_sequence == 5
    assert log.size_bytes < before
    assert len(segments_of(tmp_path / "log")) == 2
    with pytest.raises(LogGapError, match="sequence 4 was purged; the oldest kept is 5"):
        log.read(4)
    with pytest.raises(LogGapError):
        list(slow)
    assert [record.sequence for record in log.read(5)] == [5, 6, 7, 8]
    log.purge(10**6)
    assert log.first_sequence == 7
    log.close()
    assert RecoveryReport(7, 8, 0, None) == log.open()
    log.close()


@pytest.mark.parametrize("next_sequence", [1, 2, 3, 900])
def test_clear_goes_on_anywhere(tmp_path, next_sequence):
    log = opened(tmp_path / "log", segment_bytes=100)
    for _ in range(4):
        log.append(b"x" * 60)
    log.sync()

    log.clear(next_sequence)

    for reopened in (False, True):
        if reopened:
            log.close()
            log.open()
        assert (next_sequence, next_sequence) == (log.first_sequence, log.next_sequence)
        assert list(log.read(next_sequence)) == []
    assert next_sequence == log.append(b"new")
    log.sync()
    log.close()
    assert RecoveryReport(next_sequence, next_sequence, 0, None) == log.open()
    assert [record.payload for record in log.read(next_sequence)] == [b"new"]
    log.close()


def test_readers_run_while_another_thread_appends_syncs_and_undoes(tmp_path):
    log = opened(tmp_path / "log", segment_bytes=4000)
    done = threading.Event()
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            position = 1
            while True:
                last_round = done.is_set()
                for record in log.read(position):
                    assert position == record.sequence
                    assert record.payload == b"%d" % position * (position % 50)
                    position += 1
                if last_round:
                    assert position == 2001
                    return
        except BaseException as exc:
            failures.append(exc)

    def sync() -> None:
        try:
            while not done.is_set():
                log.sync()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=follow), threading.Thread(target=sync)]
    for thread in threads:
        thread.start()
    for sequence in range(1, 2001):
        log.append(b"%d" % sequence * (sequence % 50))
        if sequence % 10 == 0:
            log.undo_append(sequence)
            log.append(b"%d" % sequence * (sequence % 50))
    done.set()
    for thread in threads:
        thread.join()

    assert failures == []
    log.close()


def test_a_newer_format_is_refused(tmp_path):
    opened(tmp_path / "log").close()
    segment = segments_of(tmp_path / "log")[0]
    header = bytearray(segment.read_bytes()[:-4])
    header[7] += 1
    segment.write_bytes(layout._with_crc(bytes(header)))

    with pytest.raises(StorageFormatError, match="has format 2, expected 1"):
        opened(tmp_path / "log")


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
    log = FramedLog(directory, segment_bytes=130, fs=Unsynced())
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
