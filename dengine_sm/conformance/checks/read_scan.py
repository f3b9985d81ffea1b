"""READ-2 without a writer: what `scan_prefix` and `get_multi` answer."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st

from dengine_sm.conformance.checks.key_value_hand import Hand
from dengine_sm.conformance.key_value import KeyValueModel
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial, apply_all
from dengine_sm.conformance.violation import expect_equal
from dengine_sm.kv.commands import Delete, Put
from dengine_sm.model import Limits

# The ends of the byte range, where the bounds of a prefix carry over.
_LETTERS = (b"", b"\x00", b"a", b"\xfe", b"\xff")
_STRINGS = tuple(sorted({b"".join(word) for word in itertools.product(_LETTERS, repeat=3)}))
_SCAN = "scan_prefix", "SupportsScanPrefix"
_MULTI = "get_multi", "SupportsGetMulti"


async def scan_lists_a_prefix_in_key_order(trial: Trial) -> None:
    """Scan every prefix of short keys, up to runs of 0xFF, and the empty one for all."""
    trial.needs_key_value()
    machine = trial.open()
    scan_prefix = trial.needs_method(machine, *_SCAN)
    model = await _fill(trial, machine)
    for prefix in (*_STRINGS, b"b", b"\xff\xff\xff\xff", b"a\xff\xff\x00"):
        _expect_rows(f"scan_prefix({prefix!r})", model.scan(prefix), scan_prefix(prefix))
    await Hand(machine, machine.last_applied()).apply(*map(Delete, _STRINGS))
    _expect_rows("scan_prefix(b'') when all is deleted", (), scan_prefix(b""))


async def _fill(trial: Trial, machine: Any) -> KeyValueModel:
    """Put the strings into machine and model, in no order, and delete some again."""
    shuffled = sorted(_STRINGS, key=lambda key: (key[::-1], key))
    commands = [Put(key, b"value of " + key) for key in shuffled]
    hand, model = Hand(machine), KeyValueModel(trial.subject.limits or Limits())
    for chunk in (commands, [Delete(key) for key in shuffled[::7]]):
        for entry in hand.entries(*chunk):
            model.apply(entry)
        await hand.apply(*chunk)
    return model


def _expect_rows(what: str, expected: Any, result: Any) -> None:
    __tracebackhide__ = True
    observed = tuple((key, value) for key, value in result.entries)
    expect_equal("READ-2", what, tuple(expected), observed)


def scan_goes_on_after_a_page(trial: Trial) -> None:
    """Scan with limits and starting points, before, in and behind the prefix."""
    trial.needs_key_value()
    trial.needs_method(trial.open(), *_SCAN)
    keys = st.sampled_from(_STRINGS) | st.binary(max_size=4)

    @trial.given(
        prefix=keys,
        limit=st.none() | st.integers(0, 5) | st.just(1000),
        start_after=st.none() | keys,
    )
    async def _(prefix: bytes, limit: int | None, start_after: bytes | None) -> None:
        machine = trial.open()
        model = await _fill(trial, machine)
        rows = [row for row in model.scan(prefix) if start_after is None or row[0] > start_after]
        result = machine.scan_prefix(prefix, limit=limit, start_after=start_after)  # type: ignore[attr-defined]  # asked for above
        what = f"scan_prefix({prefix!r}, limit={limit}, start_after={start_after!r})"
        _expect_rows(what, rows[:limit], result)
        expect_equal("READ-2", f"{what}.last_applied", machine.last_applied(), result.last_applied)


async def scan_says_which_state_it_read(trial: Trial) -> None:
    """Compare each scan with the model at the id that it carries, after every chunk."""
    machine = trial.open()
    scan_prefix = trial.needs_method(machine, *_SCAN)
    expect_equal("READ-2", "id of a scan", machine.last_applied(), scan_prefix(b"").last_applied)
    oracle = trial.oracle(60)
    for first in range(1, 61, 5):
        await machine.apply_chunk(oracle.entries(first, first + 4))
        result = scan_prefix(b"")
        expected = oracle.id_at(first + 4)
        expect_equal("READ-2", "id of a scan", expected, result.last_applied)
        seen = trial.subject.workload.observe_at_once(machine)
        if seen is not None:
            state = oracle.observation_at(first + 4)
            expect_equal("READ-2", f"state read at index {first + 4}", state, seen[0])


async def get_multi_answers_in_the_order_of_the_keys(trial: Trial) -> None:
    """Ask for present, absent and repeated keys, for many and for none."""
    machine = trial.open()
    get_multi = trial.needs_method(machine, *_MULTI)
    if trial.subject.is_key_value:
        model = await _fill(trial, machine)
        known = model.get
    else:
        await apply_all(machine, trial.oracle(40).log)
        known = machine.get
    lists: list[list[bytes]] = [
        [],
        [b"absent"],
        [b"a", b"a", b"absent", b"a"],
        list(_STRINGS),
        list(_STRINGS[::-1]),
        [b"\xff", b"absent", b"", b"\x00", b"a", b""],
    ]
    for keys in lists:
        expected = [known(key) for key in keys]
        expect_equal("READ-2", f"get_multi({keys!r:.80})", expected, list(get_multi(keys)))
    expect_equal("READ-2", "get_multi of a tuple", [known(b"a")], list(get_multi((b"a",))))


CHECKS = (
    Check("READ-2", scan_lists_a_prefix_in_key_order, Profile.QUICK),
    Check("READ-2", scan_goes_on_after_a_page, Profile.STANDARD),
    Check("READ-2", scan_says_which_state_it_read, Profile.QUICK),
    Check("READ-2", get_multi_answers_in_the_order_of_the_keys, Profile.QUICK),
)
