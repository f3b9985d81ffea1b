"""The crash harness itself: scripts, promises, crash points, and what strace says."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from broken_base import SoundFileMachine, subject, subject_of
from broken_disk import SwallowsSyncErrors
from plain_stores import SoundJournalMachine, ThreadedMachine

from dengine_sm.conformance.checks import crash, crash_errors, crash_sweep
from dengine_sm.conformance.crash import Promises, Scenario, crash_log, is_skippable, plain
from dengine_sm.conformance.crash_faults import is_saved_by, swallowed_sync
from dengine_sm.conformance.crash_runs import Kill, crash_storm, run_script
from dengine_sm.conformance.key_value import KEYS
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes import remote
from dengine_sm.conformance.processes.remote import Nursery, ScriptReport, StepReport
from dengine_sm.conformance.processes.strace import Call, parse_log
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import run_check
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import Violation
from dengine_sm.model import Durability, LogId

SOUND = subject_of(SoundJournalMachine)
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")


def scenario(seed: int = 1) -> Scenario:
    oracle = Oracle(SOUND.workload, crash_log(SOUND, 120, seed))
    return Scenario(oracle, random.Random(seed), {})


def promises(durability: Durability = Durability.ON_FLUSH) -> Promises:
    return Promises(scenario().oracle, durability)


def ended(count: int, *, cut_short: bool = False) -> ScriptReport:
    steps = [StepReport(number, True, True) for number in range(count)]
    if cut_short:
        steps[-1] = StepReport(count - 1, begun=True)
    return ScriptReport(tuple(steps), is_done=not cut_short)


def trial(tmp_path: Path, sound: object = SOUND) -> Trial:
    return Trial(sound, tmp_path)


def call(name: str, path: str, *, step: int = 0, failed: bool = False) -> Call:
    words = 2 * step + 1
    return Call(1, name, 1, (path,), words, is_injected=failed, is_failed=failed)


# Scripts


def test_equal_seeds_write_equal_scripts(tmp_path: Path):
    first = [step.text for step in scenario(7).script(0, 30, tmp_path)]

    assert first == [step.text for step in scenario(7).script(0, 30, tmp_path)]
    assert first != [step.text for step in scenario(8).script(0, 30, tmp_path)]


def test_a_script_is_one_path_through_the_log(tmp_path: Path):
    steps = scenario().script(0, 60, tmp_path)

    assert steps[0].before == 0
    assert all(step.after == later.before for step, later in pairwise(steps))


def test_entries_that_may_be_skipped_hold_no_command_and_no_new_time():
    log = crash_log(SOUND, 60, 3)

    skippable = [entry for entry in log if is_skippable(entry.index)]
    assert len(skippable) == 4
    assert {entry.data for entry in skippable} == {b""}
    assert all(log[e.index - 2].timestamp_ms == e.timestamp_ms for e in skippable)


# Promises


def test_a_flush_that_returned_makes_what_was_applied_durable():
    known, plan = promises(), scenario()

    known.record([plan.chunk(0, 4), plain("flush", 4), plan.chunk(4, 6)], ended(3))

    assert (known.floor, known.floor_by) == (4, "flush()")
    assert known.boundaries == {0, 4, 6}


def test_a_flush_that_was_cut_short_promises_nothing():
    known, plan = promises(), scenario()

    known.record([plan.chunk(0, 4), plain("flush", 4)], ended(2, cut_short=True))

    assert known.floor == 0
    assert known.under_way == plain("flush", 4)


def test_an_apply_promises_only_if_declared_so():
    lazy, eager = promises(), promises(Durability.PER_APPLY)

    for known in (lazy, eager):
        known.record([scenario().chunk(0, 4)], ended(1))

    assert (lazy.floor, eager.floor) == (0, 4)


def test_what_a_crash_has_lost_may_come_again_in_other_chunks():
    known, plan = promises(), scenario()
    known.record([plan.chunk(0, 4), plan.chunk(4, 9)], ended(2))

    known.recovered(4)

    assert known.boundaries == {0, 4}


def test_a_history_shows_its_end():
    known, plan = promises(), scenario()

    known.record([plan.chunk(at, at + 1) for at in range(30)], ended(30))

    assert known.recent[0] == "(16 earlier calls)"
    assert known.recent[-1] == "apply_chunk(entries 30..30) -> returned"


# Crash points


def test_a_process_dies_before_the_call_that_was_asked_for(tmp_path: Path):
    steps = [plain("start", 0), *(scenario().chunk(at, at + 1) for at in range(5))]
    assert SOUND.maker is not None
    with Nursery(SOUND.maker) as nursery:
        counting = nursery.spawn(tmp_path / "counting")
        counting.prepare("kill_at_call", 0)
        counting.begin_script([step.told for step in steps])
        counting.script_report(len(steps))
        calls = counting.prepare("calls_so_far")

        report = run_script(nursery.spawn(tmp_path / "a"), steps, Kill(at_call=calls))
        whole = run_script(nursery.spawn(tmp_path / "b"), steps, Kill(at_call=calls + 1))

    assert [step.ended for step in report.steps] == [True] * 5 + [False]
    assert whole.is_done
    # Its last call is the write of the last chunk, which was not carried out.
    kept, lost = ((tmp_path / name / "journal").stat().st_size for name in ("b", "a"))
    assert kept > lost > 0


def test_a_storm_finds_what_is_right_and_goes_on(tmp_path: Path):
    with crash_storm(trial(tmp_path), salt=1, entries=80) as storm:
        storm.measure(6)
        for share in (0.1, 0.5, 0.9):
            storm.strike_at(share, storm.steps(6))
            storm.recover()

    assert storm.trial.evidence["kills"] == 3


@pytest.mark.parametrize("check", crash.CHECKS + crash_errors.CHECKS, ids=lambda check: check.name)
def test_a_sound_machine_of_another_kind_passes(check: Check):
    result = run_check(check, SOUND, profile=Profile.QUICK, seed=3)

    assert result.status is Status.PASSED or "strace" in result.reason, result.details


# strace

LOG = """\
7 sendto(4<socket:[1]>, ""..., 12, 0, NULL, 0) = 12
7 openat(AT_FDCWD</w>, "/d/a", O_RDONLY|O_CLOEXEC) = 3</d/a>
7 openat(AT_FDCWD</w>, "/d/a.tmp", O_WRONLY|O_CREAT, 0600) = 3</d/a.tmp>
7 write(3</d/a.tmp>, ""..., 33) = 33
8 write(9</d/other>, ""..., 33 <unfinished ...>
7 rename("/d/a.tmp", "/d/a") = 0
8 <... write resumed>) = -1 ENOSPC (No space left on device) (INJECTED)
7 sendto(5<socket:[2]>, ""..., 1, 0, NULL, 0) = 1
7 sendto(4<socket:[1]>, ""..., 12, 0, NULL, 0) = 12
7 sendto(4<socket:[1]>, ""..., 12, 0, NULL, 0) = 12
7 unlinkat(6</d/old>, "b", 0) = 0
7 fsync(3</d>) = -1 EIO (Input/output error) (INJECTED)
7 +++ killed by SIGKILL +++
"""


def test_a_log_is_read_call_by_call():
    calls = parse_log(LOG.splitlines())

    assert [(c.thread, c.name, c.number, c.paths) for c in calls] == [
        (7, "openat", 2, ("/d/a.tmp",)),
        (7, "write", 1, ("/d/a.tmp",)),
        (8, "write", 1, ("/d/other",)),
        (7, "rename", 1, ("/d/a.tmp", "/d/a")),
        (7, "unlinkat", 1, ("/d/old/b",)),
        (7, "fsync", 1, ("/d",)),
    ]


def test_calls_belong_to_the_steps_that_were_told_of():
    assert [c.step for c in parse_log(LOG.splitlines())] == [0, 0, 0, 0, 1, 1]


def test_failures_are_told_also_of_a_call_that_was_interrupted():
    calls = parse_log(LOG.splitlines())

    assert [c.name for c in calls if c.is_injected and c.is_failed] == ["write", "fsync"]


def test_calls_outside_of_the_directory_are_told_apart():
    at_root, below, beside = (call("write", path) for path in ("/d", "/d/x/y", "/dd/x"))

    assert [c.is_below(Path("/d")) for c in (at_root, below, beside)] == [True, True, False]


def test_a_failed_sync_of_written_data_must_be_reported():
    steps = [plain("flush", 1)]
    calls = [call("write", "/d/a"), call("fdatasync", "/d/a", failed=True)]
    retried = [*calls, call("fdatasync", "/d/a")]
    rewritten = [*calls, call("write", "/d/b"), call("fsync", "/d/b")]

    assert swallowed_sync(steps, calls, Durability.ON_FLUSH, [True]) is calls[1]
    assert swallowed_sync(steps, retried, Durability.ON_FLUSH, [True]) is calls[1]
    assert swallowed_sync(steps, rewritten, Durability.ON_FLUSH, [True]) is None
    assert swallowed_sync(steps, calls, Durability.ON_FLUSH, [False]) is None
    assert is_saved_by(rewritten[2:])


def test_a_failed_sync_in_a_call_that_promises_nothing_may_be_absorbed():
    steps = [plain("apply_chunk", 1)]
    calls = [call("write", "/d/a"), call("fdatasync", "/d/a", failed=True)]

    assert swallowed_sync(steps, calls, Durability.ON_FLUSH, [True]) is None
    assert swallowed_sync(steps, calls, Durability.PER_APPLY, [True]) is calls[1]


def test_without_strace_a_check_is_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)

    result = run_check(crash_sweep.CHECKS[0], SOUND)

    assert result.status is Status.SKIPPED
    assert "strace is not installed: no system call can be seen or made to fail" in result.reason


@needs_strace
@pytest.mark.parametrize("check", crash_sweep.CHECKS, ids=lambda check: check.name)
def test_a_sweep_of_few_points_passes_and_tells_of_each(check: Check):
    result = run_check(check, subject_of(SoundFileMachine), profile=Profile.QUICK)

    assert result.status is Status.PASSED, result.details
    evidence = result.evidence
    assert evidence["operations"] >= 20
    assert sum(evidence["outcomes"].values()) == len(evidence["timeline"])
    assert sum(c["points"] for c in evidence["by_call"].values()) == len(evidence["timeline"])
    assert all(len(row) == 5 for row in evidence["timeline"])
    assert "not reached" not in evidence["outcomes"]


@needs_strace
def test_a_sweep_finds_a_sync_error_that_is_swallowed(tmp_path: Path):
    broken = trial(tmp_path, subject(SwallowsSyncErrors.broken))
    broken.profile = Profile.STANDARD

    with pytest.raises(Violation, match="CRASH-8 violated"):
        crash_sweep.fails_well_at_every_system_call_that_writes(broken)

    assert broken.evidence["timeline"][-1][4] == "violated CRASH-8"


@needs_strace
def test_a_machine_that_needs_its_threads_is_swept_with_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "ANSWER_TIMEOUT_S", 2.0)

    result = run_check(crash_sweep.CHECKS[0], subject_of(ThreadedMachine), profile=Profile.QUICK)

    assert result.status is Status.PASSED, result.details
    assert result.evidence["counted"] == "per thread: the machine hangs without threads"


def test_terms_are_asked_for_at_both_ends(tmp_path: Path):
    class Forgetful:
        def entry_term(self, index: int) -> int | None:
            return None

        def last_applied(self) -> LogId:
            return known.oracle.id_at(5)

        def get(self, key: bytes) -> bytes | None:
            return dict(zip(KEYS, known.oracle.observation_at(5), strict=True))[key]

        def len(self) -> int:
            return known.oracle.length_at(5)

    known = promises()
    known.boundaries.add(5)

    with pytest.raises(Violation, match=r"LOG-2 violated[\s\S]*entry_term\(1\)"):
        known.check(Forgetful())
