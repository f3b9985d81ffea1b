"""Runs of checks outside pytest: results, hangs, interruptions, clauses."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from dengine_sm.backends.memory import create_memory
from dengine_sm.conformance import runner
from dengine_sm.conformance.clauses import clauses
from dengine_sm.conformance.key_value import KeyValueWorkload
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import CheckResult, Status
from dengine_sm.conformance.runner import (
    Progress,
    clause_results,
    remove_tree,
    run_check,
    run_conformance,
)
from dengine_sm.conformance.subject import Subject
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, NotBoundError, Violation, violates
from dengine_sm.conformance.workload import sample_commands
from dengine_sm.errors import StorageError
from dengine_sm.model import Durability

SUBJECT = Subject("memory", create_memory, KeyValueWorkload(), durability=Durability.TRANSIENT)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kit makes its directories."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


def run(function: Callable[[Trial], Any], clause: str = "APPLY-1", **options: Any) -> CheckResult:
    return run_check(Check(clause, function), SUBJECT, profile=Profile.QUICK, **options)


def raising(error: BaseException) -> Callable[[Trial], None]:
    def check(trial: Trial) -> None:
        raise error

    return check


class PanicError(BaseException):
    """What a native library raises when it panics."""


class TestCheck:
    def test_that_returns_passed(self):
        def results_match(trial: Trial) -> None:
            trial.evidence["seen"] = 3

        result = run(results_match)

        assert result.status is Status.PASSED
        assert (result.check, result.clause) == ("apply_1_results_match", "APPLY-1")
        assert (result.violated, result.reason, result.evidence) == ("", "", {"seen": 3})

    def test_may_be_a_coroutine_and_is_cleaned_up_after(self, temporary: Path):
        opened = []

        async def check(trial: Trial) -> None:
            opened.append(trial.open())
            assert (await opened[0].apply_chunk([])) == []
            assert trial.root.is_relative_to(temporary)

        assert run(check).status is Status.PASSED
        assert not opened[0].is_running()
        assert list(temporary.iterdir()) == []

    def test_that_finds_a_violation_failed(self):
        def check(trial: Trial) -> None:
            violates("APPLY-1", expected=1, observed="two", history=["apply_chunk()"])

        result = run(check)

        assert result.status is Status.FAILED
        assert result.violated == "APPLY-1"
        assert result.reason == "APPLY-1: expected 1; observed two"
        assert (result.expected, result.observed) == ("1", "two")
        assert result.history == ("apply_chunk()",)
        assert clauses()["APPLY-1"].sentence in result.details

    def test_adds_notes_to_the_history(self):
        error = Violation("APPLY-1", expected="1", observed="2", history=["first"])
        error.add_note("second\nthird")

        assert run(raising(error)).history == ("first", "second", "third")

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (StorageError("full"), "raised StorageError: full"),
            (AssertionError(), "raised AssertionError: "),
            (SystemExit(3), "raised SystemExit: 3"),
            (PanicError("native"), "raised PanicError: native"),
        ],
    )
    def test_that_raises_anything_else_failed_its_own_clause(
        self, error: BaseException, reason: str
    ):
        result = run(raising(error))

        assert result.status is Status.FAILED
        assert (result.violated, result.reason) == ("APPLY-1", reason)
        assert type(error).__name__ in result.details

    def test_that_does_not_apply_is_not_bound(self):
        result = run(raising(NotBoundError("it is TRANSIENT")))

        assert (result.status, result.reason) == (Status.NOT_BOUND, "it is TRANSIENT")

    def test_that_cannot_run_here_is_skipped(self):
        result = run(raising(CannotCheckError("no strace")))

        assert (result.status, result.reason) == (Status.SKIPPED, "no strace")

    def test_is_shrunk_by_hypothesis(self):
        def check(trial: Trial) -> None:
            @trial.given(number=st.integers(0, 1000))
            def example(number: int) -> None:
                if number >= 5:
                    violates("SNAP-6", expected="less", observed=number)

        result = run(check)

        assert (result.violated, result.observed) == ("SNAP-6", "5")
        assert any("number=5" in line for line in result.history)

    def test_that_failed_once_and_not_again_still_blames_its_clause(self):
        def check(trial: Trial) -> None:
            count = 0

            @trial.given(number=st.integers())
            def example(number: int) -> None:
                nonlocal count
                count += 1
                if count == 3:
                    violates("READ-1", expected="whole chunks", observed="half of one")

        result = run(check)

        assert (result.status, result.violated) == (Status.FAILED, "READ-1")
        assert result.observed == "half of one"
        assert any("Failed to reproduce" in line for line in result.history)
        assert "FlakyFailure" in result.details

    def test_tells_its_progress(self):
        told: list[tuple[int, int]] = []

        def check(trial: Trial) -> None:
            trial.on_progress(1, 2)
            trial.on_progress(2, 2)

        assert run(check, on_progress=lambda *step: told.append(step)).status is Status.PASSED
        assert told[0] == (1, 2)


class TestHang:
    def test_is_a_failure_with_the_place(self):
        release = threading.Event()

        def check(trial: Trial) -> None:
            trial.evidence["begun"] = True
            release.wait(60)

        result = run(check, hang_s=0.2)
        release.set()

        assert (result.status, result.violated) == (Status.FAILED, "APPLY-1")
        assert result.reason == "still busy after 0 s; the thread was left behind"
        assert "release.wait(60)" in result.details
        assert result.evidence == {"begun": True}

    def test_keeps_the_evidence_as_it_was(self):
        release, written = threading.Event(), threading.Event()

        def check(trial: Trial) -> None:
            release.wait(60)
            trial.evidence["late"] = True
            written.set()

        result = run(check, hang_s=0.2)
        release.set()

        assert written.wait(60)
        assert result.evidence == {}

    def test_is_silence_not_length(self):
        ticks = 8

        def check(trial: Trial) -> None:
            for done in range(ticks):
                threading.Event().wait(0.3)  # all together longer than it may be silent
                trial.on_progress(done, ticks)

        assert run(check, hang_s=2.0).status is Status.PASSED


class TestThreads:
    def test_are_used_again(self):
        seen = []

        run(lambda trial: seen.append(threading.current_thread()))
        run(lambda trial: seen.append(threading.current_thread()))

        assert seen[0] is seen[1] is not threading.current_thread()

    def test_that_hang_are_not_used_again(self):
        wait = threading.Event()
        seen: list[threading.Thread] = []

        def hang(trial: Trial) -> None:
            seen.append(threading.current_thread())
            wait.wait(60)

        run(hang, hang_s=0.1)
        run(lambda trial: seen.append(threading.current_thread()))

        wait.set()
        assert seen[0] is not seen[1]

    def test_that_failed_are_as_good_as_new(self):
        assert run(raising(PanicError("native code panicked"))).status is Status.FAILED
        assert run(lambda trial: None).status is Status.PASSED

    def test_of_the_parent_are_not_those_of_a_fork(self):
        code = textwrap.dedent("""
            import os
            from dengine_sm.conformance.workers import give_back, take_worker
            give_back(take_worker())
            child = os.fork()
            worker = take_worker()
            if not child:
                os._exit(0 if worker.thread.is_alive() else 1)
            print(os.waitpid(child, 0)[1])
        """)

        # Newer Pythons warn of forks with threads, which is what this is about.
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True)

        assert (done.stdout, done.stderr) == ("0\n", "")


class TestSample:
    def test_is_drawn_once(self):
        drawn = []

        class Workload(KeyValueWorkload):
            def commands(self) -> Any:
                drawn.append(self)
                return super().commands()

        workload = Workload()

        first = sample_commands(workload, 30, 5)
        again = sample_commands(workload, 30, 5)

        assert again == first is not again
        assert len(drawn) == 1
        assert sample_commands(workload, 30, 6) != first

    def test_of_a_workload_that_cannot_be_hashed(self):
        class Workload(KeyValueWorkload):
            __hash__ = None  # type: ignore[assignment]

        assert sample_commands(Workload(), 30, 5) == sample_commands(KeyValueWorkload(), 30, 5)


class TestInterruption:
    def test_leaves_no_directory(self, temporary: Path):
        release = threading.Event()

        def check(trial: Trial) -> None:
            trial.directory()
            trial.on_progress(1, 2)
            release.wait(60)

        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(check, on_progress=interrupt)

        assert list(temporary.iterdir()) == []
        release.set()

    def test_ends_the_run_and_leaves_it_incomplete(self, chosen: list[Check]):
        chosen += [Check("APPLY-1", passes), Check("APPLY-2", passes)]

        def interrupt(progress: Progress) -> None:
            if progress.number == 1:
                raise KeyboardInterrupt

        report = run_conformance(SUBJECT, on_progress=interrupt)

        assert not report.is_complete
        assert not report.is_passed
        assert [result.check for result in report.checks] == ["apply_1_passes"]
        found = {result.clause: result for result in report.clauses}
        assert found["APPLY-1"].status is Status.PASSED
        assert found["APPLY-2"].reason == "the run was interrupted"
        assert found["APPLY-3"].reason == "no check in this profile"


def passes(trial: Trial) -> None:
    """Find nothing."""


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The checks that a run finds; empty at first."""
    checks: list[Check] = []
    monkeypatch.setattr(runner, "checks_for", lambda profile, only: tuple(checks))
    return checks


