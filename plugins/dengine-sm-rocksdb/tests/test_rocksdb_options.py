"""Options say what is wrong with them; listing backends loads no native library."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from dengine_sm_rocksdb import Binding, RocksDBOptions, create_rocksdb

from dengine_sm import BackendLoadError, ConfigError, Durability, create_state_machine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"write_buffer_bytes": 5},
            "write_buffer_bytes: expected at least 65536 bytes, observed 5",
        ),
        ({"block_cache_bytes": -1}, "block_cache_bytes: expected at least 0 bytes, observed -1"),
        ({"bloom_bits_per_key": -1}, "bloom_bits_per_key: expected at least 0 bits, observed -1"),
        ({"durability": Durability.TRANSIENT}, "durability: expected 'on_flush' or 'per_apply'"),
    ],
)
def test_refuses_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RocksDBOptions(**options)


def test_every_option_works(tmp_path: Path) -> None:
    for number, compression in enumerate(["none", "snappy", "lz4", "zstd"]):
        table = {
            "durability": "per_apply",
            "block_cache_bytes": 0,
            "write_buffer_bytes": 1 << 20,
            "compression": compression,
            "bloom_bits_per_key": 0,
            "statistics": True,
        }
        machine = create_state_machine("rocksdb", tmp_path / str(number), table)
        machine.start()
        assert "rocksdb.block.cache" in machine._store.statistics()
        machine.stop()


def test_listing_backends_loads_no_native_library() -> None:
    code = (
        "import sys; from dengine_sm import installed_backends; "
        "assert 'rocksdb' in str(installed_backends()); "
        "sys.exit(bool({'rocksdict', 'aimrocks', 'rocksdb'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_the_modules_of_a_binding_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name in ("rocksdb", "aimrocks"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    message = (
        "binding: expected one of the modules 'rocksdb' (python-rocksdb) and 'aimrocks' to be "
        "installed, found none; install one, or set binding = 'rocksdict'"
    )

    with pytest.raises(ConfigError, match=re.escape(message)):
        create_rocksdb(tmp_path, RocksDBOptions(binding=Binding.PYTHON_ROCKSDB))
    with pytest.raises(BackendLoadError, match=re.escape(message)):
        create_state_machine("rocksdb", tmp_path, {"binding": "python-rocksdb"})
    assert list(tmp_path.iterdir()) == []


def test_the_readme_tells_every_option() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()

    for field in attrs.fields(RocksDBOptions):
        assert f"| `{field.name}` | " in readme
