"""Machines in other processes: the nursery, the remote machine, and the wire between."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dengine_sm.backends.file import create_file
from dengine_sm.backends.memory import create_memory
from dengine_sm.conformance.maker import Maker, maker_of_callable, maker_of_fixture
from dengine_sm.conformance.processes import incubator, remote
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine, ScriptReport
from dengine_sm.conformance.processes.wire import (
    ProcessDied,
    RemoteError,
    pack,
    pack_error,
    unpack,
    unpack_error,
)
from dengine_sm.conformance.violation import CannotCheckError
from dengine_sm.errors import (
    ContractViolationError,
    CorruptionError,
    LogGapError,
    StorageError,
    StorageLockedError,
)
from dengine_sm.kv import Put, encode_command
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome, ScanResult, SnapshotMetadata

ENTRY = Entry(1, 1, 0, encode_command(Put(b"k", b"v")))


class DerivedError(StorageError):
    """A backend's own kind of StorageError."""


class Namesake(Exception):  # noqa: N818 - renamed below
    """A stranger that has the name of one of ours."""


Namesake.__name__ = "StorageError"


class PanicError(BaseException):
    """What a native library raises when it panics."""


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Odd:
    """Does as a key says; the methods have the contract's names, not its meaning."""

    def __init__(self, directory: Path) -> None:
        if directory.name == "refused":
            raise StorageError("refused", path=directory)
        self.directory = directory
        self.waiting: asyncio.Event | None = None

    def start(self) -> None:
        self.lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def get(self, key: bytes) -> Any:
        return getattr(self, f"_{key.decode()}")()

    async def apply_chunk(self, chunk: Any) -> Any:
        self.waiting = asyncio.Event()
        await self.waiting.wait()
        return chunk

    def flush(self) -> None:
        assert self.waiting is not None
        self.waiting.set()

    def _value(self) -> Any:
        return b"value"

    def _die(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def _hang(self) -> Any:
        while True:
            time.sleep(3600)

    def _close_everything(self) -> Any:
        os.closerange(3, 100)
        time.sleep(3600)

    def _panic(self) -> Any:
        raise PanicError("native code panicked")

    def _exit(self) -> Any:
        sys.exit(3)

    def _derived(self) -> Any:
        raise DerivedError("no space", path=Path("/d"))

    def _unpackable(self) -> Any:
        return object()

    def _unencodable(self) -> Any:
        return "\udcff"

    def _print(self) -> Any:
        for _ in range(4000):
            print("x" * 100)
        sys.stdout.flush()
        return b"printed"

    def _read_stdin(self) -> Any:
        return os.read(0, 100)

    def _thread(self) -> Any:
        return threading.current_thread() is threading.main_thread()

    def _inline(self) -> Any:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(threading.get_ident()))
        thread.start()
        thread.join()
        return seen == [threading.get_ident()]

    def _write(self) -> Any:
        with (self.directory / "file").open("wb") as file:
            file.write(bytes(10_000))

    def _hash(self) -> Any:
        return hash("odd")

    def _environment(self) -> Any:
        return [os.environ.get("ODD_SET"), os.environ.get("ODD_UNSET")]


def make_odd(directory: Path) -> Odd:
    return Odd(directory)


@pytest.fixture(scope="module")
def shared_nursery() -> Iterator[Nursery]:
    with nursery_of(make_odd) as nursery:
        yield nursery


@pytest.fixture
def machine(shared_nursery: Nursery, tmp_path: Path) -> Iterator[RemoteMachine]:
    machine = shared_nursery.spawn(tmp_path)
    yield machine
    machine.kill()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_TIMEOUT_S", 0.5)


def nursery_of(factory: Any, environment: Any = None) -> Nursery:
    maker = maker_of_callable(factory)
    assert maker is not None
    return Nursery(maker, environment)


