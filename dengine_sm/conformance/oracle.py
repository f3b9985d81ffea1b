"""What the model says of a log: results and states at every index, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dengine_sm.conformance.violation import expect_equal, violates
from dengine_sm.conformance.workload import Workload
from dengine_sm.contract import StateMachine
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome


class Oracle:
    """The truth about one log that begins at index 1; grows with `extend`."""

    def __init__(self, workload: Workload, log: Sequence[Entry] = ()) -> None:
        self.workload = workload
        self.log: list[Entry] = []
        self._model = workload.model()
        self._results: list[tuple[Outcome, bytes | None]] = []
        self._observations: list[Any] = [self._model.observe()]
        self._lengths: list[int] = [self._model.len()]
        self.extend(log)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Apply more entries to the model."""
        for entry in entries:
            self.log.append(entry)
            self._results.append(self._model.apply(entry))
            self._observations.append(self._model.observe())
            self._lengths.append(self._model.len())

    @property
    def last(self) -> LogId:
        """The id of the newest entry."""
        return self.id_at(len(self.log))

    def entries(self, first: int, last: int) -> list[Entry]:
        """Return the entries `[first, last]` by index."""
        return self.log[first - 1 : last]

    def id_at(self, index: int) -> LogId:
        """Return the id of the entry at an index; `LogId.ZERO` for 0."""
        return self.log[index - 1].log_id if index else LogId.ZERO

    def observation_at(self, index: int) -> Any:
        """Return what `Workload.observe` must see when `index` is applied."""
        return self._observations[index]

    def length_at(self, index: int) -> int:
        """Return what `len` must return when `index` is applied."""
        return self._lengths[index]

    def result_of(self, index: int) -> ApplyResult:
        """Return the result that the entry at an index must have."""
        return ApplyResult(index, *self._results[index - 1])

    def indices_with(self, observation: Any) -> list[int]:
        """Return the indices after which the state looks like this."""
        return [i for i, known in enumerate(self._observations) if known == observation]

    def check_results(
        self,
        clause: str,
        chunk: Sequence[Entry],
        results: Sequence[ApplyResult],
        *,
        applied: int,
        history: Sequence[str] = (),
    ) -> None:
        """Compare the results of a chunk; entries up to index `applied` are duplicates."""
        __tracebackhide__ = True
        observed = list(results)
        if len(chunk) != len(observed):
            violates(
                clause,
                expected=f"{len(chunk)} results",
                observed=f"{len(observed)} results",
                history=history,
            )
        for entry, result in zip(chunk, observed, strict=True):
            if entry.index <= applied:
                expected = ApplyResult(entry.index, Outcome.DUPLICATE)
                # What a duplicate answers is the machine's affair.
                result = ApplyResult(result.index, result.outcome)
            else:
                expected = self.result_of(entry.index)
            expect_equal(clause, f"result of entry {entry.index}", expected, result, history)

    def check_state(
        self,
        clause: str,
        machine: StateMachine,
        *,
        index: int | None = None,
        what: str = "",
        history: Sequence[str] = (),
    ) -> int:
        """Compare a running machine with the model at `index`, or at its own applied id.

        Returns:
            The index compared at.
        """
        __tracebackhide__ = True
        where = f" {what}" if what else ""
        applied = machine.last_applied()
        if index is None:
            index = applied.index
            if index > len(self.log):
                violates(
                    clause,
                    expected=f"last_applied(){where}: at most {self.last}",
                    observed=f"last_applied(){where}: {applied}",
                    history=history,
                )
        expect_equal(clause, f"last_applied(){where}", self.id_at(index), applied, history)
        what_state = f"state at index {index}{where}"
        observed = self.workload.observe(machine)
        expect_equal(clause, what_state, self.observation_at(index), observed, history)
        length = machine.len()
        expect_equal(clause, f"len(){where}", self.length_at(index), length, history)
        return index
