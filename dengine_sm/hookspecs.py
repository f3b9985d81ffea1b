"""The words between dengine_sm and its plugins: hooks and what they return.

A plugin is a module or object named by an entry point in group `dengine_sm`. It
implements one hook or more, marked with `hookimpl`:

    from dengine_sm import Backend, Durability, hookimpl

    @hookimpl
    def dengine_sm_backends():
        return [Backend("mine", create, durability=Durability.ON_FLUSH, summary="...")]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import pluggy

from dengine_sm.contract import CONTRACT_VERSION, StateMachine
from dengine_sm.log.contract import CommitLog
from dengine_sm.model import Durability, Limits

PROJECT_NAME = "dengine_sm"
ENTRY_POINT_GROUP = "dengine_sm"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


def not_transient(_: object, attribute: attrs.Attribute[Durability], value: Durability) -> None:
    """Validate the option `durability` of a backend that keeps what it is given.

    Raises:
        ValueError: it is TRANSIENT.
    """
    if value is Durability.TRANSIENT:
        raise ValueError(
            f"{attribute.name}: expected 'on_flush' or 'per_apply', observed 'transient'; "
            "use the backend 'memory' for that"
        )


@attrs.frozen
class NoOptions:
    """Options of a backend that has none."""


@attrs.frozen
class Backend:
    """A state machine backend as a plugin registers it."""

    name: str
    """What the user writes in the config; lower case, unique among what is installed."""
    factory: Callable[[Path, Any], StateMachine]
    """`factory(data_dir, options)` constructs a machine and touches nothing (LIFE-1).

    Import native libraries here, not at module level: listing backends must stay light.
    """
    options: type = NoOptions
    """An attrs class; the config's table is structured into it. Every field has a default."""
    durability: Durability | Callable[[Any], Durability] = Durability.ON_FLUSH
    """The durability class, or a function of the options that returns it."""
    contract_version: int = CONTRACT_VERSION
    summary: str = ""
    """One line for `dengine-sm backends`."""
    limits: Limits | None = None
    """Sizes a key-value machine accepts; None for a machine that is not key-value."""
    workload: Callable[[], Any] | None = None
    """Returns the `Workload` that the conformance kit applies to the machine.

    None for a key-value machine: the kit brings that one. A function, so that only the kit
    imports `dengine_sm.conformance` and hypothesis.
    """
    keeps_state_in_memory: bool = False
    """Declares that memory grows with the state; SNAP-13 then does not bind."""
    detects_damage: bool = True
    """False declares an engine without checksums: it may read flipped bits as data (CRASH-5).

    The kit's reports say so.
    """

    def durability_for(self, options: Any) -> Durability:
        """Return the durability class under these options."""
        if isinstance(self.durability, Durability):
            return self.durability
        return self.durability(options)


@attrs.frozen
class LogEngine:
    """A commit log as a plugin registers it."""

    name: str
    """What the user writes as `[log] engine`."""
    factory: Callable[[Path, Any], CommitLog]
    """`factory(log_dir, options)` constructs a log and touches nothing."""
    options: type = NoOptions
    """An attrs class, structured from `[log.options]`."""
    summary: str = ""


@attrs.frozen
class CliCommand:
    """A command of `dengine-sm` as a plugin registers it."""

    name: str
    """What the user types; unique among what is installed, and none of the built-in ones."""
    factory: Callable[[], Any]
    """Returns the `click.Command`, or group, when the user asks for it.

    Import it here, not at module level: a node that starts has no use for it.
    """
    summary: str = ""
    """One line for `dengine-sm --help`."""


@hookspec
def dengine_sm_backends() -> Iterable[Backend]:  # type: ignore[empty-body]  # a hook spec
    """Return the state machine backends that this plugin offers."""


@hookspec
def dengine_sm_commit_logs() -> Iterable[LogEngine]:  # type: ignore[empty-body]  # a hook spec
    """Return the commit logs that this plugin offers."""


@hookspec
def dengine_sm_commands() -> Iterable[CliCommand]:  # type: ignore[empty-body]  # a hook spec
    """Return the commands that this plugin adds to `dengine-sm`."""