def open_descriptors() -> int:
    """Count those of this process, the shared incubator's always among them."""
    incubator._shared_incubator()
    return len(list(Path("/proc/self/fd").iterdir()))


def pid_of(nursery: Nursery) -> int:
    assert nursery._process is not None
    return nursery._process.pid


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/stat").read_text()
    return int(status.rpartition(")")[2].split()[1])


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 30)[0], f"{pid} lives on"
        finally:
            os.close(pidfd)


def lock(directory: Path) -> None:
    """Take the lock that `Odd.start` takes; fails at once if it is held."""
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            0,
            -(2**70),
            b"\x00\xff",
            "text",
            ["list", [1, [None]]],
            {"a": 1, b"b": {"c": []}},
            Path("/a/b"),
            LogId(2, 3),
            Entry(1, 2, 3, b"data"),
            ApplyResult(1, Outcome.REJECTED, None),
            SnapshotMetadata(LogId(1, 2), b"c" * 32, "kv-portable/1"),
            ScanResult(((b"a", b"b"), (b"", b"")), LogId(1, 2)),
            ["entry", 1, 2, 3, b"not one"],
        ],
    )
    def test_come_back_equal(self, value: Any):
        assert unpack(pack(value)) == value

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ((1, (2,)), [1, [2]]),
            (bytearray(b"ab"), b"ab"),
            (memoryview(b"ab"), b"ab"),
            (range(3), [0, 1, 2]),
            (Entry(1, 1, 1, bytearray(b"x")), Entry(1, 1, 1, b"x")),  # type: ignore[arg-type]
        ],
    )
    def test_of_like_types_come_back_plain(self, value: Any, expected: Any):
        assert unpack(pack(value)) == expected

    @pytest.mark.parametrize("value", [object(), 1.5, [{1, 2}]])
    def test_of_other_types_are_refused(self, value: Any):
        with pytest.raises(TypeError, match="does not travel between processes"):
            pack(value)

    def test_that_were_not_packed_are_refused(self):
        with pytest.raises(ValueError, match="not a packed value"):
            unpack(["what", 1])

    def test_of_many_bytes_travel(self, machine: RemoteMachine, tmp_path: Path):
        big = os.urandom(3_000_000)
        machine.begin("task", "apply_chunk", [big])
        machine.flush()

        assert machine.finish("task") == [big]


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            CorruptionError("torn", path=Path("/d/log"), offset=7),
            LogGapError("gap", expected_index=3, observed_index=9),
            ContractViolationError("broken", name="b", findings=["one"]),
        ],
    )
    def test_of_ours_keep_class_text_and_attributes(self, error: Exception):
        again = unpack_error(pack_error(error, "Traceback"))

        assert type(again) is type(error)
        assert str(again) == str(error)
        kept = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(error).items()
        }
        assert {name: vars(again)[name] for name in kept} == kept
        assert again.__notes__ == ["in the machine's process:\nTraceback"]

    def test_derived_from_ours_are_ours(self):
        again = unpack_error(pack_error(DerivedError("full", path=Path("/d"))))

        assert (type(again), str(again)) == (StorageError, "full")
        assert again.path == Path("/d")

    def test_of_strangers_are_not_ours_whatever_their_name(self):
        again = unpack_error(pack_error(Namesake("boo")))

        assert isinstance(again, RemoteError)
        assert (again.name, str(again)) == ("StorageError", "StorageError: boo")

    def test_lose_only_attributes_that_do_not_travel(self):
        error = LogGapError("gap", expected_index=3)
        error.odd = object()  # type: ignore[attr-defined]
        error.text = "\udcff"  # type: ignore[attr-defined]
        error.loop = [error]  # type: ignore[attr-defined]

        again = unpack_error(pack_error(error))

        assert again.expected_index == 3  # type: ignore[attr-defined]
        assert not {"odd", "text", "loop"} & set(vars(again))

    def test_travel_with_names_of_files_that_are_no_text(self):
        error = unpack_error(pack_error(StorageError("'/d/\udcff' is full")))

        assert str(error) == r"'/d/\udcff' is full"

    def test_travel_without_a_text_of_their_own(self):
        error = unpack_error(pack_error(SpeechlessError()))

        assert str(error) == "SpeechlessError: (its text cannot be had: ValueError)"

    def test_keep_their_notes(self):
        error = StorageError("full")
        error.add_note("while syncing")

        assert unpack_error(pack_error(error)).__notes__[0] == "while syncing"

    def test_arrive_and_the_machine_goes_on(self, machine: RemoteMachine):
        with pytest.raises(StorageError, match="no space") as caught:
            machine.get(b"derived")

        assert caught.value.path == Path("/d")
        assert "DerivedError: no space" in caught.value.__notes__[0]
        assert machine.get(b"value") == b"value"

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            (b"panic", "PanicError: native code panicked"),
            (b"exit", "SystemExit: 3"),
            (b"unpackable", "TypeError: object <object object"),
            (b"unencodable", "UnicodeEncodeError"),
            (b"never_heard", "AttributeError"),
        ],
    )
    def test_of_any_kind_are_answers(self, machine: RemoteMachine, key: bytes, expected: str):
        with pytest.raises(RemoteError, match=f"^{expected}"):
            machine.get(key)

        assert machine.get(b"value") == b"value"


