"""The factory of the backend `rocksdb`, and how the loader learns of it."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from dengine_sm import Backend, Limits
from dengine_sm.kv import KeyValueStateMachine
from dengine_sm_rocksdb.binding import OpenDatabase
from dengine_sm_rocksdb.options import Binding, RocksDBOptions
from dengine_sm_rocksdb.store import RocksDBStore


def create_rocksdb(data_dir: Path, options: RocksDBOptions | None = None) -> KeyValueStateMachine:
    """Return a key-value machine on a directory; nothing is touched before `start`.

    Raises:
        ConfigError: the binding that the options name is not installed.
    """
    options = options or RocksDBOptions()
    return KeyValueStateMachine(RocksDBStore(data_dir, options, _binding(options.binding)))


def _binding(binding: Binding) -> OpenDatabase:
    # Here, not above: listing backends must not load a native library.
    if binding is Binding.ROCKSDICT:
        from dengine_sm_rocksdb.on_rocksdict import open_rocksdict

        return open_rocksdict
    from dengine_sm_rocksdb.on_python_rocksdb import open_python_rocksdb, require_module

    require_module()
    return open_python_rocksdb


def rocksdb_backend() -> Backend:
    """Describe the backend to the loader."""
    return Backend(
        "rocksdb",
        create_rocksdb,
        options=RocksDBOptions,
        durability=attrgetter("durability"),
        summary="RocksDB: more state than memory, fast writes, sorted scans",
        limits=Limits(),
    )
