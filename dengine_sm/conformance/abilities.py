"""What a machine can do beyond what every machine owes, and the line that says so."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from dengine_sm.conformance.subject import Subject
from dengine_sm.contract import CONTRACT_VERSION
from dengine_sm.validation import OPTIONAL_PROTOCOLS, protocol_methods


def abilities_of(subject: Subject) -> tuple[str, ...]:
    """Return the optional methods that a machine has, and what the backend declares.

    Constructs a machine and does not start it; none if that fails.
    """
    declared = []
    if subject.keeps_state_in_memory:
        declared.append("keeps state in memory")
    if not subject.detects_damage:
        declared.append("detects no damage")
    return (*_optional_methods(subject), *declared)


def header_line(subject: Subject) -> str:
    """Return the first line of a run over a subject."""
    return header_of(subject.name, subject.version, subject.durability.value, abilities_of(subject))


def header_of(
    name: str,
    version: str,
    durability: str,
    abilities: Sequence[str],
    contract_version: int = CONTRACT_VERSION,
) -> str:
    """Return name, version, contract, durability and abilities in one line."""
    parts = [
        f"state machine: {name} {version}".rstrip(),
        f"contract {contract_version}",
        f"durability {durability.upper()}",
        ", ".join(abilities),
    ]
    return " · ".join(part for part in parts if part)


def _optional_methods(subject: Subject) -> list[str]:
    try:
        with tempfile.TemporaryDirectory(prefix="dengine-sm-kit-") as directory:
            machine = subject.open_state_machine(Path(directory) / "data")
    except Exception:  # a machine that cannot be constructed is for the checks to tell of
        return []
    names = [name for protocol in OPTIONAL_PROTOCOLS for name in protocol_methods(protocol)]
    return [name for name in names if callable(getattr(machine, name, None))]