class TestCalls:
    def test_reach_a_real_machine(self, tmp_path: Path):
        with nursery_of(create_memory) as nursery:
            machine = nursery.spawn(tmp_path)
            machine.start()

            results = machine.apply_chunk([ENTRY])

            assert results == [ApplyResult(1, Outcome.APPLIED, None)]
            assert machine.get(b"k") == b"v"
            assert machine.scan_prefix(b"", limit=1).last_applied == LogId(1, 1)
            assert machine.pid != os.getpid()

    def test_of_methods_that_the_machine_lacks_are_attribute_errors(self, machine: RemoteMachine):
        assert not hasattr(machine, "scan_prefix")
        with pytest.raises(AttributeError, match="the machine has no method 'scan_prefix'"):
            machine.scan_prefix(b"")

    def test_can_be_made_in_a_thread(self, machine: RemoteMachine):
        assert machine.get(b"thread") is True
        assert machine.call_in_thread("get", b"thread") is False

    def test_of_an_async_method_can_be_begun_and_finished(self, machine: RemoteMachine):
        machine.begin("task", "apply_chunk", [1])
        assert machine.get(b"value") == b"value"
        machine.flush()

        assert machine.finish("task") == [1]

    def test_of_a_function_are_made_beside_the_machine(self, machine: RemoteMachine):
        assert "Odd object at" in machine.run(repr)
        with pytest.raises(RemoteError, match="ModuleNotFoundError"):
            machine.request("run", "no_such_module:function")

    def test_are_not_held_up_by_what_the_machine_prints(self, machine: RemoteMachine):
        assert machine.get(b"print") == b"printed"

    def test_find_nothing_on_stdin(self, machine: RemoteMachine):
        assert machine.get(b"read_stdin") == b""


class TestPreparations:
    def test_come_before_the_machine(self, shared_nursery: Nursery, tmp_path: Path):
        machine = shared_nursery.spawn(tmp_path, ("one_thread_only",), ("limit_file_size", 4096))

        assert machine.get(b"inline") is True
        with pytest.raises(RemoteError, match="File too large"):
            machine.get(b"write")
        machine.prepare("lift_file_size_limit")
        machine.get(b"write")

    def test_limits_keep_within_the_processes_own(self, tmp_path: Path):
        maker = maker_of_callable(make_odd)
        assert maker is not None
        code = textwrap.dedent(f"""
            import resource, sys
            from pathlib import Path
            from dengine_sm.conformance.maker import Maker
            from dengine_sm.conformance.processes.remote import Nursery
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
            resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
            with Nursery(Maker.from_json({maker.to_json()!r})) as nursery:
                machine = nursery.spawn(Path({str(tmp_path)!r}))
                machine.prepare("obey_permissions")
                machine.prepare("limit_file_size", 4096)
                machine.prepare("lift_file_size_limit")
                machine.prepare("limit_address_space", 1 << 30)
                machine.get(b"write")
        """)

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert done.stderr == ""

    def test_environment_is_set_and_unset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("ODD_UNSET", "here")
        with nursery_of(make_odd, {"ODD_SET": "there", "ODD_UNSET": None}) as nursery:
            assert nursery.spawn(tmp_path).get(b"environment") == ["there", None]


