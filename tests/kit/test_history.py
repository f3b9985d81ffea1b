"""Random histories: what a kill may leave, how they are made shorter, how they are told."""

from __future__ import annotations

import broken_history
import pytest
from broken_base import subject

from dengine_sm.conformance.checks import history
from dengine_sm.conformance.results import Status
from dengine_sm.conformance.runner import run_check
from dengine_sm.conformance.shorten import Act, Budget, OutOfTriesError, shorten
from dengine_sm.conformance.steps import Step, command_in_words
from dengine_sm.conformance.survivors import Noted, Survivors
from dengine_sm.kv import CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import LogId, SnapshotMetadata

METADATA = SnapshotMetadata(LogId(1, 4), b"\x01" * 32, "any")


def places(survivors):
    return [place.index for place in survivors.places]


def test_only_chunks_since_the_last_flush_may_be_lost():
    survivors = Survivors(is_per_apply=False)
    survivors.apply(3)
    survivors.promise_applied("CRASH-2")
    survivors.apply(5)
    survivors.apply(9)

    assert places(survivors) == [3, 5, 9]
    assert survivors.places_at(4) == []


def test_nothing_may_be_lost_after_an_apply_that_is_durable():
    survivors = Survivors(is_per_apply=True)
    survivors.apply(3)
    survivors.apply(5)

    assert places(survivors) == [5]


def test_an_id_advanced_in_memory_may_be_lost_in_spite_of_a_flush():
    survivors = Survivors(is_per_apply=False)
    survivors.apply(3)
    survivors.advance(4)
    survivors.promise_applied("CRASH-2")
    assert places(survivors) == [3, 4]

    survivors.promise_place("LOG-3")
    assert places(survivors) == [4]


def test_a_state_from_before_an_install_knows_the_terms_from_before_it():
    survivors = Survivors(is_per_apply=False)
    survivors.apply(4)
    survivors.install(METADATA)

    assert [place.terms_from for place in survivors.places_at(4)] == [4, 1]


def test_an_installed_state_never_has_the_metadata_from_before_it():
    survivors = Survivors(is_per_apply=False)
    survivors.install(METADATA)
    before, installed = survivors.places

    assert [noted.metadata for noted in survivors.noted_with(installed)] == [METADATA]
    assert [noted.metadata for noted in survivors.noted_with(before)] == [METADATA, None]


def test_what_a_kill_took_away_does_not_come_back_by_another():
    survivors = Survivors(is_per_apply=False)
    survivors.apply(3)
    survivors.apply(5)
    survivors.fall_back(survivors.places_at(3)[0], Noted(None))

    assert places(survivors) == [0, 3]


def act(name, **arguments):
    def function():
        raise NotImplementedError

    function.__name__ = name
    return Act(function, arguments)


def test_leaves_out_and_simplifies_whatever_is_not_needed():
    step = Step(b"", 20, True, "no command")
    acts = [act("a"), act("b"), act("c", chunk=[step, step, step], count=7), act("d"), act("e")]
    seen = []

    def fails(candidate):
        seen.append(list(map(repr, candidate)))
        names = [one.function.__name__ for one in candidate]
        return "c" in names and names[-1] == "e"

    shorten(acts, lambda candidate: fails(candidate))

    assert ["state.c(chunk=[no command], count=1)", "state.e()"] in seen
    assert len(seen) < 60


def test_ends_the_search_when_the_budget_is_spent():
    budget = Budget.of(2, 60)
    budget.spend()
    budget.spend()

    with pytest.raises(OutOfTriesError):
        budget.spend()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no command"),
        (encode_command(Put(b"a", b"1")), "Put(b'a', b'1')"),
        (encode_command(Put(b"a", b"1", ttl_ms=5)), "Put(b'a', b'1', ttl_ms=5)"),
        (encode_command(Delete(b"a")), "Delete(b'a')"),
        (encode_command(CompareAndSwap(b"a", None, b"")), "CompareAndSwap(b'a', None, b'')"),
        (b"\xff", r"malformed b'\xff'"),
    ],
)
def test_tells_commands_in_words(data, words):
    assert words == command_in_words(data, is_key_value=True)


def test_a_failure_shows_the_shortest_history():
    broken = broken_history.KeepsTheTermsWhenItInstallsItsOwnState.broken
    check = next(check for check in history.CHECKS if check.clause == broken.found_by)

    result = run_check(check, subject(broken))

    assert (result.status, result.violated) == (Status.FAILED, "LOG-2")
    assert len(result.history) <= 5, result.history
    assert result.history[-1].startswith("state.install_snapshot(")
    assert all(line in result.details for line in result.history)
