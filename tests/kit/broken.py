"""Every deliberately broken machine: at least one for each clause of the contract."""

from __future__ import annotations

import broken_example
from broken_base import Broken, broken_in

BROKEN: tuple[Broken, ...] = tuple(
    broken for module in (broken_example,) for broken in broken_in(module)
)
