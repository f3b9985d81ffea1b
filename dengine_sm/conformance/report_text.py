"""Sentences about a report, the same on a terminal, in JUnit XML and on the page."""

from __future__ import annotations

import re
import shlex
from typing import Any

from dengine_sm.config import format_scalar
from dengine_sm.conformance.abilities import header_of
from dengine_sm.conformance.clauses import sentence_of
from dengine_sm.conformance.report_json import as_json
from dengine_sm.conformance.results import CheckResult, Report, Status

TIMELINE = "timeline"
"""Key of a check's evidence that holds points of a sweep: drawn, not printed."""

_MAX_ITEMS = 6
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def header(report: Report) -> str:
    """Return the first line about a report."""
    return header_of(
        report.backend,
        report.version,
        report.durability,
        report.abilities,
        report.contract_version,
    )


def verdict(report: Report) -> str:
    """Return `passed`, `failed`, or `not proven` when something could not be checked."""
    if report.is_passed:
        return "passed"
    broken = report.count(Status.FAILED) + report.count(Status.KNOWN_FAILURE)
    return "failed" if broken or failures(report) else "not proven"


def summary(report: Report) -> str:
    """Return the verdict and the counts in one line."""
    counts = ", ".join(
        f"{report.count(status)} {status.value}" for status in Status if report.count(status)
    )
    return (
        f"{verdict(report)}: of {_many(len(report.clauses), 'clause')}, {counts}; "
        f"{_many(len(report.checks), 'check')}, profile {report.profile}, seed {report.seed}, "
        f"{report.time_s:.1f} s{'' if report.is_complete else '; not all clauses were checked'}"
    )


def failures(report: Report) -> list[CheckResult]:
    """Return the checks that failed, known failures included."""
    return [c for c in report.checks if c.status in (Status.FAILED, Status.KNOWN_FAILURE)]


def reproduce_command(report: Report, clause: str) -> str:
    """Return the command that runs the checks of a clause again, as they were run."""
    words = ["dengine-sm", "conformance", report.backend, "--clause", clause]
    words += ["--seed", str(report.seed), "--profile", report.profile]
    for key, value in report.options.items():
        words += ["--option", f"{key}={format_scalar(value)}"]
    return shlex.join(words)


def failure_text(report: Report, result: CheckResult) -> str:
    """Return a failed check in full: what was broken, how it was found, how to repeat it."""
    blamed = result.violated or result.clause
    lines = [f"{blamed} {result.status.value}: {sentence_of(blamed)}"]
    facts = [("expected", result.expected), ("observed", result.observed)]
    if result.status is Status.KNOWN_FAILURE:
        facts.insert(0, ("known", result.reason))
    lines += [_fact(name, text) for name, text in facts if text]
    if result.history:
        lines += ["  history", *(f"    {line}" for line in result.history)]
    elif raised := raised_at(result):
        lines += ["  raised at", *(f"    {line}" for line in raised)]
    lines += [_fact("check", result.check), _fact("seed", str(report.seed))]
    lines += [_fact("reproduce", reproduce_command(report, result.clause))]
    return printable("\n".join(lines))


def raised_at(result: CheckResult, count: int = 6) -> list[str]:
    """Return the last lines of the traceback of a check that broke down."""
    if not result.reason.startswith("raised "):
        return []
    return [line.strip("\n") for line in result.details.splitlines()[-1 - count : -1]]


def evidence_text(evidence: dict[str, Any], limit: int = 160) -> str:
    """Return what a check did in one line, without the points of a sweep."""
    return cut(printable(shown({k: v for k, v in evidence.items() if k != TIMELINE})), limit)


def shown(value: Any) -> str:
    """Return a JSON-able value in one line, without brackets around the whole."""
    plain = as_json(value)
    if isinstance(plain, dict):
        return ", ".join(f"{key} {_nested(item)}" for key, item in plain.items())
    if isinstance(plain, list):
        rest = f", ... {len(plain)} in all" if len(plain) > _MAX_ITEMS else ""
        return ", ".join(_nested(item) for item in plain[:_MAX_ITEMS]) + rest
    return str(plain)


def cut(text: str, limit: int) -> str:
    """Return text, shortened to a number of characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable(text: str) -> str:
    """Return text without what a terminal, XML or UTF-8 cannot take: escaped instead."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _nested(value: Any) -> str:
    if isinstance(value, dict):
        return f"({shown(value)})"
    return f"[{shown(value)}]" if isinstance(value, list) else str(value)


def _fact(name: str, text: str) -> str:
    first, *rest = text.splitlines() or [""]
    return "\n".join([f"  {name:<9} {first}", *(f"  {'':<9} {line}" for line in rest)])


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
