"""Machines in other processes: calls, scripts, kills and deaths."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from odd_machine import exists, make_odd, nursery_of, wait_until_gone

from dengine_sm.backends.file import create_file
from dengine_sm.backends.memory import create_memory
from dengine_sm.conformance.maker import maker_of_callable
from dengine_sm.conformance.processes import remote
from dengine_sm.conformance.processes.remote import Nursery, RemoteMachine, ScriptReport
from dengine_sm.conformance.processes.wire import ProcessDied, RemoteError, pack
from dengine_sm.errors import StorageError, StorageLockedError
from dengine_sm.kv import Put, encode_command
from dengine_sm.model import ApplyResult, Entry, LogId, Outcome

ENTRY = Entry(1, 1, 0, encode_command(Put(b"k", b"v")))


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


def lock(directory: Path) -> None:
    """Take the lock that `Odd.start` takes; fails at once if it is held."""
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
