"""Checks of SNAP-4: a snapshot that is not what it was is refused, and changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import attrs

from dengine_sm.conformance.checks.snapshot_parts import (
    Taken,
    applied_machine,
    expect_unchanged,
    files_in,
    install,
    raised,
    restart,
    sampled,
    sight_of,
    snapshot_at,
)
from dengine_sm.conformance.oracle import Oracle
from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import NotBoundError, violates
from dengine_sm.contract import StateMachine
from dengine_sm.errors import SnapshotCorruptionError, SnapshotFormatError, StorageError
from dengine_sm.model import LogId, SnapshotMetadata
from dengine_sm.snapshot import MANIFEST_NAME, PORTABLE_FORMAT, seal_snapshot

MOST_OFFSETS = 4096
"""Offsets tried in one file, however deep the profile."""

Damage = Callable[[Path], object]
"""Changes a copy of a snapshot directory."""


@attrs.frozen
class _Refusals:
    """A machine with a state of its own, and a sound snapshot whose copies are damaged."""

    trial: Trial
    machine: StateMachine
    oracle: Oracle
    taken: Taken

    async def expect_refused(self, what: str, damage: Damage) -> None:
        """Damage a copy of the snapshot; the machine must refuse it."""
        __tracebackhide__ = True
        copy = self.trial.directory("damaged") / "snapshot"
        shutil.copytree(self.taken.path, copy)
        damage(copy)
        # A directory that is not there may as well be an error of the disk.
        also = () if copy.is_dir() else (StorageError,)
        await self.expect_refusal(what, self.taken.metadata, copy, also)
        shutil.rmtree(copy.parent)

    async def expect_refusal(
        self,
        what: str,
        metadata: SnapshotMetadata,
        path: Path,
        also: tuple[type[Exception], ...] = (),
    ) -> None:
        """Install; the machine must refuse, and nothing may change."""
        __tracebackhide__ = True
        history = [
            f"apply entries 1..{self.machine.last_applied().index}",
            f"apply_snapshot_from_file: {what}",
        ]
        expected = f"SnapshotCorruptionError or SnapshotFormatError for {what}"
        before = sight_of(self.trial, self.machine)
        refusals: tuple[type[Exception], ...] = (
            SnapshotCorruptionError,
            SnapshotFormatError,
            *also,
        )
        try:
            await self.machine.apply_snapshot_from_file(metadata, path)
        except refusals:
            what = f"refusing {what}"
            expect_unchanged("SNAP-4", self.trial, self.machine, before, what, history)
        except Exception as exc:
            violates("SNAP-4", expected=expected, observed=raised(exc), history=history)
        else:
            violates("SNAP-4", expected=expected, observed="no exception", history=history)

    async def expect_sound_installs(self) -> None:
        """Restart: the old state is there; then the snapshot installs as it is."""
        __tracebackhide__ = True
        before = sight_of(self.trial, self.machine)
        if restart(self.trial, self.machine):
            what = "refusing damaged snapshots and a restart"
            expect_unchanged("SNAP-4", self.trial, self.machine, before, what)
        await install("SNAP-4", self.taken, self.machine, ["after refusals of damaged copies"])
        label = self.taken.metadata.last_included.index
        what = "installed after the damaged ones"
        self.oracle.check_state("SNAP-4", self.machine, index=label, what=what)


async def _refusals(trial: Trial) -> _Refusals:
    oracle = trial.oracle(40)
    taken = await snapshot_at(trial, oracle, 35)
    return _Refusals(trial, await applied_machine(trial, oracle, 12), oracle, taken)


async def altered_bytes_are_refused(trial: Trial) -> None:
    """Every file with a bit flipped, cut off, or with something appended is refused."""
    refusals = await _refusals(trial)
    damages = list(_byte_damages(refusals.taken.path, trial.effort.points, trial.seed))
    for number, (what, damage) in enumerate(damages):
        await refusals.expect_refused(what, damage)
        trial.on_progress(number + 1, len(damages))
    trial.evidence.update(files=len(files_in(refusals.taken.path)), damages=len(damages))
    await refusals.expect_sound_installs()


def _byte_damages(pristine: Path, points: int, seed: int) -> Iterator[tuple[str, Damage]]:
    for path in files_in(pristine):
        name, size = str(path.relative_to(pristine)), path.stat().st_size
        for offset in sampled(size, points or MOST_OFFSETS, seed) if size else ():
            bit = (offset + seed) % 8
            yield (
                f"bit {bit} of byte {offset} of {name!r} flipped",
                partial(_flip, name, offset, 1 << bit),
            )
            yield f"{name!r} cut to {offset} of {size} bytes", partial(_cut, name, offset)
        for tail in (b"\0", b"appended"):
            yield f"{tail!r} appended to {name!r}", partial(_append, name, tail)


async def other_files_are_refused(trial: Trial) -> None:
    """Missing, extra, swapped and renamed files are refused, and a missing directory."""
    refusals = await _refusals(trial)
    count = 0
    for what, damage in _file_damages(refusals.taken.path):
        await refusals.expect_refused(what, damage)
        count += 1
    trial.evidence["damages"] = count
    await refusals.expect_sound_installs()


def _file_damages(pristine: Path) -> Iterator[tuple[str, Damage]]:
    files = files_in(pristine)
    names = [str(path.relative_to(pristine)) for path in files]
    for name in names:
        yield f"{name!r} missing", partial(_remove, name)
        yield f"{name!r} renamed", partial(_rename, name)
        yield f"a copy of {name!r} beside it", partial(_duplicate, name)
    for one, two in pairwise(names):
        if (pristine / one).read_bytes() != (pristine / two).read_bytes():
            yield f"{one!r} and {two!r} swapped", partial(_swap, one, two)
    yield "an extra file", partial(_add, "extra", b"extra")
    yield "an extra empty file", partial(_add, "extra", b"")
    yield "an extra hidden file", partial(_add, ".extra", b"extra")
    yield "an extra directory with a file", partial(_add, "extra/file", b"extra")
    yield "an extra symbolic link to a file", partial(_link, "extra", names[0])
    yield "an empty directory", _empty
    yield "no directory", shutil.rmtree


async def other_metadata_is_refused(trial: Trial) -> None:
    """A snapshot under another checksum, format or id, or of another state, is refused."""
    refusals = await _refusals(trial)
    metadata, path = refusals.taken.metadata, refusals.taken.path
    other = await snapshot_at(trial, refusals.oracle, 38)
    for what, wrong in _wrong_metadata(metadata):
        await refusals.expect_refusal(what, wrong, path)
    await refusals.expect_refusal("the metadata of another snapshot", other.metadata, path)
    await refusals.expect_refusal("the files of another snapshot", metadata, other.path)
    await refusals.expect_sound_installs()


def _wrong_metadata(right: SnapshotMetadata) -> Iterator[tuple[str, SnapshotMetadata]]:
    for position in (0, 13, len(right.checksum) - 1):
        flipped = bytearray(right.checksum)
        flipped[position] ^= 1
        yield (
            f"byte {position} of the checksum changed",
            attrs.evolve(right, checksum=bytes(flipped)),
        )
    yield "an unknown format", attrs.evolve(right, format="dengine-sm-kit/unknown")
    if right.format == PORTABLE_FORMAT:
        # Its header and manifest hold the id; a layout of another kind need not.
        last = right.last_included
        for wrong in (LogId(last.term, last.index + 1), LogId(last.term + 1, last.index)):
            yield f"last_included {wrong}", attrs.evolve(right, last_included=wrong)


async def sealed_fragments_are_refused(trial: Trial) -> None:
    """A portable snapshot that was cut short before its checksum was taken is refused."""
    refusals = await _refusals(trial)
    taken = refusals.taken
    if taken.metadata.format != PORTABLE_FORMAT:
        raise NotBoundError(
            f"snapshots of format {taken.metadata.format!r} have a seal of their own"
        )
    damages = [
        (what, damage)
        for what, damage in _byte_damages(
            taken.path, min(12, trial.effort.points or 12), trial.seed
        )
        if MANIFEST_NAME not in what and " cut to " in what
    ]
    for what, damage in damages:
        copy = trial.directory("sealed") / "snapshot"
        shutil.copytree(taken.path, copy)
        damage(copy)
        (copy / MANIFEST_NAME).unlink()
        last = taken.metadata.last_included
        checksum = seal_snapshot(copy, format=PORTABLE_FORMAT, last_included=last)
        metadata = SnapshotMetadata(last, checksum, PORTABLE_FORMAT)
        await refusals.expect_refusal(f"{what}, then sealed", metadata, copy)
    trial.evidence["damages"] = len(damages)
    await refusals.expect_sound_installs()


def _flip(name: str, offset: int, mask: int, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[offset] ^= mask
    (copy / name).write_bytes(data)


def _cut(name: str, size: int, copy: Path) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:size])


def _append(name: str, tail: bytes, copy: Path) -> None:
    (copy / name).write_bytes((copy / name).read_bytes() + tail)


def _remove(name: str, copy: Path) -> None:
    (copy / name).unlink()


def _rename(name: str, copy: Path) -> None:
    (copy / name).rename(copy / f"{name}.old")


def _duplicate(name: str, copy: Path) -> None:
    shutil.copy(copy / name, copy / f"{name}.copy")


def _swap(one: str, two: str, copy: Path) -> None:
    first, second = (copy / one).read_bytes(), (copy / two).read_bytes()
    (copy / one).write_bytes(second)
    (copy / two).write_bytes(first)


def _add(name: str, data: bytes, copy: Path) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(data)


def _link(name: str, target: str, copy: Path) -> None:
    (copy / name).symlink_to(target)


def _empty(copy: Path) -> None:
    shutil.rmtree(copy)
    copy.mkdir()


CHECKS = (
    Check("SNAP-4", altered_bytes_are_refused, Profile.QUICK),
    Check("SNAP-4", other_files_are_refused),
    Check("SNAP-4", other_metadata_is_refused),
    Check("SNAP-4", sealed_fragments_are_refused),
)
