"""Reports of the kit: JSON there and back, JUnit XML, sentences, comparison."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import attrs
import pytest
from sample_reports import HOSTILE, check, failed, mixed_report, report, sweep

from dengine_sm.config import format_scalar, parse_options, parse_scalar
from dengine_sm.conformance.clauses import clauses
from dengine_sm.conformance.compare import compare, comparison_to_dict, summary
from dengine_sm.conformance.report_json import (
    SCHEMA,
    as_json,
    read_report,
    report_from_json,
    report_to_dict,
    report_to_json,
)
from dengine_sm.conformance.report_junit import report_to_junit
from dengine_sm.conformance.report_text import (
    evidence_text,
    failure_text,
    header,
    printable,
    reproduce_command,
    verdict,
)
from dengine_sm.conformance.report_text import summary as summary_line
from dengine_sm.conformance.results import Report, Status
from dengine_sm.errors import ConfigError, StorageError
from dengine_sm.model import Durability

FIELDS = Path(__file__).parent.parent / "docs" / "reference" / "conformance-report.md"


class TestJson:
    def test_reads_back_what_it_wrote(self) -> None:
        written = mixed_report()

        assert report_from_json(report_to_json(written), where="x") == written

    def test_says_schema_verdict_and_counts(self) -> None:
        told = report_to_dict(mixed_report())

        assert list(told)[:3] == ["schema", "passed", "counts"]
        assert (told["schema"], told["passed"]) == ("dengine-sm-conformance/1", False)
        assert sum(told["counts"].values()) == len(clauses())
        assert told["counts"]["known failure"] == 1

    def test_evidence_of_any_kind_is_plain_json(self) -> None:
        evidence = {
            "bytes": b"\xff",
            "path": Path("/x"),
            "nan": float("nan"),
            "set": {1},
            (1, 2): [(1, None)],
            "enum": Durability.ON_FLUSH,
        }
        told = json.loads(report_to_json(report(check("LOG-1", Status.PASSED, evidence=evidence))))

        (found,) = (c["evidence"] for c in told["checks"] if c["clause"] == "LOG-1")
        assert found == {
            "bytes": "\\xff",
            "path": "/x",
            "nan": "nan",
            "set": [1],
            "[1, 2]": [[1, None]],
            "enum": "on_flush",
        }

    def test_fields_of_a_later_minor_version_are_ignored(self) -> None:
        fields = report_to_dict(mixed_report())
        fields["colour"] = "blue"
        fields["clauses"][0]["weight"] = 3
        fields["checks"][0]["weight"] = 3

        assert report_from_json(json.dumps(fields), where="x") == mixed_report()

    def test_fields_with_a_default_may_be_absent(self) -> None:
        fields = report_to_dict(mixed_report())
        del fields["abilities"]

        assert report_from_json(json.dumps(fields), where="x").abilities == ()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "report 'r.json': not JSON that can be read: "),
            ("[" * 100_000, "report 'r.json': not JSON that can be read: "),
            ("[]", "report 'r.json': expected an object, observed list"),
            (
                "{}",
                "report 'r.json': no report of the conformance kit: "
                "schema: expected 'dengine-sm-conformance/1', observed None",
            ),
            (
                '{"schema": "dengine-sm-conformance/2"}',
                "report 'r.json': schema 'dengine-sm-conformance/2' is newer than "
                "'dengine-sm-conformance/1', the newest that is known here; update dengine-sm",
            ),
            (
                '{"schema": "dengine-sm-conformance/x"}',
                "report 'r.json': no report of the conformance kit: "
                "schema: expected 'dengine-sm-conformance/1', observed 'dengine-sm-conformance/x'",
            ),
        ],
    )
    def test_what_is_no_report_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            report_from_json(text, where="r.json")

        assert str(caught.value).startswith(message)

    def test_a_damaged_report_is_refused_with_every_problem(self) -> None:
        fields = report_to_dict(mixed_report())
        fields["seed"] = "7"
        fields["clauses"][3]["status"] = "perfect"
        del fields["checks"][1]["clause"]
        fields["checks"][2] = 5

        with pytest.raises(ConfigError) as caught:
            report_from_json(json.dumps(fields), where="r.json")

        assert str(caught.value).startswith("report 'r.json': 4 problems:\n  - seed: expected int")
        assert [problem.partition(":")[0] for problem in caught.value.problems] == [
            "seed",
            "clauses[3].status",
            "checks[1].clause",
            "checks[2]",
        ]

    def test_a_file_that_is_absent_or_no_text_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "r.json"
        with pytest.raises(StorageError, match=r"r\.json': cannot be read: No such file"):
            read_report(path)

        path.write_bytes(b'{"\xff')

        with pytest.raises(ConfigError, match=r"r\.json': byte 2 is not UTF-8"):
            read_report(path)

    def test_the_documentation_names_every_field_and_status(self) -> None:
        documented = re.findall(r"^\| `([\w ]+)` \|", FIELDS.read_text(), re.MULTILINE)
        told = report_to_dict(mixed_report())

        assert set(documented) == {
            *told,
            *told["clauses"][0],
            *told["checks"][0],
            *(status.value for status in Status),
        }
        assert SCHEMA in FIELDS.read_text()


class TestText:
    def test_verdicts(self) -> None:
        skipped = check("LOG-1", Status.SKIPPED, reason="x")
        unbound = check("LOG-1", Status.NOT_BOUND, reason="x")
        elsewhere = failed("LOG-1", violated="LOG-2")
        log_1 = [r for r in report(elsewhere).clauses if r.clause == "LOG-1"]

        assert verdict(report(unbound)) == "passed"
        assert verdict(report(skipped)) == "not proven"
        assert verdict(report(failed())) == "failed"
        assert verdict(report(elsewhere)) == "failed"
        assert verdict(report(elsewhere, clauses=tuple(log_1))) == "failed"
        assert verdict(report(check("LOG-1", Status.KNOWN_FAILURE))) == "failed"

    def test_the_summary_counts_clauses(self) -> None:
        assert summary_line(report(failed(), is_complete=False)) == (
            "failed: of 55 clauses, 54 passed, 1 failed; 55 checks, profile standard, seed 7, "
            "83.4 s; not all clauses were checked"
        )

    def test_the_header_is_one_line(self) -> None:
        assert header(report()) == (
            "state machine: acme 2.3.0 · contract 1 · durability PER_APPLY · get_multi, scan_prefix"
        )

    def test_a_failure_tells_everything(self) -> None:
        text = failure_text(report(), failed())

        assert text == (
            f"APPLY-4 failed: {clauses()['APPLY-4'].sentence}\n"
            "  expected  state: (b'1', None)\n"
            f"  observed  state: (b'2', None) {printable(HOSTILE)}\n"
            "  history\n"
            "    start()\n"
            "    apply_chunk(entries 1..3)\n"
            f"    {printable(HOSTILE)}\n"
            "  check     apply_4_holds\n"
            "  seed      7\n"
            "  reproduce dengine-sm conformance acme --clause APPLY-4 --seed 7 "
            "--profile standard --option durability=per_apply --option 'text=two words' "
            "--option sync=true"
        )

    def test_a_failure_over_another_clause_names_that_and_runs_its_own_check(self) -> None:
        text = failure_text(report(), failed("CRASH-1", violated="CRASH-3"))

        assert text.startswith(f"CRASH-3 failed: {clauses()['CRASH-3'].sentence}\n")
        assert "--clause CRASH-1 " in text

    def test_a_check_that_broke_down_shows_where(self) -> None:
        details = "Traceback (most recent call last):\n  File x\n    boom()\nValueError: x\n"
        text = failure_text(
            report(),
            failed(reason="raised ValueError: x", history=(), details=details),
        )

        assert "  raised at\n    Traceback (most recent call last):\n      File x\n" in text

    def test_texts_hold_nothing_that_a_terminal_obeys(self) -> None:
        text = failure_text(report(), failed())

        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
        assert "\\x1b[31m \\x00 \\xd800" in text

    @pytest.mark.parametrize(
        "value", ["a", "1", "true", "a b", "", 'x"y', "a\nb = 2", 1, 1.5, True, [1, "a"]]
    )
    def test_the_command_that_reproduces_gives_the_same_options(self, value: Any) -> None:
        words = shlex.split(reproduce_command(report(options={"k": value}), "LOG-1"))

        assert parse_options([words[-1]]) == {"k": value}
        assert type(parse_scalar(format_scalar(value))) is type(value)

    def test_evidence_is_short_and_without_the_points_of_a_sweep(self) -> None:
        evidence = {"kills": 3, "timeline": sweep(), "at": list(range(20)), "by": {"x": [1]}}

        assert evidence_text(evidence) == (
            "kills 3, at [0, 1, 2, 3, 4, 5, ... 20 in all], by (x [1])"
        )
        assert len(evidence_text({"long": "x" * 1000})) == 160


class TestJunit:
    @staticmethod
    def parsed(written: Report) -> ET.Element:
        return ET.fromstring(report_to_junit(written))

    def test_has_the_shape_that_readers_expect(self) -> None:
        root = self.parsed(mixed_report())

        assert root.tag == "testsuites"
        (suite,) = root
        assert suite.tag == "testsuite"
        assert [child.tag for child in suite][:2] == ["properties", "testcase"]
        assert {child.tag for child in suite} == {"properties", "testcase"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        for case in suite.iter("testcase"):
            assert set(case.attrib) == {"classname", "name", "time"}
            assert float(case.attrib["time"]) >= 0
            assert len(case) <= 1

    def test_the_numbers_add_up(self) -> None:
        root = self.parsed(mixed_report())

        for element in (root, root[0]):
            observed = Counter(child.tag for case in element.iter("testcase") for child in case)
            assert int(element.attrib["tests"]) == len(list(element.iter("testcase"))) == 55
            assert int(element.attrib["failures"]) == observed["failure"] == 3
            assert int(element.attrib["skipped"]) == observed["skipped"] == 5
            assert element.attrib["errors"] == "0"

    def test_a_failure_names_the_clause_and_tells_everything(self) -> None:
        root = self.parsed(mixed_report())

        case = root.find(".//testcase[@name='crash_1_holds']")
        assert case is not None and case.attrib["classname"] == "CRASH-1"
        failure = case.find("failure")
        assert failure is not None and failure.attrib["type"] == "CRASH-3"
        assert failure.attrib["message"].startswith("CRASH-3: expected")
        assert failure.text is not None and "dengine-sm conformance acme" in failure.text

    def test_every_clause_is_there_and_none_is_green_unless_passed(self) -> None:
        written = mixed_report()
        root = self.parsed(written)

        cases = {case.attrib["classname"]: case for case in root.iter("testcase")}
        assert set(cases) == set(clauses())
        skipped = {
            name: case[0].attrib["message"]
            for name, case in cases.items()
            if len(case) and case[0].tag == "skipped"
        }
        assert skipped["LIFE-8"] == "skipped: no check in this profile"
        assert skipped["SNAP-13"] == "not bound: the machine keeps its state in memory"
        assert skipped["READ-5"] == "known failure: acme/sm#12: a failed read answers None"
        green = {name for name, case in cases.items() if not len(case)}
        assert green == {r.clause for r in written.checks if r.status is Status.PASSED}

    def test_what_a_backend_says_stays_text(self) -> None:
        hostile = check("LOG-1", Status.SKIPPED, reason=HOSTILE)
        root = self.parsed(report(hostile, failed(reason=HOSTILE), version=HOSTILE))

        told = [element.attrib.get("message", "") for element in root.iter()]
        assert printable(HOSTILE) in told
        assert f"skipped: {printable(HOSTILE)}" in told
        assert root.find("script") is None

    def test_properties_say_what_was_run(self) -> None:
        root = self.parsed(mixed_report())

        found = {p.attrib["name"]: p.attrib["value"] for p in root.iter("property")}
        assert found["seed"] == "7"
        assert found["profile"] == "standard"
        assert found["version"] == "2.3.0"
        assert found["option.durability"] == "per_apply"


class TestComparison:
    @pytest.mark.parametrize(
        ("old", "new", "kind"),
        [
            (Status.PASSED, Status.FAILED, "worse"),
            (Status.PASSED, Status.SKIPPED, "worse"),
            (Status.PASSED, Status.NOT_BOUND, "worse"),
            (Status.NOT_BOUND, Status.SKIPPED, "worse"),
            (Status.SKIPPED, Status.FAILED, "worse"),
            (Status.SKIPPED, Status.KNOWN_FAILURE, "worse"),
            (Status.KNOWN_FAILURE, Status.FAILED, "worse"),
            (Status.FAILED, Status.PASSED, "better"),
            (Status.FAILED, Status.NOT_BOUND, "better"),
            (Status.SKIPPED, Status.PASSED, "better"),
            (Status.NOT_BOUND, Status.PASSED, "better"),
            (Status.FAILED, Status.SKIPPED, "changed"),
            (Status.FAILED, Status.KNOWN_FAILURE, "changed"),
            (Status.KNOWN_FAILURE, Status.SKIPPED, "changed"),
        ],
    )
    def test_tells_better_from_worse(self, old: Status, new: Status, kind: str) -> None:
        found = compare(report(check("LOG-1", old)), report(check("LOG-1", new, reason="why")))

        (change,) = found.clauses
        assert (change.kind, change.name, change.old, change.new) == (kind, "LOG-1", old, new)
        assert [c.kind for c in found.checks] == [kind]
        assert found.is_worse is (kind == "worse")
        assert summary(found) == f"clauses: 1 {kind}, 54 unchanged"

    def test_equal_reports_differ_in_nothing(self) -> None:
        found = compare(mixed_report(), mixed_report(started_at="x", time_s=1.0))

        assert (found.facts, found.clauses, found.checks, found.unchanged) == ((), (), (), 55)
        assert not found.is_worse

    def test_a_check_can_get_worse_within_a_failed_clause(self) -> None:
        one = failed("LOG-1", name="one")
        found = compare(
            report(one, check("LOG-1", Status.PASSED, name="two")),
            report(one, failed("LOG-1", name="two")),
        )

        assert found.clauses == ()
        assert [(c.kind, c.name) for c in found.checks] == [("worse", "log_1_two")]
        assert found.is_worse

    def test_names_what_else_differs_first(self) -> None:
        found = compare(report(), report(version="3", options={"durability": "on_flush"}, seed=8))

        assert [(fact.name, fact.new) for fact in found.facts] == [
            ("version", "3"),
            ("options", {"durability": "on_flush"}),
            ("seed", 8),
        ]

    def test_names_new_and_removed_checks(self) -> None:
        found = compare(
            report(check("LOG-1", Status.PASSED, name="old")),
            report(check("LOG-1", Status.PASSED, name="new")),
        )

        assert [(c.kind, c.name) for c in found.checks] == [
            ("new", "log_1_new"),
            ("removed", "log_1_old"),
        ]
        assert not found.is_worse

    def test_clauses_that_were_not_asked_for_are_neither_better_nor_worse(self) -> None:
        whole = report()
        part = attrs.evolve(whole, clauses=whole.clauses[:5], is_complete=False)

        found = compare(whole, part)

        assert {change.kind for change in found.clauses} == {"removed"}
        assert (len(found.clauses), found.unchanged, found.is_worse) == (50, 5, False)

    def test_is_json_able(self) -> None:
        told = comparison_to_dict(compare(report(), report(failed(), seed=8)))

        assert json.loads(json.dumps(told))["worse"] is True
        assert told["clauses"][0]["new"] == "failed"
        assert told["facts"] == [{"name": "seed", "old": 7, "new": 8}]


def test_as_json_keeps_what_is_json() -> None:
    value = {"a": [1, 2.5, None, True, "x"]}

    assert as_json(value) == value
