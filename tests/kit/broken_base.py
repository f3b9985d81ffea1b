"""What a broken machine is made of: sound parts, a defect, and the clause it breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attrs

from dengine_sm.backends.file_store import FileStore
from dengine_sm.conformance.maker import maker_of_callable
from dengine_sm.kv import KeyValueStateMachine, RamStore
from dengine_sm.model import Durability, Limits

if TYPE_CHECKING:
    from dengine_sm.conformance.subject import Subject

LIMITS = Limits(max_key_bytes=1024, max_value_bytes=64 * 1024)


class SoundFileMachine(KeyValueStateMachine):
    """The backend `file`, small enough that log files roll and checkpoints run."""

    def __init__(self, directory: Path, **options: Any) -> None:
        settings = {"segment_bytes": 8192, "checkpoint_bytes": 16384, **options}
        super().__init__(FileStore(directory, **settings), limits=LIMITS)


class SoundSyncedMachine(SoundFileMachine):
    """The same, durable when `apply_chunk` returns."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, sync_every_write=True)


class SoundMemoryMachine(KeyValueStateMachine):
    """The backend `memory`."""

    def __init__(self, _directory: Path) -> None:
        super().__init__(RamStore(), limits=LIMITS)


@attrs.frozen
class Broken:
    """A machine with one defect."""

    make: Callable[[Path], Any]
    clause: str
    """The clause that the kit must blame."""
    durability: Durability = Durability.ON_FLUSH
    keeps_state_in_memory: bool = True
    found_by: str = ""
    """The clause of the check that finds it, when none of its own clause's checks does."""
    detects_damage: bool = True
    needs_strace: bool = False
    """Whether only strace shows what it does."""

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def summary(self) -> str:
        return (self.make.__doc__ or "").partition("\n")[0]


def breaks(clause: str, **declared: Any) -> Callable[[Any], Any]:
    """Mark a class or function, at module level, as a machine that breaks a clause.

    Its docstring's first line says what is wrong with it.
    """

    def mark(make: Any) -> Any:
        make.broken = Broken(make, clause, **declared)
        return make

    return mark


def broken_in(module: ModuleType) -> tuple[Broken, ...]:
    """Return the broken machines of a module, in the order they are written."""
    found = [
        vars(item).get("broken") for item in vars(module).values() if hasattr(item, "__dict__")
    ]
    return tuple(b for b in found if isinstance(b, Broken) and b.make.__module__ == module.__name__)


def subject_of(make: Callable[[Path], Any], **declared: Any) -> Subject:
    """Return a machine of this folder as the kit sees it."""
    # Only here: every process of a broken machine would import hypothesis with this module.
    from dengine_sm.conformance.key_value import KeyValueWorkload
    from dengine_sm.conformance.subject import Subject

    return Subject(
        make.__name__,
        make,
        KeyValueWorkload(LIMITS),
        limits=LIMITS,
        maker=maker_of_callable(make),
        **{"keeps_state_in_memory": True, **declared},
    )


def subject(broken: Broken) -> Subject:
    """Return a broken machine as the kit sees it."""
    return subject_of(
        broken.make,
        durability=broken.durability,
        keeps_state_in_memory=broken.keeps_state_in_memory,
        detects_damage=broken.detects_damage,
    )
