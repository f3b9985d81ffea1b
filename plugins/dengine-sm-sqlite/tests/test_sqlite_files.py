"""The directory: whose it is, what is missing, what the sqlite3 shell may do to it."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dengine_sm_sqlite.store import SQLiteStore

from dengine_sm.errors import (
    CorruptionError,
    StorageError,
    StorageFormatError,
    StorageLockedError,
)
from dengine_sm.kv import WriteBatch


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(directory)
    store.open()
    yield store
    store.close()


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def killed(directory: Path, copy: Path) -> Path:
    """Return a copy of an open store's directory: what a kill leaves."""
    return shutil.copytree(directory, copy)


def reopened(directory: Path) -> dict[bytes, bytes]:
    store = SQLiteStore(directory)
    store.open()
    try:
        return dict(store.scan(b"", None))
    finally:
        store.close()


def test_a_copy_taken_while_open_has_what_was_written(store, directory, tmp_path):
    store.write(WriteBatch({b"a": b"1"}))

    assert reopened(killed(directory, tmp_path / "copy")) == {b"a": b"1"}


def test_leaves_an_empty_log_behind(store, directory):
    store.write(WriteBatch({b"a": bytes(5000)}))
    store.close()

    assert (directory / "state.sqlite-wal").stat().st_size == 0


@pytest.mark.parametrize("lost", ["state.sqlite", "state.sqlite-wal"])
def test_a_lost_file_is_damage(store, directory, tmp_path, lost):
    store.write(WriteBatch({b"a": b"1"}))
    copy = killed(directory, tmp_path / "copy")
    (copy / lost).unlink()
    before = content(copy)

    with pytest.raises(CorruptionError, match=re.escape(lost)) as caught:
        SQLiteStore(copy).open()

    assert copy / lost == caught.value.path
    assert before == content(copy)


def test_a_log_lost_with_its_index_is_damage_once_flushed(store, directory, tmp_path):
    store.write(WriteBatch({b"a": b"1"}))
    store.flush()
    copy = killed(directory, tmp_path / "copy")
    (copy / "state.sqlite-wal").unlink()
    (copy / "state.sqlite-shm").unlink()

    with pytest.raises(CorruptionError, match="hold 0 writes, 1 were durable"):
        SQLiteStore(copy).open()


def test_damage_in_the_middle_of_the_log_is_no_shorter_log(store, directory, tmp_path):
    store.write(WriteBatch({b"a": b"1"}))
    store.write(WriteBatch({b"b": b"2"}))
    store.flush()
    copy = killed(directory, tmp_path / "copy")
    log = bytearray((copy / "state.sqlite-wal").read_bytes())
    log[200] ^= 1
    (copy / "state.sqlite-wal").write_bytes(log)
    before = content(copy)

    with pytest.raises(CorruptionError, match="hold 0 writes, 2 were durable"):
        SQLiteStore(copy).open()

    del before["state.sqlite-shm"]  # SQLite's index of the log, made anew by every first reader
    del before["LOCK"]
    assert before.items() <= content(copy).items()
    log[200] ^= 1
    (copy / "state.sqlite-wal").write_bytes(log)
    assert reopened(copy) == {b"a": b"1", b"b": b"2"}


def test_a_torn_end_of_the_log_is_none_of_the_state(store, directory, tmp_path):
    store.write(WriteBatch({b"a": b"1"}))
    store.flush()
    size = (directory / "state.sqlite-wal").stat().st_size
    store.write(WriteBatch({b"b": b"2"}))
    copy = killed(directory, tmp_path / "copy")
    os.truncate(copy / "state.sqlite-wal", size + 2000)

    assert reopened(copy) == {b"a": b"1"}


@pytest.mark.parametrize("content", [b"", b"torn", bytes(1024)])
def test_a_damaged_note_claims_nothing(store, directory, content):
    store.write(WriteBatch({b"a": b"1"}))
    store.close()
    (directory / "SYNCED").write_bytes(content)

    assert reopened(directory) == {b"a": b"1"}


def test_one_of_two_torn_notes_is_enough(store, directory, tmp_path):
    for number in range(4):
        store.write(WriteBatch({b"a": b"%d" % number}))
        store.flush()
    copy = killed(directory, tmp_path / "copy")
    os.truncate(copy / "state.sqlite-wal", 0)
    note = bytearray((copy / "SYNCED").read_bytes())
    note[15] ^= 1
    (copy / "SYNCED").write_bytes(note)

    with pytest.raises(CorruptionError, match=r"hold 0 writes, [34] were durable"):
        SQLiteStore(copy).open()


@pytest.mark.parametrize("content", [b"", bytes(8192)])
def test_an_emptied_database_is_damage(store, directory, content):
    store.close()
    (directory / "state.sqlite").write_bytes(content)

    with pytest.raises(CorruptionError, match="has no header"):
        SQLiteStore(directory).open()


