from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest

from dengine_sm.contract import StateMachine
from dengine_sm.errors import ContractViolationError
from dengine_sm.validation import Finding, check_structure, protocol_methods, violation

THIS_FILE = str(Path(__file__))


def passes_through(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def makes_async(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Whole:
    """Has the contract's methods, word for word, and none of its behaviour."""


for _name, _method in protocol_methods(StateMachine).items():
    setattr(Whole, _name, _method)


def with_method(name: str, method: Any) -> object:
    return type("Broken", (Whole,), {name: method})()


def findings_of(name: str, method: Any) -> list[tuple[str, str, str]]:
    machine = with_method(name, method)
    return [(f.clause_or_method, f.expected, f.observed) for f in check_structure(machine)]


def test_the_contract_has_twenty_methods():
    assert len(protocol_methods(StateMachine)) == 20


def test_a_whole_machine_has_no_finding():
    assert check_structure(Whole()) == []


@pytest.mark.parametrize("name", list(protocol_methods(StateMachine)))
def test_every_method_is_missed(name: str):
    members = {n: m for n, m in protocol_methods(StateMachine).items() if n != name}

    (finding,) = check_structure(type("Partial", (), members)())

    assert finding.clause_or_method == name
    assert finding.observed == "no such method"


def test_a_missing_method_is_located_at_the_class():
    class Partial:
        pass

    line = inspect.getsourcelines(Partial)[1]

    assert {f"{THIS_FILE}:{line}"} == {f.location for f in check_structure(Partial())}


def test_an_integer_is_not_a_method():
    assert findings_of("apply_chunk", 3) == [
        ("apply_chunk", "async def apply_chunk(chunk)", "int 3")
    ]


def test_a_property_that_raises_is_a_finding():
    def explode(self: Any) -> Any:
        raise OSError("disk gone")

    ((_, _, observed),) = findings_of("len", property(explode))

    assert observed == "OSError on access: disk gone"


def test_a_sync_apply_chunk_is_a_finding_at_its_line():
    def apply_chunk(self: Any, chunk: Any) -> Any:
        return []

    (finding,) = check_structure(with_method("apply_chunk", apply_chunk))

    line = inspect.getsourcelines(apply_chunk)[1]
    assert finding == Finding("apply_chunk", "async def", "def", f"{THIS_FILE}:{line}")


async def async_get(self: Any, key: Any) -> Any:
    return None


def sync_get(self: Any, key: Any) -> Any:
    return None


async def async_generator(self: Any, chunk: Any) -> Any:
    yield None


def test_sync_and_async_are_told_apart():
    assert findings_of("get", async_get) == [("get", "def", "async def")]
    assert findings_of("get", makes_async(sync_get)) == [("get", "def", "async def")]
    assert findings_of("apply_chunk", async_generator) == [("apply_chunk", "async def", "def")]


async def async_apply(self: Any, chunk: Any) -> Any:
    return []


class CallableApply:
    async def __call__(self, chunk: Any) -> Any:
        return []


class SyncCallableApply:
    def __call__(self, chunk: Any) -> Any:
        return []


def test_a_sync_callable_object_is_a_finding():
    assert findings_of("apply_chunk", SyncCallableApply()) == [("apply_chunk", "async def", "def")]


@pytest.mark.parametrize(
    "method",
    [
        passes_through(async_apply),
        makes_async(lambda self, chunk: []),
        functools.partialmethod(async_apply),
        staticmethod(functools.partial(async_apply, None)),
        CallableApply(),
    ],
    ids=["passing decorator", "async decorator", "partialmethod", "partial", "callable object"],
)
def test_an_async_method_may_be_wrapped(method: Any):
    assert findings_of("apply_chunk", method) == []


async def with_fsync(self: Any, chunk: Any, fsync: Any) -> Any: ...
async def with_two(self: Any, chunk: Any, fsync: Any, *, mode: Any) -> Any: ...
async def with_default(self: Any, chunk: Any, fsync: bool = True) -> Any: ...
async def with_other_name(self: Any, entries: Any) -> Any: ...
async def with_nothing(self: Any) -> Any: ...
async def positional_only(self: Any, chunk: Any, /) -> Any: ...
async def keyword_only(self: Any, *, chunk: Any) -> Any: ...
async def with_anything(self: Any, *args: Any, **kwargs: Any) -> Any: ...


@pytest.mark.parametrize(
    ("method", "observed"),
    [
        (with_fsync, "(chunk, fsync); 'fsync' has no default"),
        (with_two, "(chunk, fsync, *, mode); 'fsync', 'mode' have no default"),
        (with_other_name, "(entries); no parameter named 'chunk'"),
        (with_nothing, "(); no parameter named 'chunk'"),
        (positional_only, "(chunk, /); 'chunk' cannot be given by name"),
        (
            keyword_only,
            "(*, chunk); cannot be called by position or without the optional arguments",
        ),
    ],
)
def test_a_signature_must_take_the_contracts_call(method: Any, observed: str):
    assert findings_of("apply_chunk", method) == [("apply_chunk", "(chunk)", observed)]


@pytest.mark.parametrize("method", [with_default, with_anything])
def test_a_signature_may_take_more(method: Any):
    assert findings_of("apply_chunk", method) == []


def test_swapped_parameters_are_a_finding():
    async def generate_snapshot_data(self: Any, last_included: Any, new_snapshot_dir: Any): ...

    ((_, expected, observed),) = findings_of("generate_snapshot_data", generate_snapshot_data)

    assert expected == "(new_snapshot_dir, last_included)"
    assert observed == "(last_included, new_snapshot_dir); parameters in another order"


class MyPath(type(Path())):  # type: ignore[misc]  # the concrete class differs per platform
    pass


@attrs.frozen
class OtherLogId:
    term: int


def str_get(self: Any, key: str) -> bytes | None: ...
def str_answer(self: Any, key: bytes) -> str: ...
def narrow_get(self: Any, key: bytes | bytearray) -> bytes: ...
def any_get(self: Any, key: Any) -> Any: ...
def bare_get(self, key): ...
def unresolvable_get(self: Any, key: Nowhere) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821 - on purpose
def int_subclass_term(self: Any, entry_id: float) -> bool: ...
def other_log_id(self: Any) -> OtherLogId: ...


async def wide_apply(self: Any, chunk: Iterable[Any]) -> list[Any]: ...
async def path_install(self: Any, metadata: object, snapshot_path: os.PathLike[str]) -> int: ...
async def subclass_install(self: Any, metadata: Any, snapshot_path: MyPath) -> None: ...


@pytest.mark.parametrize(
    ("name", "method", "finding"),
    [
        ("get", str_get, ("get", "parameter 'key': bytes", "str")),
        ("get", str_answer, ("get", "return: bytes | None", "str")),
        ("last_applied", other_log_id, ("last_applied", "return: dengine_sm.model.LogId", None)),
    ],
)
def test_an_annotation_that_contradicts_is_a_finding(name: str, method: Any, finding: Any):
    ((method_name, expected, observed),) = findings_of(name, method)

    assert (method_name, expected) == finding[:2]
    assert finding[2] in (None, observed)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("get", narrow_get),
        ("get", any_get),
        ("get", bare_get),
        ("get", unresolvable_get),
        ("entry_term", int_subclass_term),
        ("apply_chunk", wide_apply),
        ("apply_snapshot_from_file", path_install),
        ("apply_snapshot_from_file", subclass_install),
    ],
)
def test_an_annotation_that_may_agree_is_none(name: str, method: Any):
    assert findings_of(name, method) == []


