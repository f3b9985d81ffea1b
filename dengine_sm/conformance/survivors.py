"""Where a machine is in its log, and what a kill may leave of that."""

from __future__ import annotations

import attrs

from dengine_sm.model import SnapshotMetadata


@attrs.frozen
class Place:
    """A state that the machine was in."""

    index: int
    """Applied index."""
    terms_from: int | None = 1
    """First index whose term is known (LOG-2); None when it cannot be told."""
    epoch: int = 0
    """How many installs and resets came before."""
    is_advance: bool = False
    """The applied id was only advanced in memory, without an entry."""


@attrs.frozen
class Noted:
    """Snapshot metadata that the machine had."""

    metadata: SnapshotMetadata | None
    epoch: int = 0


class Survivors:
    """The states that may be found after a kill, oldest first (CRASH-1 to CRASH-3).

    The oldest is the last one promised durable, the newest is the present one. Snapshot
    metadata is listed apart: only `save_hard_state` and its kin make it durable.
    """

    def __init__(self, *, is_per_apply: bool) -> None:
        self._is_per_apply = is_per_apply
        self.places: list[Place] = [Place(0)]
        self.noted: list[Noted] = [Noted(None)]
        self.promised_by = self.metadata_promised_by = "CRASH-1"
        """Clauses by which the oldest of each list must survive."""

    @property
    def now(self) -> Place:
        """The present state."""
        return self.places[-1]

    @property
    def metadata(self) -> SnapshotMetadata | None:
        """What `snapshot_metadata()` must return now."""
        return self.noted[-1].metadata

    def apply(self, index: int) -> None:
        """Note the end of a chunk."""
        self.places.append(attrs.evolve(self.now, index=index, is_advance=False))
        if self._is_per_apply:
            self.promise_applied("CRASH-2")

    def advance(self, index: int) -> None:
        """Note an applied id that was advanced in memory."""
        self.places.append(attrs.evolve(self.now, index=index, is_advance=True))

    def install(self, metadata: SnapshotMetadata) -> None:
        """Note an installed snapshot; only a later flush promises that it is durable."""
        epoch, index = self.now.epoch + 1, metadata.last_included.index
        self.places.append(Place(index, index, epoch))
        self.noted.append(Noted(metadata, epoch))

    def note(self, metadata: SnapshotMetadata | None) -> None:
        """Note metadata recorded in memory."""
        self.noted.append(Noted(metadata, self.now.epoch))

    def promise_applied(self, clause: str) -> None:
        """Note that everything applied is durable; an id advanced in memory need not be."""
        position = len(self.places) - 1
        while position and self.places[position].is_advance:
            position -= 1
        del self.places[:position]
        self.promised_by = clause

    def promise_place(self, clause: str) -> None:
        """Note that the applied id is durable, with everything at or below it."""
        del self.places[:-1]
        self.promised_by = clause

    def promise_metadata(self, clause: str) -> None:
        """Note that the snapshot metadata is durable."""
        del self.noted[:-1]
        self.metadata_promised_by = clause

    def promise_all(self, clause: str) -> None:
        """Note that nothing may be lost any more."""
        self.promise_place(clause)
        self.promise_metadata(clause)

    def start_again(self, clause: str, place: Place | None = None) -> None:
        """Note that the machine is in its initial state, or another, and durably so."""
        self.places = [place or Place(0, epoch=self.now.epoch + 1)]
        self.noted = [Noted(None, self.now.epoch)]
        self.promised_by = self.metadata_promised_by = clause

    def places_at(self, index: int) -> list[Place]:
        """Return the states with an applied index that may be found, newest first."""
        return [place for place in reversed(self.places) if place.index == index]

    def noted_with(self, place: Place) -> list[Noted]:
        """Return the metadata that may be found beside a state, newest first."""
        return [noted for noted in reversed(self.noted) if noted.epoch >= place.epoch]

    def fall_back(self, place: Place, noted: Noted) -> None:
        """Note what was found after a kill; what came later is gone."""
        while self.now != place:
            self.places.pop()
        while self.noted and self.noted[-1] != noted:
            self.noted.pop()
        self.noted = self.noted or [noted]
