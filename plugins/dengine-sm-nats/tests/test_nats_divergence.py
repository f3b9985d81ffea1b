"""Comparing states by majority: who stops, and who goes on."""

from __future__ import annotations

from itertools import permutations

import pytest
from dengine_sm_nats.divergence import StateComparison
from dengine_sm_nats.frames import Digest

from dengine_sm import LogId, StateDivergenceError
from dengine_sm.snapshot import PORTABLE_FORMAT

GOOD, BAD, OTHER = b"good" * 8, b"bad!" * 8, b"more" * 8


def told(node: str, checksum: bytes, index: int = 100, identity: bytes = b"1", **more) -> Digest:
    return Digest(node, identity, 1, index, more.get("format", PORTABLE_FORMAT), checksum)


def who_stops(digests: list[Digest], names: str, nodes: int | None = None) -> str:
    """Return the letters of the nodes that stop when all read the same checksums."""
    stopped = ""
    for name in names:
        comparison = StateComparison(name, b"1")
        try:
            for digest in digests:
                comparison.take(digest, nodes or len(names))
        except StateDivergenceError:
            stopped += name
    return stopped


@pytest.mark.parametrize("order", sorted(permutations("abc")))
@pytest.mark.parametrize("bad", "abc")
def test_of_three_nodes_the_one_that_differs_stops_in_any_order(order, bad):
    digests = [told(name, BAD if name == bad else GOOD) for name in order]

    assert bad == who_stops(digests, "abc")


def test_two_nodes_that_differ_both_stop():
    assert who_stops([told("a", GOOD), told("b", BAD)], "ab") == "ab"


def test_two_of_three_say_nothing_yet_when_they_differ():
    assert who_stops([told("a", GOOD), told("b", BAD)], "abc") == ""


def test_with_one_of_three_down_two_that_differ_both_stop():
    assert who_stops([told("a", GOOD), told("b", BAD)], "ab", nodes=2) == "ab"


@pytest.mark.parametrize("order", sorted(permutations("abcde")))
def test_of_five_nodes_two_that_are_wrong_alike_stop(order):
    digests = [told(name, BAD if name in "bd" else GOOD) for name in order]

    assert who_stops(digests, "abcde") == "bd"


def test_three_nodes_with_three_states_all_stop():
    assert who_stops([told("a", GOOD), told("b", BAD), told("c", OTHER)], "abc") == "abc"


def test_equal_nodes_go_on_and_know_the_newest_id():
    comparison = StateComparison("a", b"1")

    for index in (100, 200, 150):
        for name in "abc":
            comparison.take(told(name, GOOD, index), 3)

    assert LogId(1, 200) == comparison.last_equal


def test_the_alarm_names_the_id_the_checksums_and_the_last_equal_id():
    comparison = StateComparison("c", b"1")
    for name in "abc":
        comparison.take(told(name, GOOD, 100), 3)

    with pytest.raises(StateDivergenceError, match="node 'c' at LogId") as caught:
        for name in "abc":
            comparison.take(told(name, BAD if name == "c" else GOOD, 200), 3)

    assert (LogId(1, 200), LogId(1, 100)) == (caught.value.log_id, caught.value.last_equal)
    assert BAD.hex()[:12] in str(caught.value) and f"a {GOOD.hex()[:12]}" in str(caught.value)


def test_what_a_node_told_before_it_was_wiped_does_not_count_beside_what_it_tells_now():
    digests = [
        told("c", BAD, identity=b"0"),
        told("a", GOOD),
        told("c", BAD, identity=b"1"),
        told("b", GOOD),
    ]

    assert who_stops(digests, "abc") == "c"


def test_what_a_node_told_before_it_was_wiped_is_not_its_own():
    comparison = StateComparison("c", b"new")

    for digest in (told("a", GOOD), told("b", GOOD), told("c", BAD, identity=b"old")):
        comparison.take(digest, 3)
    comparison.take(told("c", GOOD, identity=b"new"), 3)

    assert LogId(1, 100) == comparison.last_equal


def test_other_formats_are_not_compared():
    digests = [told(name, name.encode() * 32, format="rocksdb/1") for name in "abc"]

    assert who_stops(digests, "abc") == ""


def test_a_node_that_told_nothing_itself_goes_on():
    digests = [told("a", GOOD), told("b", BAD)]

    assert who_stops(digests, "c", nodes=3) == ""


def test_only_the_newest_ids_are_kept():
    comparison = StateComparison("a", b"1")
    for index in range(1000):
        comparison.take(told("a", GOOD, index), 3)

    comparison.take(told("b", BAD, 1), 3)
    comparison.take(told("c", BAD, 1), 3)

    assert comparison.last_equal is None


def test_nobody_is_judged_while_some_may_not_have_spoken_yet():
    comparison = StateComparison("a", b"1")

    comparison.take(told("a", GOOD), None)
    comparison.take(told("b", BAD), None)

    with pytest.raises(StateDivergenceError):
        comparison.take(told("b", BAD), 2)
