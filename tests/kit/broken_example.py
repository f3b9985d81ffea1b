"""Machines broken in life and apply."""

from __future__ import annotations

from broken_base import SoundMemoryMachine, breaks

from dengine_sm.model import Durability


@breaks("APPLY-1", durability=Durability.TRANSIENT)
class ResultsInReverse(SoundMemoryMachine):
    """Returns the results newest first."""

    async def apply_chunk(self, chunk):
        return list(await super().apply_chunk(chunk))[::-1]


@breaks("APPLY-1", durability=Durability.TRANSIENT)
class TakesListsOnly(SoundMemoryMachine):
    """Adds to the chunk as if every sequence were a list."""

    async def apply_chunk(self, chunk):
        return await super().apply_chunk([] + chunk)  # noqa: RUF005
