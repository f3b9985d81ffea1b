"""Reports as JUnit XML, for what reads test results in continuous integration."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

import attrs

from dengine_sm.conformance.report_text import failure_text, header, printable
from dengine_sm.conformance.results import CheckResult, Report, Status

SUITE = "dengine-sm conformance"

_PROPERTIES = (
    "backend",
    "version",
    "distribution",
    "durability",
    "workload",
    "contract_version",
    "kit_version",
    "python",
    "machine",
    "profile",
    "seed",
    "is_complete",
)


def report_to_junit(report: Report) -> str:
    """Return a report as JUnit XML: one test case a check, its class name the clause.

    A clause that no check has looked at is a test case too, a skipped one, so that it
    does not go unseen. What is not bound, and a known failure, count as skipped.
    """
    cases = [*report.checks, *_unchecked(report)]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.status is Status.FAILED for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.status in _SKIPPED for case in cases)),
        "time": _seconds(report.time_s),
    }
    root = ET.Element("testsuites", {"name": SUITE, **counts})
    # Without the offset: the schema that Jenkins uses has no room for one; it is UTC.
    named = {"name": f"{SUITE} {report.backend}", "timestamp": report.started_at[:19]}
    suite = ET.SubElement(root, "testsuite", _attributes({**named, **counts}))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report):
        ET.SubElement(properties, "property", _attributes({"name": name, "value": value}))
    for case in cases:
        _add_case(suite, report, case)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


_SKIPPED = {
    Status.SKIPPED: "skipped",
    Status.NOT_BOUND: "not bound",
    Status.KNOWN_FAILURE: "known failure",
}


def _unchecked(report: Report) -> Iterator[CheckResult]:
    for clause in report.clauses:
        if not clause.checks:
            name = f"{clause.clause.lower().replace('-', '_')}_not_checked"
            yield CheckResult(
                name, clause.clause, clause.status, clause.time_s, reason=clause.reason
            )


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    yield "header", header(report)
    fields = attrs.asdict(report, recurse=False)
    for name in _PROPERTIES:
        yield name, str(fields[name])
    for key, value in report.options.items():
        yield f"option.{key}", str(value)


def _add_case(suite: ET.Element, report: Report, result: CheckResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        _attributes(
            {
                "classname": result.clause,
                "name": result.check,
                "time": _seconds(result.time_s),
            }
        ),
    )
    if result.status in _SKIPPED:
        why = f"{_SKIPPED[result.status]}: {result.reason}"
        ET.SubElement(case, "skipped", _attributes({"message": why}))
    elif result.status is Status.FAILED:
        told = {"type": result.violated or result.clause, "message": result.reason}
        failure = ET.SubElement(case, "failure", _attributes(told))
        failure.text = failure_text(report, result) + printable(f"\n\n{result.details}")


def _attributes(values: dict[str, str]) -> dict[str, str]:
    return {name: printable(value) for name, value in values.items()}


def _seconds(time_s: float) -> str:
    return f"{time_s:.3f}"
