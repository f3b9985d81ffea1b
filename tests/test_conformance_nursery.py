"""The nursery and its incubator: what they leave, who ends with them, what is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from odd_machine import exists, make_odd, nursery_of, wait_until_gone

from dengine_sm.backends.file import create_file
from dengine_sm.conformance.maker import Maker, maker_of_callable
from dengine_sm.conformance.processes import incubator, remote
from dengine_sm.conformance.processes.remote import Nursery
from dengine_sm.conformance.processes.wire import ProcessDied
from dengine_sm.conformance.violation import CannotCheckError
from dengine_sm.errors import StorageError


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_TIMEOUT_S", 0.5)


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
