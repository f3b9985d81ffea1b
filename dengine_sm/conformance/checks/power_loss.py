"""Power lost at every step of what is written through `dengine_sm.files` (CRASH-6)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from dengine_sm.conformance.course import Call, Course, whole_course
from dengine_sm.conformance.disk import Disk
from dengine_sm.conformance.images import Image
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.power import ForgetfulFileSystem, UnsyncedFileSystem
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, Violation, expect_true, violates
from dengine_sm.files import replaced_file_system

_HISTORY_LINES = 14


@attrs.frozen
class Told:
    """A call, and how many steps the file system had done around it."""

    call: Call
    begun: int
    ended: int


@attrs.define
class Record:
    """One run, from which every power loss is laid out that could have cut it short."""

    trial: Trial
    oracle: Oracle
    directory: Path
    fs: ForgetfulFileSystem
    told: list[Told] = attrs.field(factory=list)
    indices: dict[object, int] = attrs.field(factory=dict)
    """Applied index found, for every image looked at."""

    def begun_by(self, step: int) -> list[Told]:
        """Return the calls that were begun when the power failed after a step."""
        return [told for told in self.told if told.begun <= step]

    def history(self, step: int, event: str) -> list[str]:
        """Tell what led to an event after a step."""
        begun = self.begun_by(step)
        lines = [
            f"{told.call.text} -> {'returned' if told.ended <= step else 'under way'}"
            for told in begun
        ]
        last = f" ({self.fs.operations[step - 1]})" if step else ""
        after = f"after step {step} of the file system{last}: {event}"
        cut = len(lines) - _HISTORY_LINES
        earlier = [f"({cut} earlier calls)"] if cut > 0 else []
        return [*earlier, *lines[-_HISTORY_LINES:], after, "start()"]

    def index_in(self, image: Image, history: Sequence[str]) -> int:
        """Start on an image, compare the state with the model, return the applied index."""
        __tracebackhide__ = True
        if image.key not in self.indices:
            image.restore(self.directory)
            self.indices[image.key] = self._index_found(history)
        return self.indices[image.key]

    def _index_found(self, history: Sequence[str]) -> int:
        __tracebackhide__ = True
        try:
            machine = self.trial.open(self.directory)
            return self.oracle.check_state(
                "CRASH-6", machine, what="after the power loss", history=history
            )
        except Violation:
            raise
        except Exception as exc:
            violates(
                "CRASH-6",
                expected="a start, and a state that can be read",
                observed=f"{type(exc).__name__}: {exc}",
                history=history,
            )
        finally:
            self.trial.stop_all()


def record(trial: Trial, oracle: Oracle, calls: Sequence[Call]) -> Record:
    """Make the calls on a fresh machine whose file system records.

    Raises:
        CannotCheckError: it does not write through `dengine_sm.files`, or not all.
    """
    directory = trial.directory("machine")
    fs = ForgetfulFileSystem(directory)
    found = Record(trial, oracle, directory, fs)
    with replaced_file_system(fs):
        machine = trial.subject.open_state_machine(directory)
        try:
            for call in calls:
                begun = fs.steps
                call.make(trial, machine)
                found.told.append(Told(call, begun, fs.steps))
        finally:
            machine.stop()
    needs_the_layer(fs, "power loss is not simulated for it")
    return found


def needs_the_layer(fs: ForgetfulFileSystem, consequence: str) -> None:
    """Leave a check of a machine whose files were not all written through `fs`."""
    past = fs.past()
    if past and fs.is_used:
        some = ", ".join(past[:3]) + (", ..." if len(past) > 3 else "")
        raise CannotCheckError(
            f"the backend writes part of its files past dengine_sm.files ({some}): {consequence}"
        )
    if past or not fs.is_used:
        raise CannotCheckError(f"the backend writes past dengine_sm.files: {consequence}")


def what_was_promised_survives_power_loss(trial: Trial) -> None:
    """Records one run; lets the power fail at its steps; starts on what was synced by then."""
    trial.needs_survival()
    oracle = trial.oracle(salt=106)
    found = record(trial, oracle, whole_course(trial, oracle))
    promises = {told.ended for told in found.told if told.call.promises}
    points = _points(found, promises, trial.effort.points)
    disk = found.fs.disk()
    with replaced_file_system(UnsyncedFileSystem()):
        for number, step in enumerate(points):
            disk.advance(step)
            for event, image in _left(disk, trial.seed):
                _check(found, step, image, found.history(step, event))
            trial.on_progress(number + 1, len(points))
    trial.evidence |= {
        "steps": found.fs.steps,
        "points": len(points),
        "images": len(found.indices),
    }


def _points(found: Record, telling: set[int], wanted: int) -> list[int]:
    """Return steps to fail after, 0 for all: half of them telling ones, others at random."""
    steps = found.fs.steps
    if not wanted or wanted > steps:
        return list(range(steps + 1))
    rng = random.Random(found.trial.seed)  # noqa: S311 - no secret
    kept = set(rng.sample(sorted(telling), min(len(telling), wanted // 2)))
    others = [step for step in range(steps + 1) if step not in kept]
    return sorted(kept | set(rng.sample(others, wanted - len(kept))))


def _left(disk: Disk, seed: int) -> Iterator[tuple[str, Image]]:
    """Yield what may be left, in words and as an image."""
    rng = random.Random(f"{seed}/{disk.steps}")  # noqa: S311 - no secret
    yield "the power fails, what was not synced is lost", disk.left_by_power_loss()
    yield "the power fails, what was not synced happens to survive", disk.left_by_kill()
    yield "the power fails, part of what was not synced survives", disk.left_by_power_loss(rng)


def _check(found: Record, step: int, image: Image, history: Sequence[str]) -> None:
    """Start on what is left: whole chunks, and not fewer than promised."""
    __tracebackhide__ = True
    begun = found.begun_by(step)
    promise = max(
        (told for told in begun if told.call.promises and told.ended <= step),
        key=lambda told: told.call.after,
        default=None,
    )
    floor = promise.call.after if promise else 0
    boundaries = {0} | {told.call.after for told in begun}
    index = found.index_in(image, history)
    expect_true(
        "CRASH-6",
        f"last_applied(): at least index {floor}"
        + (f", which {promise.call.text} had made durable" if promise else ""),
        f"last_applied(): index {index}",
        holds=index >= floor,
        history=history,
    )
    expect_true(
        "CRASH-6",
        f"last_applied(): the end of a chunk, one of {sorted(boundaries)[-8:]}",
        f"last_applied(): index {index}",
        holds=index in boundaries,
        history=history,
    )


def what_a_restart_flushes_survives_power_loss(trial: Trial) -> None:
    """Kills at steps of one run, starts on what is there, flushes; then the power fails."""
    trial.needs_survival()
    oracle = trial.oracle(salt=108)
    found = record(trial, oracle, whole_course(trial, oracle))
    unflushed = {told.ended for told in found.told if not told.call.promises}
    points = _points(found, unflushed, trial.effort.points // 2)
    disk = found.fs.disk()
    for number, step in enumerate(points):
        disk.advance(step)
        history = [*found.history(step, "the process is killed"), "flush()", "power fails"]
        index, image = _flushed_again(found, disk, applies=number % 3 == 0, history=history)
        with replaced_file_system(UnsyncedFileSystem()):
            observed = found.index_in(image, history)
        expect_true(
            "CRASH-6",
            f"last_applied(): at least index {index}, as when flush() returned",
            f"last_applied(): index {observed}",
            holds=observed >= index,
            history=history,
        )
        trial.on_progress(number + 1, len(points))
    trial.evidence |= {"steps": found.fs.steps, "points": len(points)}


def _flushed_again(
    found: Record, disk: Disk, *, applies: bool, history: list[str]
) -> tuple[int, Image]:
    """Start after a kill, flush; return the applied index and what a power loss would leave."""
    disk.left_by_kill().restore(found.directory)
    fs = ForgetfulFileSystem(found.directory, disk.tree())
    with replaced_file_system(fs):
        machine = found.trial.open(found.directory)
        index = machine.last_applied().index
        chunk = found.oracle.entries(index + 1, index + 3)
        if applies and chunk:
            history.insert(-2, f"apply_chunk(entries {index + 1}..{chunk[-1].index})")
            found.trial.run(machine.apply_chunk(chunk))
            index = chunk[-1].index
        machine.flush()
        lost = fs.disk()
        found.trial.stop_all()
    lost.advance(lost.end)
    return index, lost.left_by_power_loss()


def a_reset_survives_power_loss(trial: Trial) -> None:
    """Lets the power fail at the steps around a reset; what was there never comes back after."""
    trial.needs_survival()
    oracle = trial.oracle(20, salt=107)
    course = Course(trial, oracle, random.Random(trial.seed))  # noqa: S311 - no secret
    calls = [course.call("start"), course.apply(), course.apply(), course.call("flush")]
    course.applied = 0
    calls.append(course.call("reset"))
    found = record(trial, oracle, calls)
    flushed, reset = found.told[-2], found.told[-1]
    disk = found.fs.disk()
    with replaced_file_system(UnsyncedFileSystem()):
        for step in range(flushed.ended, found.fs.steps + 1):
            disk.advance(step)
            for event, image in _left(disk, trial.seed):
                history = found.history(step, event)
                index = found.index_in(image, history)
                allowed = {0} if step >= reset.ended else {0, flushed.call.after}
                expect_true(
                    "CRASH-6",
                    f"last_applied(): index {' or '.join(map(str, sorted(allowed)))}",
                    f"last_applied(): index {index}",
                    holds=index in allowed,
                    history=history,
                )
    trial.evidence["steps"] = found.fs.steps - flushed.ended


CHECKS = (
    Check("CRASH-6", what_was_promised_survives_power_loss, Profile.QUICK),
    Check("CRASH-6", what_a_restart_flushes_survives_power_loss),
    Check("CRASH-6", a_reset_survives_power_loss, also=("RESET-1", "RESET-2")),
)