def test_an_optional_method_is_checked_when_present():
    def scan_prefix(self: Any, prefix: bytes, limit: int, start_after: bytes) -> Any: ...

    assert findings_of("scan_prefix", scan_prefix) == [
        (
            "scan_prefix",
            "(prefix, *, limit=None, start_after=None)",
            "(prefix, limit, start_after); cannot be called without the optional arguments",
        )
    ]


def test_reports_everything_at_once():
    machine = type("Bad", (Whole,), {"get": async_get, "len": 3, "apply_chunk": with_fsync})()

    assert [f.clause_or_method for f in check_structure(machine)] == ["get", "apply_chunk", "len"]


def test_the_violation_lists_every_finding():
    findings = [
        Finding("apply_chunk", "(chunk)", "(chunk, fsync); 'fsync' has no default", "/p/m.py:7"),
        Finding("last_applied", "def last_applied()", "tuple ()", "/p/m.py:3"),
    ]
    expected = (
        "backend 'rocksdb' (dengine-sm-rocksdb 0.1.0) breaks contract 1 in 2 places:\n"
        "  - apply_chunk: expected (chunk), observed (chunk, fsync); 'fsync' has no default "
        "(/p/m.py:7)\n"
        "  - last_applied: expected def last_applied(), observed tuple () (/p/m.py:3)"
    )

    with pytest.raises(ContractViolationError, match=f"^{re.escape(expected)}$") as caught:
        raise violation("rocksdb", "dengine-sm-rocksdb 0.1.0", findings)

    assert caught.value.findings == tuple(findings)
    assert "in 1 place:" in str(violation("x", "y 1", findings[:1]))
