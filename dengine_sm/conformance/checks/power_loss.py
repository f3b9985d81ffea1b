"""Power lost at every step of what a machine writes to its files (CRASH-6)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from dengine_sm.conformance.course import Call, Course, whole_course
from dengine_sm.conformance.disk import Directory, Disk, Recording, read_tree
from dengine_sm.conformance.images import Image
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.power import (
    ForgetfulFileSystem,
    UnsyncedFileSystem,
    written_past,
)
from dengine_sm.conformance.processes.file_trace import TRACED, FileTrace
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.processes.strace import Strace
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, Violation, expect_true, violates
from dengine_sm.contract import StateMachine
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
    files: Recording
    told: list[Told]
    nursery: Nursery | None = None
    """Where strace sees the files, of a machine that writes them itself."""
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
        last = f" ({self.files.operations[step - 1]})" if step else ""
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


@contextlib.contextmanager
def recorded(trial: Trial, oracle: Oracle, calls: Sequence[Call]) -> Iterator[Record]:
    """Make the calls on a fresh machine, and record what becomes of its files.

    Raises:
        CannotCheckError: it does not write through `dengine_sm.files`, and what it does
            instead cannot be seen here.
    """
    directory = trial.directory("machine")
    fs = ForgetfulFileSystem(directory)
    told: list[Told] = []
    with replaced_file_system(fs):
        machine = trial.subject.open_state_machine(directory)
        try:
            for call in calls:
                begun = fs.steps
                call.make(trial, machine)
                told.append(Told(call, begun, fs.steps))
        finally:
            machine.stop()
    if fs.is_used and not fs.past():
        yield Record(trial, oracle, directory, fs.recording(), told)
        return
    trial.needs_maker()
    assert trial.subject.maker is not None
    with Nursery(trial.subject.maker) as nursery:
        directory = trial.directory("machine")
        files, ends = traced_files(trial, nursery, directory, calls)
        told = [
            Told(call, begun, ended)
            for call, begun, ended in zip(calls, [0, *ends], ends, strict=False)
        ]
        yield Record(trial, oracle, directory, files, told, nursery)


def traced_files(
    trial: Trial,
    nursery: Nursery,
    directory: Path,
    calls: Sequence[Call],
    start: Directory | None = None,
) -> tuple[Recording, list[int]]:
    """Make calls on a directory in another process, which is killed then.

    Args:
        trial: the check's.
        nursery: of the machine.
        directory: with what is in it when the machine starts.
        calls: made in this order.
        start: what of that is durable; None for all.

    Returns:
        What became of the files, and how many steps they had done when each call ended.

    Raises:
        CannotCheckError: no strace, or it does not see everything.
    """
    trace = FileTrace(directory, read_tree(directory) if start is None else start)
    log = trial.directory("strace") / "log"
    machine: Any = nursery.spawn(directory)
    with Strace(machine.pid, log, names=TRACED, with_data=True) as tracer:
        for call in calls:
            call.function(machine)
        machine.kill()
        tracer.wait()
        trace.follow(tracer.lines())
    log.unlink()
    past = written_past(trace.recording(), directory, trace.mapped)
    unseen = [*trace.unseen, *(f"{name!r} is not as it was seen to be written" for name in past)]
    if unseen:
        some = ", ".join(unseen[:3]) + (", ..." if len(unseen) > 3 else "")
        raise CannotCheckError(
            f"the backend writes past dengine_sm.files, and strace cannot follow it: {some}"
        )
    return trace.recording(), trace.ends


def what_was_promised_survives_power_loss(trial: Trial) -> None:
    """Records one run; lets the power fail at its steps; starts on what was synced by then."""
    trial.needs_survival()
    oracle = trial.oracle(salt=106)
    with recorded(trial, oracle, whole_course(trial, oracle)) as found:
        promises = {told.ended for told in found.told if told.call.promises}
        points = _points(found, promises, trial.effort.points)
        disk = found.files.disk()
        with replaced_file_system(UnsyncedFileSystem()):
            for number, step in enumerate(points):
                disk.advance(step)
                for event, image in _left(disk, trial.seed):
                    _check(found, step, image, found.history(step, event))
                trial.on_progress(number + 1, len(points))
        trial.evidence |= {
            "steps": found.files.steps,
            "points": len(points),
            "images": len(found.indices),
            "seen by": "strace" if found.nursery else "dengine_sm.files",
        }


def _points(found: Record, telling: set[int], wanted: int) -> list[int]:
    """Return steps to fail after, 0 for all: half of them telling ones, others at random."""
    steps = found.files.steps
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
    with recorded(trial, oracle, whole_course(trial, oracle)) as found:
        unflushed = {told.ended for told in found.told if not told.call.promises}
        points = _points(found, unflushed, trial.effort.points // 2)
        disk = found.files.disk()
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
        trial.evidence |= {"steps": found.files.steps, "points": len(points)}


def _flushed_again(
    found: Record, disk: Disk, *, applies: bool, history: list[str]
) -> tuple[int, Image]:
    """Start after a kill, flush; return the applied index and what a power loss would leave."""
    disk.left_by_kill().restore(found.directory)
    applied: list[int] = []

    def look(machine: StateMachine) -> None:
        applied.append(machine.last_applied().index)

    def apply(machine: StateMachine) -> Any:
        chunk = found.oracle.entries(applied[0] + 1, applied[0] + 3)
        applied.append(applied[0] + len(chunk))
        return machine.apply_chunk(chunk)

    calls = [
        Call("start", "start()", 0, 0, lambda machine: machine.start()),
        Call("last_applied", "last_applied()", 0, 0, look),
        Call("flush", "flush()", 0, 0, lambda machine: machine.flush()),
    ]
    if applies:
        calls.insert(2, Call("apply_chunk", "apply_chunk(what follows)", 0, 0, apply))
        history.insert(-2, calls[2].text)
    files, ends = _files_of(found, calls, disk.tree())
    lost = files.disk()
    lost.advance(ends[len(calls) - 1])
    return applied[-1], lost.left_by_power_loss()


def _files_of(
    found: Record, calls: Sequence[Call], start: Directory
) -> tuple[Recording, list[int]]:
    """Make calls on the record's directory; return what became of the files, by call."""
    trial = found.trial
    if found.nursery is not None:
        return traced_files(trial, found.nursery, found.directory, calls, start)
    fs = ForgetfulFileSystem(found.directory, start)
    ends = []
    with replaced_file_system(fs):
        machine = trial.open(found.directory, start=False)
        for call in calls:
            call.make(trial, machine)
            ends.append(fs.steps)
        files = fs.recording()
        trial.stop_all()
    return files, ends


def a_reset_survives_power_loss(trial: Trial) -> None:
    """Lets the power fail at the steps around a reset; what was there never comes back after."""
    trial.needs_survival()
    oracle = trial.oracle(20, salt=107)
    course = Course(trial, oracle, random.Random(trial.seed))  # noqa: S311 - no secret
    calls = [course.call("start"), course.apply(), course.apply(), course.call("flush")]
    course.applied = 0
    calls.append(course.call("reset"))
    with recorded(trial, oracle, calls) as found:
        flushed, reset = found.told[-2], found.told[-1]
        disk = found.files.disk()
        with replaced_file_system(UnsyncedFileSystem()):
            for step in range(flushed.ended, found.files.steps + 1):
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
        trial.evidence["steps"] = found.files.steps - flushed.ended


CHECKS = (
    Check("CRASH-6", what_was_promised_survives_power_loss, Profile.QUICK),
    Check("CRASH-6", what_a_restart_flushes_survives_power_loss),
    Check("CRASH-6", a_reset_survives_power_loss, also=("RESET-1", "RESET-2")),
)