class TestKill:
    def test_is_sudden_and_frees_the_lock(self, tmp_path: Path):
        with nursery_of(create_file) as nursery:
            machine = nursery.spawn(tmp_path / "data")
            machine.start()
            with pytest.raises(StorageLockedError):
                create_file(tmp_path / "data").start()

            machine.kill()

            here = create_file(tmp_path / "data")
            here.start()
            here.stop()

    def test_leaves_no_process_not_even_a_zombie(self, machine: RemoteMachine):
        machine.kill()

        assert not exists(machine.pid)

    def test_is_idempotent(self, machine: RemoteMachine):
        machine.kill()
        machine.kill()
        machine.send_signal(signal.SIGTERM)
        machine.wait_until_dead()

    def test_ends_a_machine_that_is_busy_or_stopped(self, machine: RemoteMachine):
        machine.begin_script([("get", [b"hang"], False)])
        assert next(machine.script_events()) == ("begin", 0)
        machine.send_signal(signal.SIGSTOP)

        machine.kill()

        assert not exists(machine.pid)

    def test_makes_later_calls_say_so(self, machine: RemoteMachine):
        machine.kill()

        with pytest.raises(ProcessDied, match=f"the machine's process {machine.pid} is gone"):
            machine.get(b"value")

    def test_works_with_more_than_1024_descriptors(self, shared_nursery: Nursery, tmp_path: Path):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 4096:
            pytest.skip("too few descriptors are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        try:
            machine = shared_nursery.spawn(tmp_path)
            machine.kill()
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert not exists(machine.pid)


class TestDeath:
    def test_is_told_with_what_was_said_last(self, tmp_path: Path):
        with nursery_of(make_odd) as nursery:
            machine = nursery.spawn(tmp_path)
            machine.get(b"print")

            with pytest.raises(ProcessDied) as caught:
                machine.get(b"die")

        assert caught.value.stderr.endswith("x" * 100)
        assert str(caught.value).startswith(f"the machine's process {machine.pid} is gone: x")

    def test_is_over_when_it_is_told(self, shared_nursery: Nursery, tmp_path: Path):
        for number in range(30):
            machine = shared_nursery.spawn(tmp_path)
            machine.start()

            if number % 2:
                machine.begin_script([("get", [b"die"], False)])
                assert not machine.script_report(1).is_done
            else:
                with pytest.raises(ProcessDied):
                    machine.get(b"die")

            lock(tmp_path)
            assert not exists(machine.pid)

    def test_is_what_a_closed_connection_means(self, machine: RemoteMachine):
        with pytest.raises(ProcessDied):
            machine.get(b"close_everything")

        assert not exists(machine.pid)

    def test_of_one_machine_leaves_the_others(self, shared_nursery: Nursery, tmp_path: Path):
        one, other = shared_nursery.spawn(tmp_path), shared_nursery.spawn(tmp_path)
        one.kill()

        assert other.get(b"value") == b"value"
        assert shared_nursery.spawn(tmp_path).get(b"value") == b"value"

    def test_ends_a_silent_machine(self, machine: RemoteMachine, patience: None):
        machine._connection.settimeout(remote.ANSWER_TIMEOUT_S)

        with pytest.raises(AssertionError, match="the machine's process gave no answer for 0 s"):
            machine.get(b"hang")

        assert not exists(machine.pid)

    def test_ends_a_machine_that_does_not_listen(self, machine: RemoteMachine, patience: None):
        machine._connection.settimeout(remote.ANSWER_TIMEOUT_S)
        machine.send_signal(signal.SIGSTOP)

        with pytest.raises(AssertionError, match="gave no answer"):
            machine.apply_chunk([bytes(10_000_000)])

        assert not exists(machine.pid)

    def test_that_does_not_come_is_told(self, machine: RemoteMachine, patience: None):
        with pytest.raises(AssertionError, match=f"process {machine.pid} did not end within 0 s"):
            machine.wait_until_dead()

        wait_until_gone(machine.pid)


class TestScripts:
    def run(self, machine: RemoteMachine, *keys: bytes, may_fail: bool = False) -> ScriptReport:
        machine.begin_script([("get", [key], may_fail) for key in keys])
        return machine.script_report(len(keys))

    def test_tell_of_every_step(self, machine: RemoteMachine):
        seen = []
        machine.begin_script([("get", [b"value"], False)] * 2)

        report = machine.script_report(2, on_event=lambda kind, step: seen.append((kind, step)))

        assert report.is_done
        assert report.ended == 2
        assert [step.value for step in report.steps] == [b"value", b"value"]
        assert seen == [("begin", 0), ("end", 0), ("begin", 1), ("end", 1), ("done", 2)]
        assert machine.get(b"value") == b"value"

    def test_yield_their_events(self, machine: RemoteMachine):
        machine.begin_script([("get", [b"derived"], True)])

        assert list(machine.script_events()) == [("begin", 0), ("error", 0), ("done", 1)]

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            (b"derived", StorageError),
            (b"panic", RemoteError),
            (b"unpackable", RemoteError),
            (b"unencodable", RemoteError),
        ],
    )
    def test_end_at_an_error(self, machine: RemoteMachine, key: bytes, error: type[Exception]):
        report = self.run(machine, b"value", key, b"value")

        first, failed, never = report.steps
        assert report.is_done
        assert (first.ended, failed.ended, never.begun) == (True, False, False)
        assert isinstance(failed.error, error)
        assert machine.get(b"value") == b"value"

    def test_go_on_after_an_error_that_may_be(self, machine: RemoteMachine):
        report = self.run(machine, b"derived", b"panic", b"value", may_fail=True)

        assert [step.ended for step in report.steps] == [False, False, True]

    def test_report_what_was_begun_when_the_process_died(self, machine: RemoteMachine):
        report = self.run(machine, b"value", b"die", b"value")

        assert not report.is_done
        assert [(step.begun, step.ended) for step in report.steps] == [
            (True, True),
            (True, False),
            (False, False),
        ]
        assert not exists(machine.pid)

    def test_can_be_killed_at_an_event(self, machine: RemoteMachine):
        machine.begin_script([("get", [b"value"], False), ("get", [b"hang"], False)])

        events = []
        for event in machine.script_events():
            events.append(event)
            if event == ("begin", 1):
                machine.kill()

        assert events == [("begin", 0), ("end", 0), ("begin", 1)]

    def test_that_cannot_be_read_are_errors(self, machine: RemoteMachine):
        machine._send(["script", "", pack([[["a method without arguments"]]]), pack({})])

        with pytest.raises(RemoteError, match="ValueError"):
            machine.script_report(1)

    def test_with_an_error_leave_the_machine_ready(self, machine: RemoteMachine):
        self.run(machine, b"panic")

        assert self.run(machine, b"value").ended == 1


