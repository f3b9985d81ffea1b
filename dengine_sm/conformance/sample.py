"""The directory of a machine that was killed, and what may come of damage to it (CRASH-5)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Protocol

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


class Wound(Protocol):
    """Damage to an image."""

    @property
    def text(self) -> str:
        """What was done, before "of" and a name."""
        ...

    @property
    def name(self) -> str:
        """What it was done to."""
        ...

    @property
    def hits_marker(self) -> bool:
        """Whether a machine may take the directory for a foreign one."""
        ...

    def inflicted_on(self, image: Image) -> Image:
        """Return the damaged image."""
        ...

    def allowed(self, sample: Sample) -> set[int]:
        """Return the applied indices that a machine may recover to, if it does not raise."""
        ...


@attrs.frozen
class FileWound:
    """Damage to one file."""

    name: str
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

    def inflicted_on(self, image: Image) -> Image:
        """Return the damaged image."""
        return image.with_file(self.name, self.content)

    def allowed(self, sample: Sample) -> set[int]:
        """Return the applied indices that a machine may recover to, if it does not raise."""
        if self.name not in sample.changed:
            return {sample.whole}
        size = sample.old_size(self.name)
        if size is None or (self.content is not None and self.first >= size):
            return {sample.whole, sample.floor}
        flushed = sample.earlier.files.get(self.name, b"")
        if self.is_tail and self.first >= len(flushed):
            # Nothing is left to tell that this was not the last write.
            return {sample.whole, sample.first}
        return {sample.whole}


@attrs.frozen
class DirectoryWound:
    """Loss of a directory with all that is in it, or only of all that is in it."""

    name: str
    keeps_directory: bool = False

    @property
    def text(self) -> str:
        """What was done."""
        return "loss of all files" if self.keeps_directory else "loss"

    @property
    def hits_marker(self) -> bool:
        """Whether a machine may take the directory for a foreign one."""
        return True

    def inflicted_on(self, image: Image) -> Image:
        """Return the damaged image."""
        return image.without(self.name, keeps_directory=self.keeps_directory)

    def allowed(self, sample: Sample) -> set[int]:
        """Return the applied indices that a machine may recover to, if it does not raise."""
        lost = set(sample.after.files) - set(self.inflicted_on(sample.after).files)
        is_last_write = lost <= set(sample.changed) - set(sample.before.files)
        return {sample.whole, sample.floor} if is_last_write else {sample.whole}


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

    def examine(self, wound: Wound, *, may_refuse: bool = True, goes_on: bool = False) -> bool:
        """Start on a damaged image; tell whether the machine recovered."""
        __tracebackhide__ = True
        wound.inflicted_on(self.after).restore(self.directory)
        history = [f"{wound.text} of {wound.name!r}", "start()"]
        try:
            with self._process() as machine:
                self._check_state(machine, wound.allowed(self), history, "CorruptionError, or ")
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
        """Start again, and once more with all put back: a refusal destroys nothing."""
        __tracebackhide__ = True
        history = [*history, "start()"]
        with contextlib.suppress(StorageError), self._process() as machine:
            self._check_state(machine, wound.allowed(self), history, "CorruptionError again, or ")
        history += [f"{wound.name!r} is put back", "start()"]
        damaged = wound.inflicted_on(self.after)
        for name in self.after.differing(damaged):
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.after.files[name])
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
def killed_machine(trial: Trial, salt: int, *, installs: bool = True) -> Iterator[Sample]:
    """Use a machine, kill it after one more write, and keep its directory before and after.

    Args:
        trial: the check's.
        salt: parts the log from those of other checks.
        installs: whether the machine also installs a snapshot, which makes more kinds of files.
    """
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
        metadata = None
        if installs:
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
    """Let the machine install what it has just written."""
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
