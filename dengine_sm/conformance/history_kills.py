"""Random histories in which the machine's process is killed now and then."""

from __future__ import annotations

from hypothesis import strategies as st

from dengine_sm.conformance.history import act
from dengine_sm.conformance.history_rules import History
from dengine_sm.conformance.survivors import Noted, Place
from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.model import LogId


class HistoryWithKills(History):
    """What a kill may leave is known exactly, by the declared durability."""

    @act(twice=st.booleans())
    def kill_and_restart(self, twice: bool) -> None:
        """Kill the process, and perhaps the next one as well, right after it has recovered."""
        for _ in range(1 + twice):
            self.world.calls["kill"] += 1
            self.start_new_machine(self.directory)
            self.call("CRASH-1", "start")
        with self.blamed("CRASH-1", "a read"):
            place = self._find_place()
            noted = self._find_metadata(place)
        self.begun = None
        self.since = "CRASH-7"
        self.survivors.fall_back(place, noted)

    def _find_place(self) -> Place:
        """Compare the machine with the states that it may be in; return the one it is in."""
        found, was_reset = self.machine.last_applied(), self.survivors.promised_by == "RESET-1"
        places = self.survivors.places_at(found.index)
        if (was_reset and not places) or not self._is_in_the_log(found):
            self._blame_the_applied_id(found)
        initial = "RESET-1" if was_reset and found.index == 0 else ""
        self.oracle.check_state(
            initial or "CRASH-1", self.machine, index=found.index, what="after the kill"
        )
        if not places:
            self._blame_the_applied_id(found)
        for place in places:
            expected = self.terms_at(place)
            terms = {index: self.machine.entry_term(index) for index in expected}
            if terms == expected:
                return place
        expect_equal(initial or "LOG-2", "entry_term(...)", expected, terms)
        return places[-1]

    def _is_in_the_log(self, found: LogId) -> bool:
        log = self.oracle.log
        return found.index <= len(log) and found == self.oracle.id_at(found.index)

    def _blame_the_applied_id(self, found: LogId) -> None:
        promised_by = self.survivors.promised_by
        allowed = sorted({place.index for place in self.survivors.places})
        is_lost = found.index < allowed[0] or promised_by == "RESET-1"
        ids = ", ".join(str(self.oracle.id_at(index)) for index in allowed)
        violates(
            promised_by if is_lost else "CRASH-3",
            expected=f"last_applied() after the kill: one of {ids}",
            observed=found,
        )

    def _find_metadata(self, place: Place) -> Noted:
        found = self.machine.snapshot_metadata()
        allowed = self.survivors.noted_with(place)
        for noted in allowed:
            if noted.metadata == found:
                return noted
        if self.begun is None or found is None or found.last_included != self.begun[0]:
            either = " or ".join(str(noted.metadata) for noted in allowed)
            violates(
                self.survivors.metadata_promised_by,
                expected=f"snapshot_metadata() after the kill: {either}",
                observed=found,
            )
        return Noted(found, place.epoch)
