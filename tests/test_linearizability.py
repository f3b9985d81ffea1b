"""The checker is right before it is trusted: recorded histories, made ones, and all orders."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from histories import data_directory
from hypothesis import given, settings
from hypothesis import strategies as st
from linearizability import Operation, TooManyConfigurationsError, check, step_register

LINE = re.compile(
    r"(?P<process>\d+)\s+:(?P<type>invoke|ok|fail|info)\s+:(?P<kind>\w+)\s+(?P<rest>.+)"
)
KNOWN_LINEARIZABLE = 23


def recorded(path: Path) -> list[Operation]:
    """Read a history of one register, as Jepsen logs it; time is the line number."""
    pending: dict[str, tuple[int, str, object]] = {}
    operations = []
    for time, line in enumerate(path.read_text().splitlines()):
        found = LINE.search(line)
        if found is None:
            continue
        process, kind, text = found["process"], found["kind"], found["rest"].strip()
        if found["type"] == "invoke":
            argument: object = None
            if kind == "write":
                argument = int(text)
            elif kind == "cas":
                argument = tuple(map(int, text.strip("[]").split()))
            pending[process] = time, kind, argument
            continue
        call, kind, argument = pending.pop(process)
        outcome = found["type"]
        if kind == "read":
            if outcome == "ok":
                value = None if text == "nil" else int(text)
                operations.append(Operation(process, "r", kind, None, value, call, time))
        elif kind == "write" and outcome == "fail":
            continue
        else:
            returned = None if outcome == "info" else time
            operations.append(
                Operation(process, "r", kind, argument, outcome == "ok", call, returned)
            )
    for process, (call, kind, argument) in pending.items():
        if kind != "read":
            operations.append(Operation(process, "r", kind, argument, None, call, None))
    return operations


def test_agrees_with_the_known_answer_of_every_recorded_history() -> None:
    directory = data_directory("etcd") / "jepsen-etcd"
    expected = json.loads((directory / "linearizable.json").read_text())
    assert len(expected) == 102 and sum(expected.values()) == KNOWN_LINEARIZABLE

    observed = {name: check(recorded(directory / name)).linearizable for name in expected}

    assert expected == observed


def op(kind: str, argument: object, result: object, call: float, returned: float | None, key="x"):
    return Operation("p", key, kind, argument, result, call, returned)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([op("write", 1, None, 0, 1), op("read", None, 1, 2, 3)], True),
        ([op("write", 1, None, 0, 1), op("read", None, None, 2, 3)], False),  # stale
        ([op("write", 1, None, 0, 5), op("read", None, None, 2, 3)], True),  # concurrent
        ([op("read", None, 7, 0, 1)], False),  # nobody wrote it
        ([op("write", 1, None, 0, None), op("read", None, 1, 8, 9)], True),  # late
        ([op("write", 1, None, 0, None), op("read", None, None, 8, 9)], True),  # never
        ([op("write", 1, None, 5, None), op("read", None, 1, 0, 1)], False),  # before its call
        (
            [  # it cannot go back
                op("write", 1, None, 0, 1),
                op("write", 2, None, 2, 9),
                op("read", None, 2, 3, 4),
                op("read", None, 1, 5, 6),
            ],
            False,
        ),
        (
            [  # a lost update: both matched the same value
                op("cas", (None, 1), True, 0, 1),
                op("cas", (1, 2), True, 2, 5),
                op("cas", (1, 3), True, 2, 5),
            ],
            False,
        ),
        ([op("cas", (None, 1), True, 0, 1), op("cas", (1, 2), True, 0, 5)], True),
        ([op("cas", (None, 1), False, 0, 1)], False),  # it must have matched
        ([op("cas", (3, 1), False, 0, 1), op("cas", (3, 1), None, 0, None)], True),
        ([op("write", 1, None, 0, 1, "x"), op("read", None, None, 2, 3, "y")], True),
        ([op("write", 1, None, 0, 1, "x"), op("read", None, 1, 2, 3, "y")], False),
    ],
)
def test_judges_short_histories(history: list[Operation], expected: bool) -> None:
    assert expected is check(history).linearizable


def test_a_verdict_tells_where_it_ends() -> None:
    history = [op("write", 1, None, 0, 1), op("read", None, 2, 2, 3)]

    verdict = check(history)

    assert verdict.key == "x"
    assert verdict.placed == [history[0]]
    assert verdict.stuck == history[1]
    assert "key 'x': no order explains" in str(verdict) and "write 1" in str(verdict)


def test_gives_up_rather_than_fill_the_memory() -> None:
    history = [op("write", n, None, 0, 9) for n in range(20)] + [op("read", None, 99, 10, 11)]

    with pytest.raises(TooManyConfigurationsError, match="more than 1000 configurations"):
        check(history, limit=1000)


VALUES = st.integers(0, 2)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from(("read", "write", "cas")))
    argument = {"read": None, "write": draw(VALUES), "cas": (draw(VALUES), draw(VALUES))}[kind]
    result = draw(VALUES) if kind == "read" else draw(st.booleans())
    call = draw(st.integers(0, 8))
    returned = draw(st.none() | st.integers(call, 12))
    if kind == "read" and returned is None:
        returned = call
    return Operation("p", "x", kind, argument, result, call, returned)


def some_order_explains(history: list[Operation]) -> bool:
    """Try every order of every choice of the unanswered."""
    known = [one for one in history if one.returned is not None]
    unknown = [one for one in history if one.returned is None]
    for size in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, size):
            if any(map(explains, itertools.permutations([*known, *chosen]))):
                return True
    return False


def explains(order: tuple[Operation, ...]) -> bool:
    state: object = 0
    for position, operation in enumerate(order):
        later = order[position + 1 :]
        if any(one.returned is not None and one.returned < operation.call for one in later):
            return False
        fits, state = step_register(state, operation)
        if not fits:
            return False
    return True


@settings(deadline=None, max_examples=400)
@given(st.lists(operations(), max_size=5))
def test_finds_an_order_exactly_when_there_is_one(history: list[Operation]) -> None:
    assert some_order_explains(history) is check(history, 0).linearizable
