"""LMDB itself: opening an environment, and what its errors mean. The only importer of lmdb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import lmdb

from dengine_sm.errors import CorruptionError, StorageError, StorageFormatError

Environment: TypeAlias = lmdb.Environment
Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Table: TypeAlias = Any
"""A database in an environment; its class has no public name."""
EngineError = lmdb.Error
MapFullError = lmdb.MapFullError

DATA = "data.mdb"
LOCK = "lock.mdb"
TABLES = (b"data", b"data-long", b"internal", b"internal-long")
_LIB_VERSION = 0
"""LMDB 0.9 and its file format, which every tool reads, whatever else is bundled."""
_SMALLEST_MAP = 1 << 20
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.NotFoundError,
    lmdb.IncompatibleError,
)


def open_environment(
    path: Path, *, map_size: int, max_readers: int, readahead: bool, sync: bool
) -> Environment:
    """Open or create an environment, with a smaller map where the address space is limited.

    Raises:
        StorageError, or a class below it.
    """
    while True:
        try:
            return lmdb.open(
                str(path),
                map_size=map_size,
                max_dbs=len(TABLES),
                max_readers=max_readers,
                max_spare_txns=1,
                readahead=readahead,
                sync=sync,
                metasync=sync,
                writemap=False,
                lock=True,
                mode=0o600,
                lib_version=_LIB_VERSION,
            )
        except lmdb.MemoryError as exc:
            if map_size // 2 < _SMALLEST_MAP:
                raise storage_error(exc, path, "nothing was changed") from exc
            map_size //= 2
        except (lmdb.Error, OSError) as exc:
            raise storage_error(exc, path, "nothing was changed") from exc


def open_tables(env: Environment, *, create: bool) -> list[Table]:
    """Return the four tables, in the order of `TABLES`."""
    return [env.open_db(name, create=create) for name in TABLES]


@contextmanager
def storage_errors(path: Path, state: str) -> Iterator[None]:
    """Translate what is raised inside, but for `MapFullError`, which can be helped."""
    try:
        yield
    except MapFullError:
        raise
    except (EngineError, OSError) as exc:
        raise storage_error(exc, path, state) from exc


def storage_error(exc: BaseException, path: Path, state: str) -> StorageError:
    """Translate an error of LMDB; `state` says what is left behind."""
    file = path / DATA
    if isinstance(exc, _DAMAGE):
        return CorruptionError(
            f"{str(file)!r} is damaged: {exc}; LMDB does not tell where; {state}",
            path=file,
            offset=0,
        )
    if isinstance(exc, lmdb.VersionMismatchError):
        return StorageFormatError(
            f"{str(file)!r} is of another version of LMDB: {exc}; {state}",
            path=file,
            expected="LMDB data format 1",
        )
    if isinstance(exc, lmdb.ReadersFullError):
        return StorageError(
            f"{str(file)!r}: more reads and read views at one time than the option max_readers "
            f"allows; {state}",
            path=file,
        )
    return StorageError(f"{str(file)!r}: LMDB refused: {exc}; {state}", path=file)
