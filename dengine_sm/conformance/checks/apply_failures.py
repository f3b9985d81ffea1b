"""Checks of applies that raise: all or nothing, in memory and on disk (APPLY-3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, overload

import attrs

from dengine_sm.conformance.follower import Follower, call_of
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, violates
from dengine_sm.errors import StateMachinePoisonedError, StorageError
from dengine_sm.model import Durability, Entry

_BEFORE = 12
_CHUNK = 6
_ATTEMPTS = 60


class BrokenChunk(Sequence[Entry]):
    """A chunk that raises when one of its entries is looked at for the n-th time."""

    def __init__(self, entries: Sequence[Entry], position: int, visit: int) -> None:
        self._entries = list(entries)
        self._position = position
        self._visits_left = visit

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, position: int) -> Entry: ...

    @overload
    def __getitem__(self, position: slice) -> list[Entry]: ...

    def __getitem__(self, position: int | slice) -> Entry | list[Entry]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if position % len(self) == self._position:
            self._visits_left -= 1
            if not self._visits_left:
                raise OSError("the caller's log could not be read")
        return self._entries[position]


def _refused(oracle: Oracle, applied: int) -> Iterator[tuple[str, Sequence[Entry]]]:
    """Yield chunks that must, or may, make `apply_chunk` raise after good entries."""
    good = oracle.entries(applied + 1, applied + _CHUNK)
    later = attrs.evolve(good[-1], index=good[-1].index + 1)
    for position in (1, _CHUNK - 1):
        first = call_of(good[:position])
        lower = attrs.evolve(good[position], term=oracle.id_at(applied).term - 1)
        yield f"{first}, then a gap", [*good[:position], *good[position + 1 :], later]
        yield f"{first}, then a lower term", [*good[:position], lower]
        yield f"{first}, then None", [*good[:position], cast(Entry, None)]
        for visit in (1, 2, 3):
            what = f"{first}, then OSError when entry {position + 1} is read time {visit}"
            yield what, BrokenChunk(good, position, visit)


async def raising_leaves_all_as_it_was(trial: Trial) -> None:
    """Makes applies raise in the middle of a chunk; state and id stay, also after a stop."""
    oracle = _oracle_of_high_terms(trial)
    raised = 0
    for what, chunk in _refused(oracle, _BEFORE):
        follower = Follower(oracle, trial.open())
        await follower.follow_all("APPLY-3", (4,), to=_BEFORE)
        follower.history.append(what)
        try:
            await follower.machine.apply_chunk(chunk)
        except Exception as exc:
            follower.history.append(f"raised {type(exc).__name__}")
        else:
            # It did not look a second time; what it made of it is for other clauses.
            continue
        raised += 1
        follower.check("APPLY-3", "after an apply that raised")
        if not trial.subject.is_transient:
            follower.restart()
            follower.check("APPLY-3", "after an apply that raised and a restart")
            await follower.follow_all("APPLY-3", (5,))
            follower.check("APPLY-3", "when the right entries follow")
        trial.stop_all()
    trial.evidence["raised"] = raised


def _oracle_of_high_terms(trial: Trial, count: int = 30) -> Oracle:
    log = [attrs.evolve(entry, term=entry.term + 3) for entry in trial.oracle(count, salt=3).log]
    return Oracle(trial.subject.workload, log)


def raising_leaves_nothing_on_disk(trial: Trial) -> None:
    """Kills a process right after an apply raised; the next one finds the state before it."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle = _oracle_of_high_terms(trial)
    kills = 0
    with Nursery(trial.subject.maker) as nursery:
        for what, chunk in _refused(oracle, _BEFORE):
            if isinstance(chunk, BrokenChunk) or None in chunk:
                continue  # only values travel to another process
            directory = trial.directory()
            machine = nursery.spawn(directory)
            machine.start()
            for first in range(1, _BEFORE, 4):
                machine.apply_chunk(oracle.entries(first, first + 3))
            machine.flush()
            history = [f"apply_chunk up to index {_BEFORE}", "flush()", what]
            try:
                machine.apply_chunk(chunk)
            except Exception as exc:
                history += [f"raised {type(exc).__name__}", "SIGKILL", "start()"]
            else:
                continue  # a chunk that should have been refused is for APPLY-6
            finally:
                machine.kill()
            kills += 1
            again = nursery.spawn(directory)
            again.start()
            oracle.check_state("APPLY-3", again, index=_BEFORE, history=history)
            again.kill()
    trial.evidence["kills"] = kills


