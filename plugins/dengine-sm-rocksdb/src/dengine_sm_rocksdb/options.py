"""`[state_machine.options]` of the backend `rocksdb`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import attrs

from dengine_sm import Durability, not_transient


class Binding(Enum):
    """Which Python binding of RocksDB is used."""

    ROCKSDICT = "rocksdict"
    PYTHON_ROCKSDB = "python-rocksdb"


class Compression(Enum):
    """How blocks of table files are compressed."""

    NONE = "none"
    SNAPPY = "snappy"
    LZ4 = "lz4"
    ZSTD = "zstd"


def _at_least(least: int, unit: str) -> Callable[[object, attrs.Attribute[int], int], None]:
    def check(_: object, attribute: attrs.Attribute[int], value: int) -> None:
        if value < least:
            raise ValueError(
                f"{attribute.name}: expected at least {least} {unit}, observed {value}"
            )

    return check


@attrs.frozen
class RocksDBOptions:
    """Options of the backend `rocksdb`; none of them changes what is on disk already."""

    durability: Durability = attrs.field(default=Durability.ON_FLUSH, validator=not_transient)
    """`on_flush`: synced by the node's flushes; `per_apply`: synced before each apply returns."""
    binding: Binding = attrs.field(default=Binding.ROCKSDICT)
    """`rocksdict`, or `python-rocksdb` with what the README says it lacks."""
    block_cache_bytes: int = attrs.field(default=32 << 20, validator=_at_least(0, "bytes"))
    """Memory for blocks of table files, indexes and filters included; 0 for none of data."""
    write_buffer_bytes: int = attrs.field(default=64 << 20, validator=_at_least(64 << 10, "bytes"))
    """Memory for what is in no table file yet; about as much WAL is replayed by a start."""
    compression: Compression = attrs.field(default=Compression.SNAPPY)
    """`none`, `snappy`, `lz4` or `zstd`; for table files written from here on."""
    bloom_bits_per_key: int = attrs.field(default=10, validator=_at_least(0, "bits"))
    """Size of the filter that spares looking for keys where they are not; 0 for none."""
    statistics: bool = False
    """Whether RocksDB counts what it does, and writes it to its `LOG` every ten minutes."""
