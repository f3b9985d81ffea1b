"""What is asked again, and what no patience would change."""

from __future__ import annotations

import pytest
from dengine_sm_nats.connection import patiently
from nats.js.errors import BadRequestError

PLACEMENT = 10005


async def asked_until_done(description: str) -> int:
    """Return how often a request was made whose first answer is a refusal of a placement."""
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise BadRequestError(code=400, err_code=PLACEMENT, description=description)

    await patiently(ask, 10)
    return asked


async def test_servers_that_do_not_know_each_other_yet_are_asked_again():
    assert await asked_until_done("no suitable peers for placement, peer offline") == 2


async def test_too_few_servers_are_told_at_once():
    with pytest.raises(BadRequestError):
        await asked_until_done("no suitable peers for placement, insufficient storage")
