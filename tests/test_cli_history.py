"""The files of `load`: histories and progress."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dengine_sm.cli import resume
from dengine_sm.cli.history import MAX_COMMAND_BYTES, HistoryFile, parse_line
from dengine_sm.cli.output import field_bytes, json_fields
from dengine_sm.errors import (
    ConfigError,
    StorageError,
)
from dengine_sm.kv import Delete, Put, encode_command

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "examples" / "data" / "raft-history.ndjson.gz"
NOWHERE = "127.0.0.1:1"


class TestHistory:
    @pytest.mark.parametrize(
        ("text", "command"),
        [
            (b'{"t": 1, "op": "put", "key": "k", "value": "v"}', Put(b"k", b"v")),
            (b'{"op": "put", "key": "", "value": ""}\n', Put(b"", b"")),
            (
                b'{"op": "put", "key": "\xc3\xbc", "value": "v", "ttl_ms": 5}',
                Put("ü".encode(), b"v", 5),
            ),
            (b'{"op": "delete", "key": "k"}', Delete(b"k")),
            (b'{"op": "delete", "key": "/w==", "key_base64": true}', Delete(b"\xff")),
        ],
    )
    def test_reads_puts_and_deletes(self, text: bytes, command: Put | Delete) -> None:
        assert parse_line(1, text).command == encode_command(command)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (b"{", "not JSON: Expecting property name"),
            (b"\xff", "byte 0 is not UTF-8"),
            (b"[1]", "expected an object, observed list"),
            (b"[" * 100_000, "nested too deeply"),
            (b"{}", "'op': expected 'put' or 'delete', observed None"),
            (b'{"op": ["put"]}', "'op': expected 'put' or 'delete', observed ['put']"),
            (b'{"op": "put", "value": "v"}', "'key': expected text, observed nothing"),
            (b'{"op": "put", "key": "k"}', "'value': expected text, observed nothing"),
            (b'{"op": "put", "key": 5, "value": "v"}', "'key': expected text, observed 5"),
            (b'{"op": "delete", "key": "k", "value": "v"}', "unknown field 'value' for delete"),
            (b'{"op": "put", "key": "k", "value": "v", "ttl": 1}', "unknown field 'ttl' for put"),
            (b'{"op": "put", "key": "k", "value": "v", "ttl_ms": 0}', "'ttl_ms': expected a whole"),
            (b'{"op": "put", "key": "k", "value": "v", "ttl_ms": true}', "'ttl_ms': expected a"),
            (b'{"op": "delete", "key": "!", "key_base64": true}', "base64"),
            (b'{"op": "delete", "key": "k", "key_base64": 1}', "'key_base64': expected true or"),
            (b'{"op": "delete", "key": "\\ud800"}', "'key': holds half of a surrogate pair"),
        ],
    )
    def test_a_bad_line_has_number_and_reason(self, text: bytes, problem: str) -> None:
        line = parse_line(7, text)

        assert (line.number, line.command) == (7, None)
        assert problem.lower() in str(line.problem).lower()

    def test_refuses_a_command_that_no_request_can_carry(self) -> None:
        record = {"op": "put", "key": "k", "value": "v" * MAX_COMMAND_BYTES}

        line = parse_line(1, json.dumps(record).encode())

        assert line.command is None
        assert f"at most {MAX_COMMAND_BYTES} can be sent" in str(line.problem)

    def test_blank_lines_are_neither_good_nor_bad(self) -> None:
        assert (parse_line(1, b" \n").command, parse_line(1, b"\n").problem) == (None, None)

    def test_reads_a_range_of_lines(self) -> None:
        lines = list(HistoryFile(HISTORY).lines(after=10, until=12))

        assert [line.number for line in lines] == [11, 12]

    def test_a_truncated_gzip_yields_what_is_before_the_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.gz"
        path.write_bytes(HISTORY.read_bytes()[:20_000])
        read = []

        with pytest.raises(StorageError, match=r"cannot be read after line \d+: ") as caught:
            for line in HistoryFile(path).lines():
                read.append(line)

        assert len(read) > 10
        assert f"after line {len(read)}" in str(caught.value)
        assert all(line.problem is None for line in read)

    @pytest.mark.parametrize("data", [b"", b"text \xc3\xbc", b"\xff\x00", b"\n"])
    def test_bytes_survive_json(self, data: bytes) -> None:
        record = json.loads(json.dumps(json_fields(value=data)))

        assert field_bytes(record, "value") == data


class TestProgressFile:
    @pytest.fixture
    def history(self, tmp_path: Path) -> Path:
        path = tmp_path / "h.ndjson"
        path.write_text('{"op": "delete", "key": "a"}\n')
        return path

    def test_reads_back_what_was_written(self, tmp_path: Path, history: Path) -> None:
        written = resume.fresh(history, NOWHERE)
        path = tmp_path / "state" / "deep" / "p"

        resume.write(path, written)

        assert resume.read(path, history, NOWHERE) == written
        assert list(path.parent.iterdir()) == [path]

    def test_accepts_a_history_that_has_grown(self, tmp_path: Path, history: Path) -> None:
        resume.write(tmp_path / "p", resume.fresh(history, NOWHERE))
        history.write_text(history.read_text() * 2)

        assert resume.read(tmp_path / "p", history, NOWHERE) is not None

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "not a progress record"),
            ("[]", "not a progress record"),
            ('{"lines": 1}', "not a progress record"),
        ],
    )
    def test_refuses_a_damaged_record(
        self, tmp_path: Path, history: Path, text: str, reason: str
    ) -> None:
        (tmp_path / "p").write_text(text)

        with pytest.raises(ConfigError, match=reason):
            resume.read(tmp_path / "p", history, NOWHERE)

    def test_refuses_a_record_about_another_history_or_server(
        self, tmp_path: Path, history: Path
    ) -> None:
        resume.write(tmp_path / "p", resume.fresh(history, NOWHERE))

        with pytest.raises(ConfigError, match=r"it is about server '127\.0\.0\.1:1', not 'x:2'"):
            resume.read(tmp_path / "p", history, "x:2")
        history.write_text("other")
        with pytest.raises(ConfigError, match="it is about another file"):
            resume.read(tmp_path / "p", history, NOWHERE)
