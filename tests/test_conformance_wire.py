"""What travels between processes: values and errors, there and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from odd_machine import DerivedError, make_odd, nursery_of

from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.processes.wire import (
    RemoteError,
    pack,
    pack_error,
    unpack,
    unpack_error,
)
from dengine_sm.errors import ContractViolationError, CorruptionError, LogGapError, StorageError
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome, ScanResult, SnapshotMetadata


class Namesake(Exception):  # noqa: N818 - renamed below
    """A stranger that has the name of one of ours."""


Namesake.__name__ = "StorageError"


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.fixture(scope="module")
def shared_nursery() -> Iterator[Nursery]:
    with nursery_of(make_odd) as nursery:
        yield nursery


@pytest.fixture
def machine(shared_nursery: Nursery, tmp_path: Path) -> Iterator[RemoteMachine]:
    machine = shared_nursery.spawn(tmp_path)
    yield machine
    machine.kill()


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            0,
            -(2**70),
            b"\x00\xff",
            "text",
            ["list", [1, [None]]],
            {"a": 1, b"b": {"c": []}},
            Path("/a/b"),
            LogId(2, 3),
            Entry(1, 2, 3, b"data"),
            ApplyResult(1, Outcome.REJECTED, None),
            SnapshotMetadata(LogId(1, 2), b"c" * 32, "kv-portable/1"),
            ScanResult(((b"a", b"b"), (b"", b"")), LogId(1, 2)),
            ["entry", 1, 2, 3, b"not one"],
        ],
    )
    def test_come_back_equal(self, value: Any):
        assert unpack(pack(value)) == value

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ((1, (2,)), [1, [2]]),
            (bytearray(b"ab"), b"ab"),
            (memoryview(b"ab"), b"ab"),
            (range(3), [0, 1, 2]),
            (Entry(1, 1, 1, bytearray(b"x")), Entry(1, 1, 1, b"x")),  # type: ignore[arg-type]
        ],
    )
    def test_of_like_types_come_back_plain(self, value: Any, expected: Any):
        assert unpack(pack(value)) == expected

    @pytest.mark.parametrize("value", [object(), 1.5, [{1, 2}]])
    def test_of_other_types_are_refused(self, value: Any):
        with pytest.raises(TypeError, match="does not travel between processes"):
            pack(value)

    def test_that_were_not_packed_are_refused(self):
        with pytest.raises(ValueError, match="not a packed value"):
            unpack(["what", 1])

    def test_of_many_bytes_travel(self, machine: RemoteMachine, tmp_path: Path):
        big = os.urandom(3_000_000)
        machine.begin("task", "apply_chunk", [big])
        machine.flush()

        assert machine.finish("task") == [big]


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            CorruptionError("torn", path=Path("/d/log"), offset=7),
            LogGapError("gap", expected_index=3, observed_index=9),
            ContractViolationError("broken", name="b", findings=["one"]),
        ],
    )
    def test_of_ours_keep_class_text_and_attributes(self, error: Exception):
        again = unpack_error(pack_error(error, "Traceback"))

        assert type(again) is type(error)
        assert str(again) == str(error)
        kept = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(error).items()
        }
        assert {name: vars(again)[name] for name in kept} == kept
        assert again.__notes__ == ["in the machine's process:\nTraceback"]

    def test_derived_from_ours_are_ours(self):
        again = unpack_error(pack_error(DerivedError("full", path=Path("/d"))))

        assert (type(again), str(again)) == (StorageError, "full")
        assert again.path == Path("/d")

    def test_of_strangers_are_not_ours_whatever_their_name(self):
        again = unpack_error(pack_error(Namesake("boo")))

        assert isinstance(again, RemoteError)
        assert (again.name, str(again)) == ("StorageError", "StorageError: boo")

    def test_lose_only_attributes_that_do_not_travel(self):
        error = LogGapError("gap", expected_index=3)
        error.odd = object()  # type: ignore[attr-defined]
        error.text = "\udcff"  # type: ignore[attr-defined]
        error.loop = [error]  # type: ignore[attr-defined]

        again = unpack_error(pack_error(error))

        assert again.expected_index == 3  # type: ignore[attr-defined]
        assert not {"odd", "text", "loop"} & set(vars(again))

    def test_travel_with_names_of_files_that_are_no_text(self):
        error = unpack_error(pack_error(StorageError("'/d/\udcff' is full")))

        assert str(error) == r"'/d/\udcff' is full"

    def test_travel_without_a_text_of_their_own(self):
        error = unpack_error(pack_error(SpeechlessError()))

        assert str(error) == "SpeechlessError: (its text cannot be had: ValueError)"

    def test_keep_their_notes(self):
        error = StorageError("full")
        error.add_note("while syncing")

        assert unpack_error(pack_error(error)).__notes__[0] == "while syncing"

    def test_arrive_and_the_machine_goes_on(self, machine: RemoteMachine):
        with pytest.raises(StorageError, match="no space") as caught:
            machine.get(b"derived")

        assert caught.value.path == Path("/d")
        assert "DerivedError: no space" in caught.value.__notes__[0]
        assert machine.get(b"value") == b"value"

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            (b"panic", "PanicError: native code panicked"),
            (b"exit", "SystemExit: 3"),
            (b"unpackable", "TypeError: object <object object"),
            (b"unencodable", "UnicodeEncodeError"),
            (b"never_heard", "AttributeError"),
        ],
    )
    def test_of_any_kind_are_answers(self, machine: RemoteMachine, key: bytes, expected: str):
        with pytest.raises(RemoteError, match=f"^{expected}"):
            machine.get(key)

        assert machine.get(b"value") == b"value"
