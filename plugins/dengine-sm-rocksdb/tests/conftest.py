"""What several test files share: bindings, and stores on directories of their own."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dengine_sm_rocksdb import Binding, RocksDBOptions
from dengine_sm_rocksdb.backend import _binding
from dengine_sm_rocksdb.store import RocksDBStore

from dengine_sm import StorageError

MakeStore = Callable[..., RocksDBStore]


def original_dialect(aimrocks: types.ModuleType) -> types.ModuleType:
    """Return a module with the calls of python-rocksdb 0.7, made of the fork's."""
    module = types.ModuleType("rocksdb")
    for name in dir(aimrocks):
        if name[0].isupper():
            setattr(module, name, getattr(aimrocks, name))

    def parted(key: Any) -> tuple[Any, ...]:
        return (key[1], key[0]) if isinstance(key, tuple) else (key, None)

    class WriteBatch:
        def __init__(self) -> None:
            self.inner = aimrocks.WriteBatch()

        def put(self, key: Any, value: bytes) -> None:
            key, family = parted(key)
            self.inner.put(key, value, family)

        def delete(self, key: Any) -> None:
            self.inner.delete(*parted(key))

    class Items:
        def __init__(self, inner: Any, family: Any) -> None:
            self.inner, self.family, self.seek = inner, family, inner.seek

        def __iter__(self) -> Items:
            return self

        def __next__(self) -> Any:
            key, value = next(self.inner)
            return ((self.family, key) if self.family else key), value

    class DB:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.inner = aimrocks.DB(*args, **kwargs)
            for name in ("create_column_family", "get_column_family", "get_property", "multi_get"):
                setattr(self, name, getattr(self.inner, name))

        def get(self, key: Any) -> bytes | None:
            return self.inner.get(*parted(key))

        def write(self, batch: WriteBatch, sync: bool = False, disable_wal: bool = False) -> None:
            self.inner.write(batch.inner, sync, disable_wal)

        def iteritems(self, family: Any = None) -> Items:
            return Items(self.inner.iteritems(family), family)

    module.WriteBatch, module.DB = WriteBatch, DB
    return module


@pytest.fixture(params=["rocksdict", "aimrocks", "python-rocksdb"])
def binding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Binding:
    """Choose a binding; `python-rocksdb` is its calls over the fork, for it does not build."""
    if request.param == "rocksdict":
        return Binding.ROCKSDICT
    reason = "aimrocks has no wheels above Python 3.12, and python-rocksdb does not build"
    aimrocks = pytest.importorskip("aimrocks", reason=reason)
    if request.param == "python-rocksdb":
        monkeypatch.setitem(sys.modules, "rocksdb", original_dialect(aimrocks))
    return Binding.PYTHON_ROCKSDB


@pytest.fixture(params=[Binding.ROCKSDICT, Binding.PYTHON_ROCKSDB], ids=["rocksdict", "aimrocks"])
def engine(request: pytest.FixtureRequest) -> Binding:
    """Choose one of the two RocksDBs that are at hand, whatever the calls."""
    if request.param is Binding.PYTHON_ROCKSDB:
        pytest.importorskip("aimrocks", reason="it has no wheels above Python 3.12")
    chosen: Binding = request.param
    return chosen


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Make stores on a directory, closed in the end."""
    stores: list[RocksDBStore] = []

    def make(
        name: str = "store", *, wrap: Callable[[Any], Any] = lambda binding: binding, **options: Any
    ) -> RocksDBStore:
        chosen = RocksDBOptions(**options)
        store = RocksDBStore(tmp_path / name, chosen, wrap(_binding(chosen.binding)))
        stores.append(store)
        return store

    yield make
    for store in stores:
        with suppress(StorageError):
            store.close()
