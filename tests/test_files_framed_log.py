"""The framed log: appends, reads, rolls, undos, purges."""

from __future__ import annotations

import os
import threading

import pytest
from framed_logs import opened, segments_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dengine_sm.conformance.power import UnsyncedFileSystem
from dengine_sm.errors import CorruptionError, LogGapError, StorageError
from dengine_sm.files import FramedLog, LogRecord, RecoveryReport


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
    log = FramedLog(
        tmp_path_factory.mktemp("log"), segment_bytes=segment_bytes, fs=UnsyncedFileSystem()
    )
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