def test_a_missing_table_is_damage(store, directory):
    store.close()
    with closing(sqlite3.connect(directory / "state.sqlite")) as shell:
        shell.execute("DROP TABLE totals")

    with pytest.raises(CorruptionError, match="no such table"):
        SQLiteStore(directory).open()


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA application_id = 7", "PRAGMA user_version = 2", "PRAGMA journal_mode = DELETE"],
    ids=["foreign", "newer", "not WAL"],
)
def test_refuses_the_file_of_another_program_or_version(store, directory, statement):
    store.close()
    with closing(sqlite3.connect(directory / "state.sqlite")) as shell:
        shell.execute(statement).fetchall()
    before = content(directory)

    with pytest.raises(StorageFormatError, match="expected application id 0x64534d53"):
        SQLiteStore(directory).open()

    assert before == content(directory)


def test_refuses_the_directory_of_another_backend(directory):
    directory.mkdir()
    (directory / "MANIFEST").write_bytes(b"mine")

    with pytest.raises(StorageFormatError, match="it holds 'MANIFEST'; expected an empty"):
        SQLiteStore(directory).open()

    assert content(directory) == {"MANIFEST": b"mine"}


def test_a_database_that_was_not_finished_is_begun_anew(directory):
    directory.mkdir()
    (directory / "LOCK").touch()
    (directory / "state.sqlite.new").write_bytes(b"half")
    (directory / "state.sqlite.new-journal").write_bytes(b"half")

    assert reopened(directory) == {}
    assert not list(directory.glob("*.new*"))


def test_a_database_that_cannot_be_put_in_wal_mode_is_none(directory, monkeypatch):
    """SQLite reports a failure of that in its answer alone."""
    real = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, statement, *args):
            return super().execute(statement.replace("= WAL", ""), *args)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=Connection))

    with pytest.raises(StorageError, match="stayed in the journal mode 'delete', expected 'wal'"):
        SQLiteStore(directory).open()

    monkeypatch.undo()
    assert reopened(directory) == {}


def test_a_second_store_in_the_process_takes_no_lock_away(store, directory):
    """Closing a descriptor of the file would drop SQLite's own locks on it."""
    store.write(WriteBatch({b"a": b"1"}))
    with pytest.raises(StorageLockedError, match="is open in this process"):
        SQLiteStore(directory).open()

    # A shell that finds no lock takes itself for the last user and deletes the log.
    assert shell(directory, "SELECT key, value FROM data") == [(b"a", b"1")]

    assert (directory / "state.sqlite-wal").stat().st_size > 0
    store.write(WriteBatch({b"b": b"2"}))
    assert shell(directory, "SELECT key, value FROM data") == [(b"a", b"1"), (b"b", b"2")]


def shell(directory: Path, statement: str) -> list[tuple]:
    """Read with another process, which closes its connection."""
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(c.execute(sys.argv[2]).fetchall()); c.close()"
    )
    command = [sys.executable, "-c", script, str(directory / "state.sqlite"), statement]
    return eval(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_shell_may_look_at_a_stopped_store(store, directory):
    store.write(WriteBatch({b"a": b"1"}))
    store.close()

    assert shell(directory, "SELECT key, value FROM data") == [(b"a", b"1")]

    assert not (directory / "state.sqlite-wal").exists()
    assert reopened(directory) == {b"a": b"1"}


def test_a_shell_may_look_at_what_a_kill_left(store, directory, tmp_path):
    store.write(WriteBatch({b"a": b"1"}))
    store.flush()
    store.write(WriteBatch({b"b": b"2"}))
    copy = killed(directory, tmp_path / "copy")

    assert shell(copy, "SELECT keys FROM totals") == [(2,)]

    assert reopened(copy) == {b"a": b"1", b"b": b"2"}


def test_a_read_only_directory_is_refused(store, directory, monkeypatch):
    store.close()
    real = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)

    with pytest.raises(StorageError, match="Permission denied"):
        SQLiteStore(directory).open()


def queries_of_the_readme() -> list[str]:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```sql\n(.*?)```", readme, re.MULTILINE | re.DOTALL)
    return [query for block in blocks for query in block.split(";\n") if query.strip()]


def test_every_query_of_the_readme_works(store, directory):
    deadline = 1_700_000_000_123
    values = {b"config/a": b"one", b"config0": b"two", b"\xff": b"three"}
    store.write(WriteBatch(values, {b"d/config/a": deadline.to_bytes(8, "big")}))
    with closing(sqlite3.connect(directory / "state.sqlite")) as shell:
        shell.text_factory = bytes
        answers = [shell.execute(query).fetchall() for query in queries_of_the_readme()]

    listed, with_prefix, not_text, _, totals, deadlines = answers
    assert listed[0] == (b"config/a", b"one")
    assert with_prefix == [(b"config/a",)]
    assert not_text == [(b"FF",)]
    assert totals == [(3, 1)]
    assert [(b"config/a", deadline, b"2023-11-14 22:13:20")] == deadlines
