"""The directory of a machine that was killed, and what may come of damage to it (CRASH-5)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import attrs

from dengine_sm.conformance.images import Image
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.trial import Trial
from dengine_sm.conformance.violation import Violation, violates
from dengine_sm.errors import CorruptionError, StorageError, StorageFormatError
from dengine_sm.model import SnapshotMetadata

CLAUSE = "CRASH-5"
_CHUNK = 5
_MARKER_BYTES = 512
"""Damage so near to a file's beginning may make it look like another backend's."""
_LOOKS = 50
_LOOK_AGAIN_EVERY = 5


@attrs.frozen
class Wound:
    """Damage to one file of an image."""

    file: str
    content: bytes | None
    """What the file holds now; None when it is gone."""
    first: int
    """Offset of the first byte concerned."""
    text: str
    is_tail: bool = False
    """Whether all that follows is concerned as well, up to the file's end."""

    @property
    def hits_marker(self) -> bool:
        """Whether a machine may take the directory for a foreign one."""
        return self.content is None or self.first < _MARKER_BYTES


@attrs.define
class Sample:
    """An image as a kill left it, a process factory, and the truth about the state."""

    trial: Trial
    nursery: Nursery
    oracle: Oracle
    directory: Path
    earlier: Image
    """As it was before the last flush, and before what that made durable."""
    before: Image
    """As it was before the last write, everything flushed."""
    after: Image
    """As the kill left it."""
    first: int
    """Applied index of `earlier`."""
    floor: int
    """Applied index of `before`."""
    whole: int
    """Applied index that the undamaged image recovers to."""
    metadata: SnapshotMetadata | None
    """Of the snapshot that was installed on the way."""
    refused: int = 0
    right: int = 0

    @property
    def changed(self) -> list[str]:
        """Files that the last write has changed."""
        return [name for name in self.after.differing(self.before) if name in self.after.files]

    def old_size(self, name: str) -> int | None:
        """Return how long a file was before it was appended to; None if that is not all."""
        old, new = self.before.files.get(name), self.after.files[name]
        return len(old) if old is not None and new.startswith(old) else None

    def allowed(self, wound: Wound) -> set[int]:
        """Return the applied indices that a machine may recover to, if it does not raise."""
        if wound.file not in self.changed:
            return {self.whole}
        size = self.old_size(wound.file)
        if size is None or (wound.content is not None and wound.first >= size):
            return {self.whole, self.floor}
        flushed = self.earlier.files.get(wound.file, b"")
        if wound.is_tail and wound.first >= len(flushed):
            # Nothing is left to tell that this was not the last write.
            return {self.whole, self.first}
        return {self.whole}

    def examine(self, wound: Wound, *, may_refuse: bool = True, goes_on: bool = False) -> bool:
        """Start on a damaged image; tell whether the machine recovered."""
        __tracebackhide__ = True
        self.after.with_file(wound.file, wound.content).restore(self.directory)
        history = [f"{wound.text} of {wound.file!r}", "start()"]
        try:
            with self._process() as machine:
                self._check_state(machine, self.allowed(wound), history, "CorruptionError, or ")
                if goes_on:
                    self._go_on(machine, history)
        except StorageError as exc:
            history.append(f"{type(exc).__name__}: {exc}")
            if not may_refuse:
                self._violated("a recovery to the end of a chunk", exc, history)
            self._check_refusal(wound, exc, history)
            if self.refused % _LOOK_AGAIN_EVERY == 0:
                self._check_nothing_lost(wound, history)
            self.refused += 1
            return False
        self.right += 1
        return True

    @contextlib.contextmanager
    def _process(self) -> Iterator[RemoteMachine]:
        machine = self.nursery.spawn(self.directory, ("skip_syncs",))
        try:
            yield machine
        finally:
            machine.kill()

    def _check_state(
        self, machine: RemoteMachine, allowed: set[int], history: list[str], instead: str = ""
    ) -> None:
        __tracebackhide__ = True
        indices = " or ".join(map(str, sorted(allowed)))
        expected = f"{instead}the state at index {indices}"
        try:
            if not machine.is_running():
                machine.start()
            index = machine.last_applied().index
            if index not in allowed:
                self._violated(expected, f"last_applied() is at index {index}", history)
            self.oracle.check_state(CLAUSE, machine, index=index, history=history)
            self._check_bookkeeping(machine, index, history)
        except (StorageError, Violation):
            raise
        except Exception as exc:
            self._violated(expected, exc, history)

    def _check_bookkeeping(self, machine: RemoteMachine, index: int, history: list[str]) -> None:
        __tracebackhide__ = True
        known = self.metadata.last_included.index if self.metadata else 1
        for wanted in {known, (known + index) // 2, index}:
            term = machine.entry_term(wanted)
            if term != self.oracle.id_at(wanted).term:
                expected = f"entry_term({wanted}): {self.oracle.id_at(wanted).term}"
                self._violated(expected, f"entry_term({wanted}): {term}", history)
        observed = machine.snapshot_metadata()
        if observed != self.metadata:
            self._violated(f"snapshot_metadata(): {self.metadata}", f"{observed}", history)

    def _go_on(self, machine: RemoteMachine, history: list[str]) -> None:
        """Apply what is missing and more, flush, kill; everything must be there."""
        __tracebackhide__ = True
        index = machine.last_applied().index
        last = min(self.whole + 2, len(self.oracle.log))
        history += [f"apply_chunk(entries {index + 1}..{last})", "flush()", "SIGKILL", "start()"]
        if last > index:
            machine.apply_chunk(self.oracle.entries(index + 1, last))
        machine.flush()
        machine.kill()
        with self._process() as again:
            self._check_state(again, {last}, history)

    def _check_refusal(self, wound: Wound, exc: StorageError, history: list[str]) -> None:
        __tracebackhide__ = True
        if isinstance(exc, StorageFormatError) and wound.hits_marker:
            return
        if not isinstance(exc, CorruptionError):
            self._violated("CorruptionError", exc, history)
        path, offset = getattr(exc, "path", None), getattr(exc, "offset", None)
        is_inside = isinstance(path, Path) and path.is_relative_to(self.directory)
        if not (is_inside and isinstance(offset, int) and offset >= 0):
            self._violated(
                f"a CorruptionError with a path in {self.directory} and an offset",
                f"path {path!r}, offset {offset!r}",
                history,
            )

    def _check_nothing_lost(self, wound: Wound, history: list[str]) -> None:
        """Start again, and once more with the file put back: a refusal destroys nothing."""
        __tracebackhide__ = True
        history = [*history, "start()"]
        with contextlib.suppress(StorageError), self._process() as machine:
            self._check_state(machine, self.allowed(wound), history, "CorruptionError again, or ")
        history += [f"{wound.file!r} is put back", "start()"]
        path = self.directory / wound.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.after.files[wound.file])
        try:
            with self._process() as machine:
                self._check_state(machine, {self.whole, self.floor}, history)
        except StorageError as exc:
            self._violated("the right state: a refusal changes nothing", exc, history)

    def _violated(self, expected: str, observed: object, history: list[str]) -> NoReturn:
        __tracebackhide__ = True
        if isinstance(observed, ProcessDied):
            observed = f"the process died: {observed.stderr or 'without a word'}"
        elif isinstance(observed, Exception):
            observed = f"{type(observed).__name__}: {observed}"
        violates(CLAUSE, expected=expected, observed=observed, history=history)


