"""The backend `rocksdb`: a replicated key-value state machine on RocksDB.

Importing this package imports no native library; `create_rocksdb` does.
"""

from __future__ import annotations

from dengine_sm import Backend, hookimpl
from dengine_sm_rocksdb.backend import create_rocksdb, rocksdb_backend
from dengine_sm_rocksdb.options import Binding, Compression, RocksDBOptions

__all__ = [
    "Binding",
    "Compression",
    "RocksDBOptions",
    "create_rocksdb",
    "dengine_sm_backends",
]


@hookimpl
def dengine_sm_backends() -> list[Backend]:
    """Register the backend `rocksdb`."""
    return [rocksdb_backend()]