class TestNursery:
    def test_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        descriptors = open_descriptors()

        with nursery_of(make_odd) as nursery:
            machines = [nursery.spawn(tmp_path) for _ in range(3)]
            machines[0].kill()
            machines[1].send_signal(signal.SIGSTOP)
            machines[2].begin_script([("get", [b"hang"], False)])
            pid = pid_of(nursery)

        assert not exists(pid)
        assert [exists(machine.pid) for machine in machines] == [False] * 3
        assert open_descriptors() == descriptors
        assert list(tmp_path.glob("dengine-sm-nursery-*")) == []

    def test_passes_on_what_the_factory_raises(self, tmp_path: Path):
        with nursery_of(make_odd) as nursery:
            with pytest.raises(StorageError, match="refused") as caught:
                nursery.spawn(tmp_path / "refused")

            assert caught.value.path == tmp_path / "refused"
            assert nursery.spawn(tmp_path).get(b"value") == b"value"

    @pytest.mark.parametrize(
        ("maker", "expected"),
        [
            (Maker("function", "f", "no_such_module"), "No module named 'no_such_module'"),
            (Maker("function", "f", "json"), "module 'json' has no attribute 'f'"),
            (Maker("function", "f", "gone", "/nowhere/gone.py"), "No such file"),
            (Maker("installed", "no-such-backend"), "no state machine backend named"),
        ],
    )
    def test_without_a_factory_cannot_check(
        self, maker: Maker, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        descriptors = open_descriptors()
        nursery = Nursery(maker)

        with pytest.raises(CannotCheckError) as caught, nursery:
            pass

        said = str(caught.value)
        assert said.startswith(f"another process cannot construct the machine ({maker.name}): ")
        assert expected in said
        assert "\n" not in said
        assert open_descriptors() == descriptors
        assert list(tmp_path.iterdir()) == []

    def test_does_not_wait_forever_for_an_import(self, tmp_path: Path, patience: None):
        module = tmp_path / "slow_module.py"
        module.write_text("import time\ntime.sleep(3600)\n")
        nursery = Nursery(Maker("function", "f", "slow_module", str(module)))

        with pytest.raises(CannotCheckError, match="importing it took more than 0 s"), nursery:
            pass

        assert nursery._process is None

    def test_does_not_mind_a_module_that_prints(self, tmp_path: Path):
        module = tmp_path / "printing_module.py"
        module.write_text(
            "print('loading')\nfrom dengine_sm.backends.memory import create_memory as f\n"
        )

        with Nursery(Maker("function", "f", "printing_module", str(module))) as nursery:
            assert nursery.spawn(tmp_path).is_running() is False

    def test_does_not_mind_a_long_temporary_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        deep = tmp_path / ("d" * 100) / ("e" * 100)
        deep.mkdir(parents=True)
        monkeypatch.setattr("tempfile.tempdir", str(deep))

        with nursery_of(make_odd) as nursery:
            assert nursery.spawn(tmp_path).get(b"value") == b"value"

    def test_that_was_killed_is_told_of(self, tmp_path: Path):
        with nursery_of(make_odd) as nursery:
            assert nursery._process is not None
            nursery._process.send_signal(signal.SIGKILL)
            nursery._process.wait(30)

            with pytest.raises(ProcessDied, match="the nursery is gone"):
                nursery.spawn(tmp_path)

    def test_dies_with_the_kit_and_so_do_its_machines(self, tmp_path: Path):
        maker = maker_of_callable(make_odd)
        assert maker is not None
        code = textwrap.dedent(f"""
            import os, signal
            from pathlib import Path
            from dengine_sm.conformance.maker import Maker
            from dengine_sm.conformance.processes.remote import Nursery
            nursery = Nursery(Maker.from_json({maker.to_json()!r})).__enter__()
            machines = [nursery.spawn(Path({str(tmp_path)!r})) for _ in range(3)]
            machines[0].begin_script([("get", [b"hang"], False)])
            machines[1].send_signal(signal.SIGSTOP)
            print(nursery._process.pid, *(machine.pid for machine in machines), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        pids = [int(word) for word in done.stdout.split()]
        assert len(pids) == 4, done.stderr
        for pid in pids:
            wait_until_gone(pid)


class TestIncubator:
    def test_is_shared_and_imports_once(self):
        with nursery_of(make_odd) as one, nursery_of(create_file) as other:
            assert parent_of(pid_of(one)) == parent_of(pid_of(other)) != os.getpid()

    def test_a_variable_that_interpreters_read_when_they_start_needs_another_one(
        self, tmp_path: Path
    ):
        with nursery_of(make_odd, {"PYTHONHASHSEED": "7"}) as one, nursery_of(make_odd) as other:
            own = parent_of(pid_of(one))
            assert own not in (parent_of(pid_of(other)), os.getpid())
            seen = one.spawn(tmp_path).get(b"hash")

        assert not exists(own)
        code = "import sys; sys.stdout.write(str(hash('odd')))"
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
        assert seen == int(done.stdout)

    def test_of_which_only_another_variable_differs_is_the_shared_one(self):
        with nursery_of(make_odd, {"ODD_SET": "1"}) as one, nursery_of(make_odd) as other:
            assert parent_of(pid_of(one)) == parent_of(pid_of(other))

    def test_nurseries_are_where_the_kit_is_by_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        incubator._shared_incubator()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ODD_SET", "since then")
        (tmp_path / "since_then.py").write_text(
            "import os\n"
            "class Machine:\n"
            "    def __init__(self, directory): pass\n"
            "    def get(self, key): return [os.getcwd(), os.environ['ODD_SET']]\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

        with Nursery(Maker("function", "Machine", "since_then")) as nursery:
            found = nursery.spawn(tmp_path).get(b"")

        assert found == [str(tmp_path), "since then"]

    def test_in_a_directory_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()

        with nursery_of(make_odd) as nursery:
            assert nursery.spawn(tmp_path).get(b"value") == b"value"

    def test_that_was_killed_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(incubator, "_shared", None)  # others go on with theirs
        with nursery_of(make_odd) as nursery:
            killed = parent_of(pid_of(nursery))
            os.kill(killed, signal.SIGKILL)
            wait_until_gone(pid_of(nursery))

        with nursery_of(make_odd) as nursery:
            assert parent_of(pid_of(nursery)) != killed
            assert nursery.spawn(tmp_path).get(b"value") == b"value"
        incubator._shared_incubator().close()

    def test_does_not_hear_a_ctrl_c(self):
        shared = incubator._shared_incubator()

        assert os.getsid(shared._process.pid) != os.getsid(0)

    def test_a_fork_of_the_kit_has_its_own(self, tmp_path: Path):
        shared = incubator._shared_incubator()
        maker = maker_of_callable(make_odd)
        assert maker is not None
        code = textwrap.dedent(f"""
            import os
            from pathlib import Path
            from dengine_sm.conformance.maker import Maker
            from dengine_sm.conformance.processes.remote import Nursery

            def look():
                with Nursery(Maker.from_json({maker.to_json()!r})) as nursery:
                    machine = nursery.spawn(Path({str(tmp_path)!r}))
                    assert machine.get(b"value") == b"value"

            look()
            child = os.fork()
            look()
            if child:
                _, status = os.waitpid(child, 0)
                look()
                print(status)
        """)

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert (done.stdout, done.stderr) == ("0\n", "")
        assert shared.is_usable()


class TestMakers:
    """Where another process finds what a test file, a package or a script has made."""

    def value(self, maker: Maker | None, directory: Path) -> Any:
        assert maker is not None
        with Nursery(maker) as nursery:
            return nursery.spawn(directory).get(b"k")

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    MACHINE = """
        class Machine:
            def __init__(self, directory): pass
            def get(self, key): return b"found"
    """

    def test_a_function_of_this_test_file(self, machine: RemoteMachine):
        assert machine.get(b"value") == b"value"

    def test_an_installed_backend(self, tmp_path: Path):
        maker = Maker("installed", "file", options={"durability": "per_apply"})

        with Nursery(maker) as nursery:
            machine = nursery.spawn(tmp_path / "data")
            machine.start()
            assert machine.len() == 0

    def test_a_module_that_only_this_process_has_on_its_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        self.write(tmp_path / "lib" / "only_here_helper.py", self.MACHINE)
        self.write(tmp_path / "lib" / "only_here.py", "from only_here_helper import Machine\n")
        monkeypatch.syspath_prepend(str(tmp_path / "lib"))
        import only_here

        assert self.value(maker_of_callable(only_here.Machine), tmp_path) == b"found"

    def test_a_test_file_beside_its_helper(self, tmp_path: Path):
        self.write(tmp_path / "helper_beside.py", self.MACHINE)
        file = self.write(tmp_path / "test_it.py", "from helper_beside import Machine\n")

        maker = Maker("function", "Machine", "tests.odd.test_it", str(file))

        assert self.value(maker, tmp_path) == b"found"

    def test_a_test_file_in_a_package(self, tmp_path: Path):
        self.write(tmp_path / "root" / "suite_pkg" / "__init__.py", "")
        self.write(tmp_path / "root" / "suite_pkg" / "helper.py", self.MACHINE)
        file = self.write(
            tmp_path / "root" / "suite_pkg" / "unit" / "test_it.py", "from ..helper import Machine"
        )
        self.write(file.parent / "__init__.py", "")

        maker = Maker("function", "Machine", "whatever.pytest.says", str(file))

        assert self.value(maker, tmp_path) == b"found"

    def test_a_file_whose_name_is_taken(self, tmp_path: Path):
        file = self.write(tmp_path / "json.py", self.MACHINE)

        maker = Maker("function", "Machine", "json", str(file))

        assert self.value(maker, tmp_path) == b"found"

    def test_a_fixture_of_a_test_class(self, tmp_path: Path):
        file = self.write(
            tmp_path / "test_fixture.py",
            """
            import pytest

            class Machine:
                def __init__(self, directory, word): self.word = word
                def get(self, key): return self.word

            class TestIt:
                @pytest.fixture
                def open_state_machine(self):
                    return lambda directory: Machine(directory, b"closure")
            """,
        )

        maker = Maker("fixture", "TestIt", "test_fixture", str(file))

        assert self.value(maker, tmp_path) == b"closure"

    def run_script(self, path: Path, tail: str) -> subprocess.CompletedProcess[str]:
        header = """
            from pathlib import Path
            from dengine_sm.conformance.maker import maker_of_callable
            from dengine_sm.conformance.processes.remote import Nursery

            class Machine:
                def __init__(self, directory): pass
                def get(self, key): return b"found"

            def main():
                with Nursery(maker_of_callable(Machine)) as nursery:
                    print(nursery.spawn(Path(".")).get(b"k"))
        """
        self.write(path, textwrap.dedent(header) + tail)
        return subprocess.run(
            [sys.executable, path], capture_output=True, text=True, timeout=60, cwd=path.parent
        )

    def test_a_script(self, tmp_path: Path):
        done = self.run_script(tmp_path / "script.py", "if __name__ == '__main__':\n    main()\n")

        assert (done.stdout, done.stderr) == ("b'found'\n", "")

    def test_a_script_that_would_run_itself_again(self, tmp_path: Path):
        done = self.run_script(tmp_path / "script.py", "main()\n")

        assert done.returncode == 1
        assert "put that under: if __name__ == '__main__':" in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize(
        "factory", [lambda directory: None, Odd(Path("x")).get, SimpleNamespace()]
    )
    def test_what_has_no_name_of_its_own_is_not_found(self, factory: Any):
        assert maker_of_callable(factory) is None

    def test_a_fixture_that_asks_for_others_is_not_found(self):
        class Asks:
            @pytest.fixture
            def open_state_machine(self, tmp_path: Path) -> Any:
                return None

        assert maker_of_fixture(Asks) is None
