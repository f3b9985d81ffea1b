from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from dengine_sm.errors import ConfigError
from dengine_sm.structuring import nearest, structure

WHERE = "state_machine.options"


class Sync(enum.Enum):
    ALWAYS = "always"
    NEVER = "never"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@attrs.frozen
class Retention:
    keep: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    where: Path = Path("snapshots")


@attrs.frozen
class Options:
    segment_bytes: int = attrs.field(default=1024, validator=attrs.validators.ge(16))
    ratio: float = attrs.field(default=0.5, validator=attrs.validators.le(1.0))
    sync: Sync = Sync.ALWAYS
    level: Level = Level.LOW
    read_only: bool = False
    label: str = ""
    cap: int | None = None
    mode: Literal["a", "b"] = "a"
    tags: tuple[str, ...] = ()
    pair: tuple[int, str] = (1, "")
    sizes: list[int] = attrs.Factory(list)
    extra: dict[str, Any] = attrs.Factory(dict)
    weights: dict[str, int] = attrs.Factory(dict)
    retention: Retention = attrs.Factory(Retention)
    maybe: Retention | None = None
    either: int | str = 0


def problems_of(values: dict[str, Any], cls: type = Options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        structure(cls, values, where=WHERE)
    return list(caught.value.problems)


def test_takes_every_default_from_an_empty_table():
    assert structure(Options, {}, where=WHERE) == Options()


def test_builds_nested_values():
    values = {
        "segment_bytes": 64,
        "ratio": 1,
        "sync": "never",
        "level": 2,
        "read_only": True,
        "cap": 5,
        "mode": "b",
        "tags": ["x", "y"],
        "pair": [2, "two"],
        "sizes": (1, 2),
        "extra": {"any": [1, "thing"]},
        "weights": {"w": 3},
        "retention": {"keep": 9, "where": "/var/s"},
        "maybe": {"keep": 2},
        "either": "text",
    }

    built = structure(Options, values, where=WHERE)

    assert built == Options(
        segment_bytes=64,
        ratio=1.0,
        sync=Sync.NEVER,
        level=Level.HIGH,
        read_only=True,
        cap=5,
        mode="b",
        tags=("x", "y"),
        pair=(2, "two"),
        sizes=[1, 2],
        extra={"any": [1, "thing"]},
        weights={"w": 3},
        retention=Retention(9, Path("/var/s")),
        maybe=Retention(2),
        either="text",
    )
    assert type(built.ratio) is float


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"segment_bytes": "64"}, "segment_bytes: expected int, observed str '64'"),
        ({"segment_bytes": True}, "segment_bytes: expected int, observed bool True"),
        ({"segment_bytes": 64.0}, "segment_bytes: expected int, observed float 64.0"),
        ({"segment_bytes": None}, "segment_bytes: expected int, observed None"),
        ({"ratio": "0.5"}, "ratio: expected float, observed str '0.5'"),
        ({"ratio": True}, "ratio: expected float, observed bool True"),
        ({"read_only": 1}, "read_only: expected bool, observed int 1"),
        ({"label": 7}, "label: expected str, observed int 7"),
        ({"cap": "5"}, "cap: expected int or None, observed str '5'"),
        ({"sync": "often"}, "sync: expected one of 'always', 'never', observed str 'often'"),
        ({"level": True}, "level: expected one of 1, 2, observed bool True"),
        ({"mode": "c"}, "mode: expected one of 'a', 'b', observed str 'c'"),
        ({"tags": "xy"}, "tags: expected tuple[str, ...], observed str 'xy'"),
        ({"tags": ["x", 1]}, "tags[1]: expected str, observed int 1"),
        ({"pair": [1]}, "pair: expected 2 items, observed 1: [1]"),
        ({"weights": {"w": "3"}}, "weights['w']: expected int, observed str '3'"),
        ({"extra": 1}, "extra: expected dict[str, typing.Any], observed int 1"),
        ({"retention": 3}, "retention: expected a table, observed int 3"),
        ({"retention": {"where": 3}}, "retention.where: expected a path, observed int 3"),
        ({"maybe": {"keep": "2"}}, "maybe.keep: expected int, observed str '2'"),
        ({"maybe": 2}, "maybe: expected a table or None, observed int 2"),
        ({"either": 1.5}, "either: expected int or str, observed float 1.5"),
        ({"segment_bytes": 8}, "segment_bytes: 'segment_bytes' must be >= 16: 8"),
    ],
)
def test_refuses_a_wrong_value_and_says_where(values: dict[str, Any], expected: str):
    assert problems_of(values) == [f"{WHERE}.{expected}"]


def test_an_unknown_key_gets_the_accepted_names_and_the_nearest():
    expected = (
        "state_machine.options: unknown option 'kep'; accepted: keep, where; did you mean 'keep'?"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        structure(Retention, {"kep": 1}, where=WHERE)


def test_an_unknown_key_unlike_any_gets_the_accepted_names_only():
    assert problems_of({"zzz": 1}, Retention) == [
        "state_machine.options: unknown option 'zzz'; accepted: keep, where"
    ]


def test_an_unknown_key_of_a_nested_table_names_that_table():
    assert problems_of({"maybe": {"wher": "x"}}) == [
        f"{WHERE}.maybe: unknown option 'wher'; accepted: keep, where; did you mean 'where'?"
    ]


def test_reports_all_problems_at_once():
    values = {
        "segmnt_bytes": 1,
        "segment_bytes": 1,
        "ratio": 2.5,
        "label": 3,
        "retention": {"keep": 0, "where": 1},
    }

    with pytest.raises(ConfigError) as caught:
        structure(Options, values, where=WHERE)

    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == [
        WHERE,
        f"{WHERE}.label",
        f"{WHERE}.retention.where",
        f"{WHERE}.retention.keep",
        f"{WHERE}.segment_bytes",
        f"{WHERE}.ratio",
    ]
    assert str(caught.value).startswith(f"{WHERE}: 6 problems:\n  - {WHERE}: unknown option")


def test_an_empty_place_leaves_no_prefix():
    with pytest.raises(ConfigError, match=r"^keep: expected int, observed str 'x'$"):
        structure(Retention, {"keep": "x"}, where="")


def test_a_field_without_default_is_missed():
    @attrs.frozen
    class Needs:
        _url: str

    assert problems_of({}, Needs) == [f"{WHERE}.url: missing; expected str"]
    assert structure(Needs, {"url": "x"}, where=WHERE) == Needs("x")


def test_a_validator_that_compares_fields_is_reported():
    @attrs.frozen
    class Range:
        low: int = 0
        high: int = attrs.field(default=1)

        @high.validator
        def _above_low(self, _attribute: object, value: int) -> None:
            if value <= self.low:
                raise ValueError(f"high must be above low, {self.low}: {value}")

    assert problems_of({"high": -1}, Range) == [f"{WHERE}: high must be above low, 0: -1"]
    assert problems_of({"low": 3, "high": 2}, Range) == [
        f"{WHERE}.high: high must be above low, 3: 2"
    ]


def test_a_long_value_is_cut_in_the_message():
    (problem,) = problems_of({"cap": "x" * 5000})

    assert len(problem) < 200


def test_refuses_a_class_that_is_not_attrs():
    with pytest.raises(TypeError, match="expected an attrs class"):
        structure(int, {}, where=WHERE)


def test_nearest_is_none_when_nothing_is_near():
    assert nearest("rocks", ["memory", "rocksdb"]) == "rocksdb"
    assert nearest("zzz", ["memory", "rocksdb"]) is None
