"""What is under test: a backend, its workload, and what it declares of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from dengine_sm.conformance.maker import Maker, OpenStateMachine
from dengine_sm.conformance.workload import Workload
from dengine_sm.model import Durability, Limits


@attrs.frozen
class Subject:
    """A backend under test."""

    name: str
    open_state_machine: OpenStateMachine
    """Constructs a machine on a directory, fresh or used, without starting it."""
    workload: Workload
    durability: Durability = Durability.ON_FLUSH
    limits: Limits | None = None
    """Sizes that a key-value machine accepts."""
    maker: Maker | None = None
    """None: checks that need a process of their own cannot run."""
    keeps_state_in_memory: bool = False
    """Declared; SNAP-13 then does not bind."""
    detects_damage: bool = True
    """False declares that flipped bits go unnoticed: an engine without checksums."""
    version: str = ""
    distribution: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def is_transient(self) -> bool:
        """Whether the machine survives nothing."""
        return self.durability is Durability.TRANSIENT

    @property
    def is_key_value(self) -> bool:
        """Whether the machine's commands are `kv/1`."""
        return self.workload.is_key_value