class TestRun:
    def test_reports_what_was_run(self, chosen: list[Check]):
        chosen.append(Check("APPLY-1", passes))
        told: list[Progress] = []

        report = run_conformance(SUBJECT, profile=Profile.QUICK, seed=4, on_progress=told.append)

        assert (report.backend, report.profile, report.seed) == ("memory", "quick", 4)
        assert report.is_complete
        assert [(it.number, it.total, it.result is not None) for it in told] == [
            (0, 1, False),
            (0, 1, True),
        ]

    def test_of_some_clauses_is_not_complete(self, chosen: list[Check]):
        chosen.append(Check("APPLY-1", passes))

        report = run_conformance(SUBJECT, only=["APPLY-1"])

        assert not report.is_complete
        assert [result.clause for result in report.clauses] == ["APPLY-1"]
        assert report.is_passed

    def test_of_an_unknown_clause_is_refused(self):
        with pytest.raises(ValueError, match="expected an id such as 'APPLY-2', observed 'X-1'"):
            run_conformance(SUBJECT, only=["APPLY-1", "X-1"])

    def test_goes_on_after_a_failure(self, chosen: list[Check]):
        chosen += [Check("APPLY-1", raising(PanicError())), Check("APPLY-2", passes)]

        report = run_conformance(SUBJECT)

        assert [r.status for r in report.checks] == [Status.FAILED, Status.PASSED]
        assert not report.is_passed

    def test_in_a_process_of_the_kit_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("DENGINE_SM_IN_NURSERY", "1")

        with pytest.raises(RuntimeError, match="if __name__ == '__main__'"):
            run_conformance(SUBJECT)


