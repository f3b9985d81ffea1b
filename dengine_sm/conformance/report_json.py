"""Reports as JSON, a versioned schema: written, and read back with clear errors.

Documented in docs/reference/conformance-report.md.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.results import CheckResult, ClauseResult, Report, Status
from dengine_sm.errors import ConfigError, StorageError
from dengine_sm.structuring import structure

SCHEMA = "dengine-sm-conformance/1"
"""Within one number fields may be added, never changed or removed."""

_FAMILY, _, _NUMBER = SCHEMA.partition("/")


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return a report as plain JSON values, with its schema, verdict and counts."""
    return {
        "schema": SCHEMA,
        "passed": report.is_passed,
        "counts": {status.value: report.count(status) for status in Status},
        **as_json(attrs.asdict(report)),
    }


def report_to_json(report: Report) -> str:
    """Return a report as the text of a JSON file."""
    return json.dumps(report_to_dict(report), indent=2, allow_nan=False) + "\n"


def read_report(path: Path) -> Report:
    """Read a report that `report_to_json` wrote.

    Raises:
        StorageError: the file cannot be read.
        ConfigError: it is no report, damaged, or of a newer schema; every problem at once.
    """
    try:
        text = path.read_text()
    except UnicodeDecodeError as exc:
        raise _refused(str(path), [f"byte {exc.start} is not UTF-8"]) from exc
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise StorageError(f"report {str(path)!r}: cannot be read: {reason}", path=path) from exc
    return report_from_json(text, where=str(path))


def report_from_json(text: str, *, where: str) -> Report:
    """Return the report of a JSON text.

    Args:
        text: what `report_to_json` returned, of this schema; unknown fields are ignored.
        where: a name for the text in error messages.

    Raises:
        ConfigError: it is no report, damaged, or of a newer schema; every problem at once.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _refused(where, [f"not JSON that can be read: {exc}"]) from exc
    if not isinstance(fields, dict):
        raise _refused(where, [f"expected an object, observed {type(fields).__name__}"])
    _check_schema(fields.get("schema"), where)
    known = _known(fields, Report)
    known["clauses"] = _each_known(fields.get("clauses"), ClauseResult)
    known["checks"] = _each_known(fields.get("checks"), CheckResult)
    try:
        return structure(Report, known, where="")
    except ConfigError as exc:
        raise _refused(where, exc.problems) from exc


def as_json(value: Any) -> Any:
    """Return a value as plain JSON; what has no JSON form becomes text.

    Evidence and options come from checks and plugins, and must not break a report.
    """
    if isinstance(value, enum.Enum):
        return as_json(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(as_json(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [as_json(item) for item in value]
    return str(value)


def _check_schema(schema: Any, where: str) -> None:
    if schema == SCHEMA:
        return
    number = re.fullmatch(rf"{_FAMILY}/(\d+)", schema) if isinstance(schema, str) else None
    if number is not None and int(number[1]) > int(_NUMBER):
        raise _refused(
            where,
            [
                f"schema {schema!r} is newer than {SCHEMA!r}, the newest that is known here; "
                "update dengine-sm"
            ],
        )
    raise _refused(
        where,
        [f"no report of the conformance kit: schema: expected {SCHEMA!r}, observed {schema!r}"],
    )


def _known(fields: Mapping[str, Any], cls: type[attrs.AttrsInstance]) -> dict[str, Any]:
    names = {field.name for field in attrs.fields(cls)}
    return {name: value for name, value in fields.items() if name in names}


def _each_known(items: Any, cls: type[attrs.AttrsInstance]) -> Any:
    if not isinstance(items, list):
        return items
    return [_known(item, cls) if isinstance(item, dict) else item for item in items]


def _refused(where: str, problems: Sequence[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(f"report {where!r}: {problems[0]}", problems=problems)
    bullets = "".join(f"\n  - {problem}" for problem in problems)
    return ConfigError(f"report {where!r}: {len(problems)} problems:{bullets}", problems=problems)
