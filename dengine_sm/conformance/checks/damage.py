"""Damaged and torn files: the truth or `CorruptionError`, never another state (CRASH-5)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from dengine_sm.conformance.profile import Profile
from dengine_sm.conformance.sample import (
    CLAUSE,
    DirectoryWound,
    FileWound,
    Sample,
    Wound,
    killed_machine,
)
from dengine_sm.conformance.trial import Check, Trial
from dengine_sm.conformance.violation import CannotCheckError, NotBoundError

_MOST = 4000
_PAGE_BYTES = 512
_RUN_BYTES = 24
_GO_ON_EVERY = 5
_TAILS = 8


def a_torn_last_write_recovers(trial: Trial) -> None:
    """Cuts the last write at its bytes; what comes before it must be there, and more can follow."""
    with killed_machine(trial, salt=110) as sample:
        grown = [name for name in sample.changed if sample.old_size(name) is not None]
        cuts = [
            FileWound(name, content[:at], at, f"the last write is cut at offset {at}")
            for name in grown
            for content in [sample.after.files[name]]
            for at in range(sample.old_size(name) or 0, len(content))
        ]
        if not cuts:
            raise NotBoundError(
                "the last write makes no file longer: nothing of it can be torn off"
            )
        # With several files nobody knows from outside which of them was written last.
        is_alone = len(sample.changed) == 1
        chosen = _sampled(cuts, trial, trial.effort.points // 2)
        for number, wound in enumerate(chosen):
            sample.examine(wound, may_refuse=not is_alone, goes_on=number % _GO_ON_EVERY == 0)
            trial.on_progress(number + 1, len(chosen))
        trial.evidence |= {"cuts": len(chosen), "files": sorted(grown), "strict": is_alone}


def damage_is_refused_or_without_effect(trial: Trial) -> None:
    """Flips bits, cuts and zeroes in all files; the state is right, or the start refused."""
    if not trial.subject.detects_damage:
        raise NotBoundError("declared: the engine detects no damaged bytes")
    with killed_machine(trial, salt=111) as sample:
        wounds = [*_whole_files(sample), *_zeroed_tails(sample), *_places(sample)]
        for number, wound in enumerate(wounds):
            sample.examine(wound)
            trial.on_progress(number + 1, len(wounds))
        trial.evidence["wounds"] = len(wounds)


def what_is_missing_is_noticed(trial: Trial) -> None:
    """Takes away each file and directory in turn; the state is right, or the start refused."""
    counts = {"files": 0, "directories": 0}
    for installs in (True, False):
        with killed_machine(trial, salt=112, installs=installs) as sample:
            names, directories = sorted(sample.after.files), sorted(sample.after.directories)
            if not names:
                raise CannotCheckError("the machine keeps no file in its directory")
            wounds: list[Wound] = [FileWound(name, None, 0, "loss") for name in names]
            for name in directories:
                wounds += [DirectoryWound(name), DirectoryWound(name, keeps_directory=True)]
            for number, wound in enumerate(wounds):
                sample.examine(wound)
                trial.on_progress(number + 1, len(wounds))
            counts["files"] += len(names)
            counts["directories"] += len(directories)
    trial.evidence |= counts


def _whole_files(sample: Sample) -> Iterator[FileWound]:
    """Yield what file systems are known to leave: empty files, and files of zeros."""
    for name, content in sorted(sample.after.files.items()):
        if content:
            yield FileWound(name, b"", 0, "loss of all bytes")
            yield FileWound(name, bytes(len(content)), 0, "zeroing")


def _zeroed_tails(sample: Sample) -> Iterator[FileWound]:
    """Yield the last write with zeros to its end: what a power loss leaves of unsynced pages."""
    for name in sample.changed:
        old, content = sample.old_size(name), sample.after.files[name]
        if old is None:
            continue
        for part in range(_TAILS):
            at = old + (len(content) - old) * part // _TAILS
            zeroed = content[:at] + bytes(len(content) - at)
            yield FileWound(name, zeroed, at, f"zeros from {at} to the end", is_tail=True)


def _places(sample: Sample) -> Iterator[FileWound]:
    """Yield damage at offsets: one bit at each, and by turns other kinds."""
    rng = random.Random(sample.trial.seed)  # noqa: S311 - no secret
    points = sample.trial.effort.points // 2
    for number, (name, at) in enumerate(_offsets(sample, rng, points)):
        content = sample.after.files[name]
        kinds = list(_at(name, content, at, rng.randrange(8)))
        yield kinds[0]
        yield from kinds[1:] if not points else [kinds[1 + number % (len(kinds) - 1)]]


def _at(name: str, content: bytes, at: int, bit: int) -> Iterator[FileWound]:
    flipped = bytearray(content)
    flipped[at] ^= 1 << bit
    yield FileWound(name, bytes(flipped), at, f"a flipped bit at offset {at}")
    yield FileWound(name, content[:at], at, f"a cut at offset {at}", is_tail=True)
    page = at // _PAGE_BYTES * _PAGE_BYTES
    for first, end in ((at, at + _RUN_BYTES), (page, page + _PAGE_BYTES), (at, len(content))):
        part = content[first:end]
        if any(part):
            zeroed = content[:first] + bytes(len(part)) + content[first + len(part) :]
            text = f"zeros in place of {first}..{first + len(part) - 1}"
            # Zeros that were there before are no damage.
            hurt = first + len(part) - len(part.lstrip(b"\0"))
            yield FileWound(name, zeroed, hurt, text, is_tail=end >= len(content))


def _offsets(sample: Sample, rng: random.Random, count: int) -> list[tuple[str, int]]:
    """Return places in files: every one, or both ends of each file and more at random."""
    files = sorted((name, len(content)) for name, content in sample.after.files.items() if content)
    everywhere = [(name, at) for name, size in files for at in range(size)]
    if not count:
        step = -(-len(everywhere) // _MOST)
        return everywhere[rng.randrange(step) :: step]
    ends = [(name, at) for name, size in files for at in (0, size - 1)]
    # What was written late is what the state still shows.
    late = [(name, at) for name, size in files for at in range(size * 2 // 3, size)]
    chosen = ends[:count]
    while len(chosen) < count:
        chosen.append(rng.choice(late if len(chosen) % 2 else everywhere))
    return chosen


def _sampled(wounds: Sequence[FileWound], trial: Trial, count: int) -> list[FileWound]:
    rng = random.Random(trial.seed)  # noqa: S311 - no secret
    if not count:
        count = _MOST
    if len(wounds) <= count:
        return list(wounds)
    return [wounds[0], *rng.sample(wounds[1:-1], count - 2), wounds[-1]]


CHECKS = (
    Check(CLAUSE, a_torn_last_write_recovers, Profile.QUICK),
    Check(CLAUSE, damage_is_refused_or_without_effect),
    Check(CLAUSE, what_is_missing_is_noticed),
)
