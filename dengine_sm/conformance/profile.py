"""How much work a run does."""

from __future__ import annotations

import enum

import attrs


class Profile(enum.IntEnum):
    """Which checks run, and how hard they try; a larger one includes the smaller."""

    QUICK = 1
    """At most 10 s: for every save of the file."""
    STANDARD = 2
    """At most 2 min: for continuous integration, and for a certificate."""
    DEEP = 3
    """Every crash point, for as long as it takes."""

    @property
    def label(self) -> str:
        """The name on the command line."""
        return self.name.lower()

    @classmethod
    def from_label(cls, label: str) -> Profile:
        """Return the profile of a name.

        Raises:
            ValueError: there is no such profile.
        """
        for profile in cls:
            if profile.label == label:
                return profile
        known = ", ".join(profile.label for profile in cls)
        raise ValueError(f"profile: expected one of {known}, observed {label!r}")


@attrs.frozen
class Effort:
    """Numbers for the checks of one profile."""

    examples: int
    """Hypothesis examples of a check."""
    steps: int
    """Steps of a stateful history."""
    kills: int
    """Processes killed by a check."""
    points: int
    """Offsets or crash points sampled by a check; 0 for every one."""
    entries: int
    """Length of the log that a check applies."""
    rounds: int
    """Repetitions of a concurrent check."""


EFFORTS = {
    Profile.QUICK: Effort(examples=8, steps=12, kills=2, points=6, entries=40, rounds=20),
    Profile.STANDARD: Effort(examples=60, steps=25, kills=12, points=40, entries=120, rounds=120),
    Profile.DEEP: Effort(examples=300, steps=50, kills=60, points=0, entries=300, rounds=500),
}
