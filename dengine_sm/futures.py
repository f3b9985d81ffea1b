"""Futures whose outcome may be looked at by nobody, without a complaint of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

Value = TypeVar("Value")


def look_at_error(future: asyncio.Future[Any]) -> None:
    """Look at a future's error, so that asyncio does not report that nobody has."""
    if not future.cancelled():
        future.exception()


def settle(
    futures: Iterable[asyncio.Future[Value]], result: Value, error: BaseException | None
) -> None:
    """Give futures that are not done a result, or an error if there is one."""
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            # Who waits for it may be cancelled before it is seen.
            look_at_error(future)