@contextlib.contextmanager
def killed_machine(trial: Trial, salt: int) -> Iterator[Sample]:
    """Use a machine, kill it after one more write, and keep its directory before and after."""
    trial.needs_survival()
    trial.needs_maker()
    assert trial.subject.maker is not None
    oracle = trial.oracle(48, salt=salt)
    rng = random.Random(trial.seed)  # noqa: S311 - no secret
    directory = trial.directory("machine")
    with Nursery(trial.subject.maker) as nursery:
        machine = nursery.spawn(directory)
        machine.start()
        applied = _apply(machine, oracle, rng, 0, 20)
        metadata = _install_own_snapshot(machine, oracle.id_at(applied), trial)
        applied = _apply(machine, oracle, rng, applied, 36)
        machine.flush()
        earlier, first = _image_of_idle(directory), applied
        applied = _apply_chunk(machine, oracle, applied, applied + rng.randint(1, 3))
        machine.flush()
        before = _image_of_idle(directory)
        last = applied + rng.randint(2, _CHUNK)
        _apply_chunk(machine, oracle, applied, last)
        if _image_of_idle(directory) == before:
            machine.flush()
        machine.kill()
        images = earlier, before, Image.of(directory)
        indices = first, applied, last
        sample = Sample(trial, nursery, oracle, directory, *images, *indices, metadata)
        _find_whole(sample, last)
        yield sample
        trial.evidence |= {"refused": sample.refused, "right": sample.right}


def _apply(
    machine: RemoteMachine, oracle: Oracle, rng: random.Random, applied: int, end: int
) -> int:
    while applied < end:
        applied = _apply_chunk(machine, oracle, applied, min(applied + rng.randint(1, _CHUNK), end))
        if rng.random() < 0.3:
            machine.flush()
    return applied


def _apply_chunk(machine: RemoteMachine, oracle: Oracle, applied: int, last: int) -> int:
    machine.apply_chunk(oracle.entries(applied + 1, last))
    return last


def _install_own_snapshot(
    machine: RemoteMachine, last_included: object, trial: Trial
) -> SnapshotMetadata:
    """Let the machine install what it has just written: one more kind of file."""
    path = trial.directory("snapshot") / "taken"
    machine.generate_snapshot_data(path, last_included)
    metadata: SnapshotMetadata = machine.snapshot_metadata()
    machine.apply_snapshot_from_file(metadata, path)
    machine.persist_last_snapshot_metadata(metadata)
    return metadata


def _image_of_idle(directory: Path) -> Image:
    """Take an image while the machine is idle; its own threads may still be at work."""
    images: list[Image] = []
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError):
            images.append(Image.of(directory))
            if images[-2:-1] == images[-1:]:
                break
    return images[-1]


def _find_whole(sample: Sample, last: int) -> None:
    """Start on the undamaged image: what a kill alone leaves."""
    __tracebackhide__ = True
    with sample._process() as machine:
        sample._check_state(machine, {sample.floor, last}, ["SIGKILL", "start()"])
        sample.whole = machine.last_applied().index
