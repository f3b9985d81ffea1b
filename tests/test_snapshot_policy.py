import pytest

from dengine_sm.snapshot import (
    AllOf,
    AnyOf,
    EveryBytes,
    EveryEntries,
    EverySeconds,
    Never,
    SnapshotPolicy,
    SnapshotProgress,
)


@pytest.mark.parametrize(
    ("policy", "entries", "size", "seconds", "expected"),
    [
        (EveryEntries(10), 9, 10**9, 1e9, False),
        (EveryEntries(10), 10, 0, 0, True),
        (EveryBytes(100), 10**9, 99, 1e9, False),
        (EveryBytes(100), 0, 100, 0, True),
        (EverySeconds(1.5), 1, 0, 1.4, False),
        (EverySeconds(1.5), 1, 0, 1.5, True),
        (EverySeconds(1.5), 0, 0, 1e9, False),
        (Never(), 10**9, 10**9, 1e9, False),
        (AnyOf([EveryEntries(10), EveryBytes(100)]), 10, 0, 0, True),
        (AnyOf([EveryEntries(10), EveryBytes(100)]), 9, 99, 0, False),
        (AnyOf([]), 10**9, 10**9, 1e9, False),
        (AllOf([EveryEntries(10), EveryBytes(100)]), 10, 99, 0, False),
        (AllOf([EveryEntries(10), EveryBytes(100)]), 10, 100, 0, True),
        (AllOf([AnyOf([EveryBytes(5), EveryEntries(2)]), EverySeconds(1)]), 2, 0, 1, True),
    ],
)
def test_is_due(
    policy: SnapshotPolicy, entries: int, size: int, seconds: float, expected: bool
) -> None:
    observed = policy.should_snapshot(SnapshotProgress(entries, size, seconds))

    assert expected is observed


@pytest.mark.parametrize("kind", [EveryEntries, EveryBytes, EverySeconds])
def test_refuses_a_distance_of_nothing(kind: type) -> None:
    with pytest.raises(ValueError, match="> 0"):
        kind(0)


def test_refuses_all_of_nothing() -> None:
    """It would be due always."""
    with pytest.raises(ValueError, match="policies"):
        AllOf([])