@attrs.define
class _Casualty:
    """A machine in another process whose files may suddenly not grow any more."""

    trial: Trial
    oracle: Oracle
    nursery: Nursery
    directory: Path
    machine: RemoteMachine
    applied: int = 0
    durable: int = 0
    history: list[str] = attrs.field(factory=list)

    def apply(self, count: int = _CHUNK) -> None:
        """Apply some more entries."""
        last = self.applied + count
        self.machine.apply_chunk(self.oracle.entries(self.applied + 1, last))
        self.applied = last
        if self.trial.subject.durability is Durability.PER_APPLY:
            self.durable = last

    def flush(self) -> None:
        self.machine.flush()
        self.durable = self.applied

    def limit(self, slack: int | None) -> None:
        """Let no file grow by more than `slack` bytes; None: let nothing be written at all."""
        before = _sizes(self.directory)
        self.apply()
        self.flush()
        sizes = _sizes(self.directory)
        grown = [sizes[path] for path in before if sizes.get(path, 0) > before[path]]
        size = 0 if slack is None or not grown else min(grown) + slack
        self.machine.prepare("limit_file_size", size)
        self.history += [
            f"apply_chunk up to index {self.applied}",
            "flush()",
            f"from here on no file can grow beyond {size} bytes",
        ]

    def fail(self) -> Exception | None:
        """Apply and flush until one of both raises; return what."""
        for _ in range(_ATTEMPTS):
            chunk = self.oracle.entries(self.applied + 1, self.applied + _CHUNK)
            try:
                self.apply()
                self.flush()
            except ProcessDied:
                self.violated("StorageError", "the process died")
            except Exception as exc:
                is_apply = self.applied < chunk[-1].index
                call = call_of(chunk) if is_apply else "flush()"
                self.history.append(f"{call} raised {type(exc).__name__}: {exc}")
                return exc
        return None

    def check(self, what: str) -> None:
        self.oracle.check_state(
            "APPLY-3", self.machine, index=self.applied, what=what, history=self.history
        )

    def expect_poisoned(self) -> None:
        """Apply the chunk that is due: it must be refused."""
        try:
            self.machine.apply_chunk(self.oracle.entries(self.applied + 1, self.applied + _CHUNK))
        except StateMachinePoisonedError:
            return
        except Exception as exc:
            self.violated("StateMachinePoisonedError", f"{type(exc).__name__}: {exc}")
        self.violated("StateMachinePoisonedError", "no exception: the chunk was applied")

    def violated(self, expected: str, observed: str) -> None:
        violates("APPLY-3", expected=expected, observed=observed, history=self.history)

    def restart(self, *, by_kill: bool) -> None:
        """Start anew, after `stop` or SIGKILL."""
        if by_kill:
            self.machine.kill()
            self.machine = self.nursery.spawn(self.directory)
            self.history += ["SIGKILL", "start()"]
        else:
            self.history += ["stop()", "start()"]
            try:
                self.machine.stop()
            except StorageError as exc:
                # It may say once more that the flush failed; LIFE-2 has the rest.
                self.history[-2] = f"stop() raised {type(exc).__name__}"
        self.machine.start()

    def check_recovered(self) -> None:
        """Expect all that was durable, nothing that was refused, and applies that work."""
        index = self.machine.last_applied().index
        if not self.durable <= index <= self.applied:
            self.violated(
                f"last_applied() from index {self.durable} to {self.applied}", f"index {index}"
            )
        self.oracle.check_state("APPLY-3", self.machine, index=index, history=self.history)
        self.applied = index
        try:
            self.apply()
            self.flush()
        except Exception as exc:
            self.violated("applies that work again", f"{type(exc).__name__}: {exc}")
        self.check("when the right entries follow")


def _sizes(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def io_failure_poisons_until_a_restart(trial: Trial) -> None:
    """Stops files from growing: nothing of the failed chunk stays, and no apply till a start."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle = _oracle_of_high_terms(trial, (_ATTEMPTS + 6) * _CHUNK)
    slacks: list[int | None] = [None, 0, 1, 45]
    if trial.profile is Profile.DEEP:
        slacks += range(2, 200, 7)
    cases = [(slack, by_kill) for slack in slacks for by_kill in (False, True)]
    failures = 0
    with Nursery(trial.subject.maker) as nursery:
        for number, (slack, by_kill) in enumerate(cases):
            directory = trial.directory()
            machine = nursery.spawn(directory)
            machine.start()
            casualty = _Casualty(trial, oracle, nursery, directory, machine)
            casualty.apply(_BEFORE)
            casualty.limit(slack)
            failures += _fail_and_recover(casualty, by_kill=by_kill)
            casualty.machine.kill()
            trial.on_progress(number + 1, len(cases))
    trial.evidence |= {"limits": len(cases), "failures": failures}
    if not failures:
        raise CannotCheckError(
            "no write could be made to fail: with no file allowed to grow, "
            f"{_ATTEMPTS} applies and flushes went on without an error"
        )


def _fail_and_recover(casualty: _Casualty, *, by_kill: bool) -> bool:
    """Tell whether a failure came; all that follows from it is checked here."""
    if casualty.fail() is None:
        return False
    casualty.check("after the failure")
    casualty.expect_poisoned()
    casualty.machine.prepare("lift_file_size_limit")
    casualty.history.append("files can grow again")
    casualty.expect_poisoned()
    casualty.check("while poisoned")
    casualty.restart(by_kill=by_kill)
    casualty.check_recovered()
    return True


CHECKS = (
    Check("APPLY-3", raising_leaves_all_as_it_was, Profile.QUICK),
    Check("APPLY-3", raising_leaves_nothing_on_disk),
    Check("APPLY-3", io_failure_poisons_until_a_restart),
)
