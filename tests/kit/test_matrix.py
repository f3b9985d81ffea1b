"""The page of checks and broken machines says what the code says."""

from __future__ import annotations

from matrix import TABLE, table


def test_the_page_is_up_to_date():
    assert table() == TABLE.read_text(), "run `make kit-docs`, or `matrix.py table`"
