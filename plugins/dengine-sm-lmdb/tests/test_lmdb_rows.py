"""Keys of any length in tables whose keys are short, against a dict."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from dengine_sm_lmdb import rows
from dengine_sm_lmdb.engine import DATA
from dengine_sm_lmdb.generation import Generation, Settings
from hypothesis import given, settings
from hypothesis import strategies as st

SETTINGS = Settings(1 << 30, 64, True, False)

# Few stems, cut around the lengths at which a key goes on in a bucket.
_LENGTHS = [0, 1, 2, 509, 510, 511, 512, 1011, 1012, 1013, 1014, 1515, 3000]


@st.composite
def keys(draw):
    length = draw(st.sampled_from(_LENGTHS))
    body = bytes([draw(st.sampled_from([0, 97, 255]))]) * length
    tail = draw(st.binary(max_size=2))
    return body[: length - len(tail)] + tail if length >= len(tail) else body


@pytest.fixture(scope="module")
def generation():
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        path.mkdir()
        generation = Generation(path, SETTINGS, create=True)
        yield generation
        generation.close()


def emptied(generation: Generation) -> rows.Space:
    with generation.begin(write=True) as txn:
        txn.drop(generation.data.short, delete=False)
        txn.drop(generation.data.long, delete=False)
    return generation.data


def test_any_keys_read_scan_and_count_as_in_a_dict(generation):
    values = st.one_of(st.none(), st.binary(max_size=3))
    batches = st.lists(st.dictionaries(keys(), values, max_size=8), max_size=6)

    @settings(max_examples=300, deadline=None)
    @given(batches, keys(), st.one_of(st.none(), keys()), st.lists(keys(), max_size=5))
    def check(batches, start, stop, others):
        space = emptied(generation)
        model: dict[bytes, bytes] = {}
        for batch in batches:
            with generation.begin(write=True) as txn:
                rows.change(txn, space, batch)
            for key, value in batch.items():
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
        with generation.begin() as txn:
            inside = [k for k in sorted(model) if k >= start and (stop is None or k < stop)]
            assert sorted(model.items()) == list(rows.scan(txn, space, b"", None))
            assert [(k, model[k]) for k in inside] == list(rows.scan(txn, space, start, stop))
            assert len(model) == rows.count(txn, space)
            for key in [*model, *others]:
                assert model.get(key) == rows.get(txn, space, key)

    check()


def test_deleting_long_keys_gives_their_buckets_back(generation):
    space = emptied(generation)
    long = {bytes([n]) * 5000: b"v" for n in range(50)}

    with generation.begin(write=True) as txn:
        rows.change(txn, space, long)
        assert len(long) == rows.count(txn, space)
    with generation.begin(write=True) as txn:
        rows.change(txn, space, dict.fromkeys(long))

    with generation.begin() as txn:
        assert (txn.stat(space.short)["entries"], txn.stat(space.long)["entries"]) == (0, 0)


def test_the_longest_row_is_the_longest_that_lmdb_takes(generation):
    assert generation.env.max_key_size() == rows.SHORT_BYTES + 1
    assert (generation.path / DATA).stat().st_size > 0
