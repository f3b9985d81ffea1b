"""`conformance`: the kit's checks over an installed backend, and what two reports differ in.

The kit is imported when the command runs: no other command needs it or its dependencies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dengine_sm.cli import exit_codes
from dengine_sm.cli.app import example, existing_file, given_options, needs_extra
from dengine_sm.cli.certificate import identity_before, write_certificate
from dengine_sm.cli.conformance_progress import progress_on
from dengine_sm.cli.target import json_option
from dengine_sm.errors import StorageError
from dengine_sm.files import replace_file

if TYPE_CHECKING:
    from dengine_sm.conformance.compare import Comparison, StatusChange
    from dengine_sm.conformance.results import Report
    from dengine_sm.conformance.subject import Subject

_SUFFIXES = (".json", ".xml", ".html")
_MAX_WHY = 200
_COLOURS = {
    "passed": "green",
    "failed": "bold red",
    "skipped": "yellow",
    "known failure": "magenta",
    "worse": "bold red",
    "better": "green",
}


@click.command(
    epilog=example(
        "dengine-sm conformance file",
        "dengine-sm conformance file --option durability=per_apply --profile quick",
        "dengine-sm conformance file --clause SNAP-4 --clause SNAP-5 --seed 7",
        "dengine-sm conformance file --report file.html --report file.json",
        "dengine-sm conformance file --certificate /var/lib/dengine/certificate.json",
        "dengine-sm conformance --diff old.json new.json",
    )
)
@click.argument("name", required=False)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="K=V",
    help="An option of the backend; may be given again.",
)
@click.option(
    "--profile",
    "profile_label",
    type=click.Choice(["quick", "standard", "deep"]),
    default="standard",
    show_default=True,
    help="How hard to try: 10 s, 2 min, or every crash point for as long as it takes.",
)
@click.option(
    "--clause",
    "only",
    multiple=True,
    metavar="ID",
    help="Check only this clause; may be given again.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which examples and crash points are chosen.",
)
@click.option(
    "--report",
    "report_paths",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json|.xml|.html",
    help="Write the report to a file: JSON, JUnit XML or a page; may be given again.",
)
@click.option(
    "--certificate",
    "certificate_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep a passed run as a certificate, which a node can require.",
)
@click.option(
    "--diff",
    nargs=2,
    type=existing_file(),
    metavar="OLD.json NEW.json",
    help="Compare two reports instead; exit code 1 if anything got worse.",
)
@json_option
@click.pass_context
def conformance(
    ctx: click.Context,
    name: str | None,
    options: tuple[str, ...],
    profile_label: str,
    only: tuple[str, ...],
    seed: int,
    report_paths: tuple[Path, ...],
    certificate_path: Path | None,
    diff: tuple[Path, Path] | None,
    as_json: bool,
) -> None:
    """Prove that the backend NAME keeps the contract, or say which clauses it breaks.

    Works in temporary directories; progress is on stderr. Exit code 0 only if every clause
    passed or does not bind the backend: a skipped one is shown with its reason, and is no
    pass. Ctrl-C ends early and still writes the reports, as not complete.
    """
    if diff is not None:
        _refuse_with_diff(ctx)
    elif name is None:
        raise click.UsageError("say which backend, by NAME, or which reports, by --diff")
    run = _Run(
        name or "",
        given_options("--option", options),
        profile_label,
        tuple(clause.upper() for clause in only),
        seed,
        report_paths,
        certificate_path,
        as_json,
    )
    _check_paths(report_paths)
    with needs_extra("conformance"):
        import dengine_sm.conformance.runner  # noqa: F401 - shows whether hypothesis is there
    if diff is not None:
        _compare(*diff, as_json=as_json)
    else:
        _check(run)


@attrs.frozen
class _Run:
    """What the command line asks for."""

    name: str
    options: dict[str, Any]
    profile: str
    only: tuple[str, ...]
    seed: int
    report_paths: tuple[Path, ...]
    certificate_path: Path | None
    as_json: bool


def _refuse_with_diff(ctx: click.Context) -> None:
    """Refuse what only a run needs, rather than ignore it."""
    for parameter in ctx.command.get_params(ctx):
        source = ctx.get_parameter_source(parameter.name or "")
        is_given = source is click.core.ParameterSource.COMMANDLINE
        if is_given and parameter.name not in ("diff", "as_json"):
            what = parameter.opts[0] if isinstance(parameter, click.Option) else "NAME"
            raise click.UsageError(f"--diff compares two reports and takes no {what}")


def _check_paths(paths: Sequence[Path]) -> None:
    """Find what is wrong with the names of reports before a run of an hour."""
    for path in paths:
        if path.suffix not in _SUFFIXES:
            raise click.UsageError(
                f"--report: expected a name that ends in {', '.join(_SUFFIXES)}, "
                f"observed {str(path)!r}"
            )
        if not path.absolute().parent.is_dir():
            raise click.UsageError(f"--report: no directory {str(path.parent)!r}")


def _check_clauses(only: Sequence[str]) -> None:
    from dengine_sm.conformance.clauses import clauses

    unknown = [clause for clause in only if clause not in clauses()]
    if unknown:
        raise click.UsageError(
            f"--clause: expected an id such as 'APPLY-2', observed {', '.join(map(repr, unknown))}"
        )


def _check(run: _Run) -> None:
    """Run the checks, print what was found and write what was asked for."""
    from dengine_sm.conformance.backend import subject_of_backend
    from dengine_sm.conformance.report_json import report_to_dict

    _check_clauses(run.only)
    writers = _writers(run.report_paths)
    subject = subject_of_backend(run.name, run.options)
    identity = None
    if run.certificate_path is not None:
        identity = identity_before(run.name, run.options, run.profile, run.only)
    report, is_interrupted = _report(run, subject)
    if run.as_json:
        _print_json(report_to_dict(report))
    else:
        _print_report(report)
    _write(report, writers)
    if is_interrupted:
        raise KeyboardInterrupt
    if identity is not None and run.certificate_path is not None:
        write_certificate(run.certificate_path, identity, run.options, report)
    if not report.is_passed:
        raise click.exceptions.Exit(exit_codes.NEGATIVE)


def _report(run: _Run, subject: Subject) -> tuple[Report, bool]:
    """Return the report, and whether Ctrl-C ended the run."""
    from dengine_sm.conformance.abilities import header_line
    from dengine_sm.conformance.catalogue import checks_for
    from dengine_sm.conformance.profile import Profile
    from dengine_sm.conformance.runner import run_conformance

    profile = Profile.from_label(run.profile)
    if not run.as_json:
        click.echo(header_line(subject))
    with progress_on(Console(stderr=True)) as progress:
        report = run_conformance(
            subject, profile=profile, only=run.only, seed=run.seed, on_progress=progress.told
        )
    return report, len(report.checks) < len(checks_for(profile, run.only))


def _writers(paths: Sequence[Path]) -> Mapping[Path, Callable[[Report], str]]:
    """Return what makes each report; a missing jinja2 is found before the run."""
    from dengine_sm.conformance.report_json import report_to_json
    from dengine_sm.conformance.report_junit import report_to_junit

    known = {".json": report_to_json, ".xml": report_to_junit}
    if any(path.suffix == ".html" for path in paths):
        with needs_extra("conformance"):
            from dengine_sm.conformance.report_page import report_to_html
        known[".html"] = report_to_html
    return {path: known[path.suffix] for path in paths}


def _write(report: Report, writers: Mapping[Path, Callable[[Report], str]]) -> None:
    """Write every report, also when the disk refuses one of them."""
    failure: StorageError | None = None
    for path, text_of in writers.items():
        try:
            replace_file(path, text_of(report).encode())
            click.echo(f"report: {path}", err=True)
        except StorageError as exc:
            failure = failure or exc
    if failure is not None:
        raise failure


def _print_json(value: dict[str, Any]) -> None:
    """Print one line in ASCII: file names in errors may hold what is no UTF-8."""
    click.echo(json.dumps(value))


def _print_report(report: Report) -> None:
    from dengine_sm.conformance.report_text import failure_text, failures, summary

    rows: dict[tuple[str, str], list[str]] = {}
    for result in report.clauses:
        if result.status.value != "passed":
            rows.setdefault((result.status.value, result.reason), []).append(result.clause)
    if rows:
        columns = ("status", "clauses", "why")
        _print_table(columns, [(s, ", ".join(ids), why) for (s, why), ids in rows.items()])
    for found in failures(report):
        click.echo(f"\n{failure_text(report, found)}")
    if rows:
        click.echo()
    click.echo(summary(report))


def _print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    from dengine_sm.conformance.report_text import cut, printable

    table = Table(*columns)
    for *cells, why in rows:
        shown = [*cells, cut(why, _MAX_WHY)]
        table.add_row(*(Text(printable(cell), _COLOURS.get(cell, "")) for cell in shown))
    Console().print(table)


def _compare(old: Path, new: Path, *, as_json: bool) -> None:
    from dengine_sm.conformance.compare import compare, comparison_to_dict
    from dengine_sm.conformance.report_json import read_report

    comparison = compare(read_report(old), read_report(new))
    if as_json:
        _print_json(comparison_to_dict(comparison))
    else:
        _print_comparison(comparison)
    if comparison.is_worse:
        raise click.exceptions.Exit(exit_codes.NEGATIVE)


def _print_comparison(comparison: Comparison) -> None:
    from dengine_sm.conformance.compare import summary
    from dengine_sm.conformance.report_text import printable, shown

    for fact in comparison.facts:
        old, new = (printable(shown(value)) or "none" for value in (fact.old, fact.new))
        click.echo(f"{fact.name}: {old} -> {new}")
    for title, changes in (("clause", comparison.clauses), ("check", comparison.checks)):
        if changes:
            columns = ("change", title, "old", "new", "why")
            _print_table(columns, [_change(change) for change in changes])
    click.echo(summary(comparison))


def _change(change: StatusChange) -> tuple[str, ...]:
    old, new = (status.value if status else "" for status in (change.old, change.new))
    return change.kind, change.name, old, new, change.reason
