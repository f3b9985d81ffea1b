"""`[state_machine.options]` of the backend `lmdb`."""

from __future__ import annotations

import attrs

from dengine_sm import Durability, not_transient

_LEAST_MAP = 1 << 20


def _at_least_a_megabyte(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < _LEAST_MAP:
        raise ValueError(
            f"{attribute.name}: expected at least {_LEAST_MAP} bytes, observed {value}"
        )


def _some_readers(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 4 <= value <= 100_000:
        raise ValueError(f"{attribute.name}: expected 4 to 100000, observed {value}")


@attrs.frozen
class LMDBOptions:
    """Options of the backend `lmdb`; the defaults suit most."""

    durability: Durability = attrs.field(default=Durability.ON_FLUSH, validator=not_transient)
    """`on_flush`: synced by the node's flushes; `per_apply`: synced before each apply returns."""
    map_size: int = attrs.field(default=1 << 40, validator=_at_least_a_megabyte)
    """Bytes of address space to map at first: no file size, and no memory. It grows when full."""
    max_readers: int = attrs.field(default=1024, validator=_some_readers)
    """Reads and read views that can be under way at one time."""
    readahead: bool = True
    """Let the system read ahead; turn it off for random reads of data larger than memory."""
