"""Forks, collected machines, and what reaches the disk, seen from outside the process."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from dengine_sm_rocksdb import Binding, RocksDBOptions, create_rocksdb

from dengine_sm import NotRunningError
from dengine_sm.kv import WriteBatch

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_database_alone(make_store: Any, binding: Binding) -> None:
    store = make_store(binding=binding)
    store.open()
    store.write(WriteBatch({b"key": b"value"}))
    store.replace_all([WriteBatch({b"key": b"value"})])
    view, scan = store.view(), store.scan(b"", None)
    retired = store.view()
    assert next(scan) == (b"key", b"value")
    store.replace_all([WriteBatch({b"key": b"value"})])

    sizes = {path: path.stat().st_size for path in store.directory.rglob("*")}

    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: store.get(b"key"), lambda: view.get(b"key"), store.flush):
                try:
                    call()
                except NotRunningError:
                    pass
                else:
                    os._exit(2)
            store.close()
            retired.close()
            del view, scan, retired, call
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert sizes == {path: path.stat().st_size for path in store.directory.rglob("*")}
    assert view.get(b"key") == b"value"
    store.write(WriteBatch({b"more": b"value"}))
    store.close()
    store.open()
    assert store.count() == 2


def run(code: str, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    command = [*prefix, sys.executable, "-c", textwrap.dedent(code), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", ["rocksdict", "python-rocksdb"])
def test_a_machine_that_nobody_stops_does_no_harm(tmp_path: Path, name: str) -> None:
    if name != "rocksdict":
        pytest.importorskip("aimrocks", reason="it has no wheels above Python 3.12")
    code = """
        import gc, sys
        from pathlib import Path
        from dengine_sm.kv import WriteBatch
        from dengine_sm_rocksdb import Binding, RocksDBOptions, create_rocksdb

        options = RocksDBOptions(binding=Binding(sys.argv[2]))

        def use(name):
            machine = create_rocksdb(Path(sys.argv[1]) / name, options)
            machine.start()
            store = machine._store
            store.write(WriteBatch({b"%d" % key: b"value" for key in range(100)}))
            view, scan = store.view(), store.scan(b"", None)
            next(scan), next(view.scan(b"", None))
            cycle = [machine, view, scan]
            cycle.append(cycle)
            return machine

        use("collected")
        gc.collect()
        kept = use("kept to the end")
        print("ends")
    """

    assert run(code, str(tmp_path), name) == "ends\n"
    with_it = create_rocksdb(tmp_path / "kept to the end", RocksDBOptions(binding=Binding(name)))
    with_it.start()
    assert with_it.len() == 100
    with_it.stop()


TRACED = """
    import os, sys
    from pathlib import Path
    from dengine_sm.kv import WriteBatch
    from dengine_sm_rocksdb import Binding, RocksDBOptions, create_rocksdb
    from dengine_sm import Durability, StorageError

    options = RocksDBOptions(
        binding=Binding(sys.argv[2]), durability=Durability(sys.argv[3]), write_buffer_bytes=65536
    )
    store = create_rocksdb(Path(sys.argv[1]), options)._store
    store.open()

    def mark(text):
        os.access("/mark/" + text, os.F_OK)
"""


@needs_strace
@pytest.mark.parametrize("durability", ["on_flush", "per_apply"])
@pytest.mark.parametrize("name", ["rocksdict", "python-rocksdb"])
def test_what_is_promised_is_synced_with_its_directory_entries(
    tmp_path: Path, name: str, durability: str
) -> None:
    if name != "rocksdict":
        pytest.importorskip("aimrocks", reason="it has no wheels above Python 3.12")
    code = (
        TRACED
        + """
    for number in range(40):
        mark("write")
        store.write(WriteBatch({b"%d" % key: bytes([number]) * 100 for key in range(100)}))
        if sys.argv[3] == "on_flush" and number % 3 == 0:
            mark("flush")
            store.flush()
        mark("promised" if sys.argv[3] == "per_apply" or number % 3 == 0 else "nothing")
    """
    )
    trace = tmp_path / "trace"
    calls = "openat,write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range,access,faccessat"
    prefix = ("strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={calls}")

    run(code, str(tmp_path / "machine"), name, durability, prefix=prefix)

    dirty: set[str] = set()
    unsynced_entries: set[str] = set()
    promises = wals = 0
    for line in trace.read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        path = re.search(r"<([^>]*?/data-\d+(?:/[^>]*)?)>", line)
        if '"/mark/' in line or "/mark/" in line:
            if "promised" in line:
                promises += 1
                assert not dirty, line
                assert not unsynced_entries, line
        elif call and path:
            name_of = path[1]
            if call[1] == "openat" and "O_CREAT" in line and name_of.endswith(".log"):
                unsynced_entries.add(name_of)
                wals += 1
            elif "write" in call[1] and name_of.endswith(".log"):
                dirty.add(name_of)
            elif call[1] in ("fsync", "fdatasync"):
                dirty.discard(name_of)
                if re.search(r"/data-\d+$", name_of):
                    unsynced_entries.clear()
    assert promises > 5
    assert wals > 2


@needs_strace
@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("fault", ["fdatasync,fsync:error=EIO", "write:error=ENOSPC"])
@pytest.mark.parametrize("name", ["rocksdict", "python-rocksdb"])
def test_a_batch_that_the_disk_refused_does_not_come_back(
    tmp_path: Path, name: str, fault: str, end: str
) -> None:
    if name != "rocksdict":
        pytest.importorskip("aimrocks", reason="it has no wheels above Python 3.12")
    code = (
        TRACED
        + """
    import subprocess
    store.write(WriteBatch({b"1": b"kept"}))
    tracer = subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-e", "trace=write,fdatasync,fsync",
         "-e", "inject=" + sys.argv[4] + ":when=1", "-p", str(os.getpid())],
        stderr=subprocess.PIPE, text=True,
    )
    tracer.stderr.readline()
    # Kept: its traceback must not keep the database open.
    errors = []
    try:
        store.write(WriteBatch({b"2": b"refused" * 100}))
    except StorageError as exc:
        errors.append(exc)
    tracer.terminate()
    tracer.wait()
    print(len(errors), store.get(b"1"), store.get(b"2"), flush=True)
    if sys.argv[5] == "close":
        store.close()
        store.open()
        print(store.get(b"1"), store.get(b"2"), store.count())
    """
    )
    told = run(code, str(tmp_path / "machine"), name, "per_apply", fault, end)

    expected = "1 b'kept' None\n" + ("b'kept' None 1\n" if end == "close" else "")
    assert told == expected
    machine = create_rocksdb(tmp_path / "machine", RocksDBOptions(binding=Binding(name)))
    machine.start()
    assert machine.len() == 1
    machine.stop()