def outcome(clause: str, status: Status, violated: str = "", reason: str = "") -> CheckResult:
    name = f"{clause}_{status.name}".lower()
    return CheckResult(name, clause, status, 0.5, violated, reason)


class TestClauses:
    @pytest.mark.parametrize(
        ("statuses", "expected"),
        [
            ([Status.PASSED], Status.PASSED),
            ([Status.NOT_BOUND], Status.NOT_BOUND),
            ([Status.PASSED, Status.NOT_BOUND], Status.PASSED),
            ([Status.SKIPPED, Status.PASSED], Status.SKIPPED),
            ([Status.SKIPPED, Status.NOT_BOUND], Status.SKIPPED),
            ([Status.KNOWN_FAILURE, Status.SKIPPED], Status.KNOWN_FAILURE),
        ],
    )
    def test_are_as_bad_as_their_worst_check(self, statuses: list[Status], expected: Status):
        results = [outcome("APPLY-1", status, reason=status.value) for status in statuses]

        (found,) = clause_results(results, [], ["APPLY-1"])

        assert found.status is expected
        assert found.reason == ("" if expected is Status.PASSED else expected.value)
        assert found.time_s == 0.5 * len(results)
        assert found.checks == tuple(result.check for result in results)

    def test_that_were_found_violated_failed(self):
        results = [
            outcome("APPLY-1", Status.PASSED),
            outcome("APPLY-1", Status.FAILED, "APPLY-1", "why"),
        ]

        (found,) = clause_results(results, [], ["APPLY-1"])

        assert (found.status, found.reason) == (Status.FAILED, "why")

    def test_are_blamed_by_checks_of_others_which_prove_nothing_then(self):
        results = [
            outcome("SNAP-9", Status.FAILED, "APPLY-1", "APPLY-1: expected a; observed b"),
            outcome("APPLY-1", Status.PASSED),
        ]

        found = {result.clause: result for result in clause_results(results, [])}

        assert found["APPLY-1"].status is Status.FAILED
        assert found["APPLY-1"].checks == ("apply-1_passed", "snap-9_failed")
        assert found["APPLY-1"].time_s == 0.5
        assert found["SNAP-9"].status is Status.SKIPPED
        assert found["SNAP-9"].reason == "APPLY-1: expected a; observed b"

    def test_without_a_check_are_skipped(self):
        found = clause_results([], [])

        assert {result.status for result in found} == {Status.SKIPPED}
        assert [result.clause for result in found] == list(clauses())


class TestRemoveTree:
    def test_removes_what_a_check_made_unreadable(self, tmp_path: Path):
        # root could anyway: the child gives that up.
        code = textwrap.dedent(f"""
            from pathlib import Path
            from dengine_sm.conformance.processes.nursery import obey_permissions
            from dengine_sm.conformance.runner import remove_tree
            root = Path({str(tmp_path / "root")!r})
            (root / "a" / "b").mkdir(parents=True)
            (root / "a" / "b" / "file").write_text("")
            (root / "a" / "b").chmod(0)
            (root / "a").chmod(0o500)
            obey_permissions()
            remove_tree(root)
            print(root.exists())
        """)

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert (done.stdout, done.stderr) == ("False\n", "")

    def test_follows_no_link(self, tmp_path: Path):
        outside = tmp_path / "outside"
        outside.mkdir(mode=0o500)
        (tmp_path / "root").mkdir()
        os.symlink(outside, tmp_path / "root" / "link")

        remove_tree(tmp_path / "root")

        assert outside.stat().st_mode & 0o777 == 0o500
        assert not (tmp_path / "root").exists()

    def test_does_not_mind_what_is_not_there(self, tmp_path: Path):
        remove_tree(tmp_path / "never")
