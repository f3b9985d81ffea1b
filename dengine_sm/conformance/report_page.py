"""Reports as one HTML page that needs nothing else; the only importer of jinja2."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator

import attrs
import jinja2

from dengine_sm.config import format_scalar
from dengine_sm.conformance.clauses import GROUPS
from dengine_sm.conformance.report_json import SCHEMA
from dengine_sm.conformance.report_text import (
    cut,
    evidence_text,
    failures,
    header,
    printable,
    reproduce_command,
    summary,
    verdict,
)
from dengine_sm.conformance.results import CheckResult, ClauseResult, Report, Status
from dengine_sm.conformance.timeline import Timeline, timeline_of

_TITLES = {
    "LIFE": "Life",
    "APPLY": "Apply",
    "LOG": "Place in the log",
    "CRASH": "Durability and crash",
    "SNAP": "Snapshot",
    "READ": "Read",
    "DET": "Determinism",
    "RESET": "Reset",
}
_MARKS = {
    Status.PASSED: "✓",
    Status.FAILED: "✗",
    Status.SKIPPED: "?",
    Status.NOT_BOUND: "·",
    Status.KNOWN_FAILURE: "!",
}


@attrs.frozen
class _CheckView:
    result: CheckResult
    reproduce: str
    evidence: str
    timeline: Timeline | None

    @property
    def is_failure(self) -> bool:
        return self.result.status in (Status.FAILED, Status.KNOWN_FAILURE)


@attrs.frozen
class _ClauseView:
    result: ClauseResult
    checks: tuple[_CheckView, ...]

    @property
    def told(self) -> str:
        """Why it is not passed, or what was done."""
        if self.result.status is not Status.PASSED:
            return self.result.reason
        return "; ".join(check.evidence for check in self.checks if check.evidence)

    @property
    def is_open(self) -> bool:
        """Whether to show the checks at once."""
        return any(check.is_failure or check.timeline for check in self.checks)


@attrs.frozen
class _GroupView:
    name: str
    title: str
    clauses: tuple[_ClauseView, ...]

    def count(self, status: Status) -> int:
        return sum(clause.result.status is status for clause in self.clauses)


def report_to_html(report: Report) -> str:
    """Return a report as a page: no script, no other file, for light and dark screens."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=_duration, style=_style, mark=_MARKS.__getitem__, cut=cut)
    template = importlib.resources.files(__package__) / "templates" / "report.html.j2"
    page = environment.from_string(template.read_text("utf-8")).render(
        report=report,
        header=header(report),
        verdict=verdict(report),
        summary=summary(report),
        facts=list(_facts(report)),
        statuses=[(status, report.count(status)) for status in Status],
        groups=_groups(report),
        failures=failures(report),
        schema=SCHEMA,
    )
    return printable(page)


def _groups(report: Report) -> list[_GroupView]:
    checks = {result.check: _check_view(report, result) for result in report.checks}
    groups = []
    for name in dict.fromkeys((*GROUPS, *(_group(r.clause) for r in report.clauses))):
        clauses = tuple(
            _ClauseView(result, tuple(checks[c] for c in result.checks if c in checks))
            for result in report.clauses
            if _group(result.clause) == name
        )
        if clauses:
            groups.append(_GroupView(name, _TITLES.get(name, name), clauses))
    return groups


def _group(clause: str) -> str:
    return clause.partition("-")[0]


def _check_view(report: Report, result: CheckResult) -> _CheckView:
    return _CheckView(
        result,
        reproduce_command(report, result.clause),
        evidence_text(result.evidence),
        timeline_of(result.evidence),
    )


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    options = ", ".join(f"{key} = {format_scalar(value)}" for key, value in report.options.items())
    yield "backend", f"{report.backend} {report.version}".rstrip()
    yield "distribution", report.distribution or "none"
    yield "options", options or "none"
    yield "durability", report.durability.upper()
    yield "abilities", ", ".join(report.abilities) or "none"
    yield "workload", report.workload
    yield "profile", report.profile
    yield "seed", str(report.seed)
    yield "started", report.started_at.replace("T", " ").replace("+00:00", " UTC")
    yield "took", _duration(report.time_s)
    yield "contract", str(report.contract_version)
    yield "kit", report.kit_version
    yield "python", report.python
    yield "machine", report.machine


def _style(status: Status) -> str:
    return status.value.replace(" ", "-")


def _duration(time_s: float) -> str:
    if time_s < 0.0995:
        return f"{time_s * 1000:.0f} ms"
    if time_s < 99.5:
        return f"{time_s:.1f} s"
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
