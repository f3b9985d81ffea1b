"""The command line against real nodes: `run`, client commands, `load`."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dengine_sm.cli import exit_codes, main

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "examples" / "data" / "raft-history.ndjson.gz"
ORACLE = ROOT / "examples" / "data" / "raft-history.oracle.json"
LIMIT_FILE_SIZE = (
    "import os, resource, sys; size = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)

FAILING_BACKEND = """
from dengine_sm import Backend, StorageError, hookimpl
from dengine_sm.kv import KeyValueStateMachine, RamStore

class Fails(KeyValueStateMachine):
    async def apply_chunk(self, chunk):
        raise StorageError("the disk is gone")

@hookimpl
def dengine_sm_backends():
    return [Backend("fails", lambda directory, options: Fails(RamStore()))]
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("DENGINE_SM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def dengine_sm(*arguments: str | Path, text: bool = True) -> subprocess.CompletedProcess[Any]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "dengine_sm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=text, timeout=60, check=False)


class RunningNode:
    """A `dengine-sm run` process that said it is ready."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.target: str = ready["listen"]

    def call(self, *arguments: str | Path) -> Result:
        """Run a client command in this process."""
        return call(*arguments, "--target", self.target)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what went to stderr."""
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr


@contextmanager
def running(
    data_dir: Path, *, listen: str = "127.0.0.1:0", largest_file_bytes: int | None = None
) -> Iterator[RunningNode]:
    command = []
    if largest_file_bytes is not None:
        command = [sys.executable, "-c", LIMIT_FILE_SIZE, str(largest_file_bytes)]
    command += [sys.executable, "-W", "error", "-m", "dengine_sm.cli", "run", "--json"]
    command += ["--data-dir", str(data_dir), "--listen", listen]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=30)[1]
            yield RunningNode(process, json.loads(line))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """One node for the tests that leave it running; each has keys of its own."""
    with running(tmp_path_factory.mktemp("node") / "data") as started:
        yield started


def write_history(path: Path, *records: dict[str, Any] | str) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def digest(node: RunningNode) -> tuple[int, str]:
    """Return what the oracle says of a state: entries, and sha256 over them."""
    entries = events(node.call("dump"))
    text = "".join(f"{entry['key']}\t{entry['value']}\n" for entry in entries)
    return len(entries), hashlib.sha256(text.encode()).hexdigest()


class TestClientCommands:
    def test_puts_gets_and_deletes(self, node: RunningNode) -> None:
        assert node.call("put", "a/1", "value").exit_code == 0
        assert node.call("get", "a/1").stdout == "value\n"
        assert node.call("delete", "a/1").exit_code == 0
        assert node.call("delete", "a/1").exit_code == 0
        absent = node.call("get", "a/1")

        assert (absent.exit_code, absent.stdout) == (exit_codes.NEGATIVE, "")
        assert absent.stderr == "key 'a/1' is absent\n"

    def test_get_tells_an_empty_value_from_an_absent_key(self, node: RunningNode) -> None:
        node.call("put", "b/empty", "")

        empty, absent = node.call("get", "b/empty", "--json"), node.call("get", "b/no", "--json")

        assert json.loads(empty.stdout) == {"key": "b/empty", "found": True, "value": ""}
        assert json.loads(absent.stdout) == {"key": "b/no", "found": False, "value": None}
        assert (empty.exit_code, absent.exit_code) == (0, exit_codes.NEGATIVE)

    def test_a_key_with_time_to_live_is_gone_in_log_time(self, node: RunningNode) -> None:
        node.call("put", "c/ttl", "x", "--ttl", "0.001")
        while (answer := node.call("get", "c/ttl")).exit_code == 0:
            node.call("put", "c/other", "x")

        assert answer.exit_code == exit_codes.NEGATIVE

    def test_swaps_only_what_is_expected(self, node: RunningNode) -> None:
        codes = [
            node.call("cas", "d/k", *arguments).exit_code
            for arguments in (
                ["--absent", "--new", "1"],
                ["--absent", "--new", "2"],
                ["--expected", "2", "--new", "3"],
                ["--expected", "1", "--new", "4"],
                ["--expected", "1", "--delete"],
                ["--expected", "4", "--delete"],
                ["--absent", "--new", "5"],
            )
        ]

        assert codes == [0, 1, 1, 0, 1, 0, 0]
        assert json.loads(node.call("cas", "d/k", "--absent", "--new", "6", "--json").stdout) == {
            "key": "d/k",
            "swapped": False,
        }
        assert node.call("get", "d/k").stdout == "5\n"

    def test_scans_a_prefix_up_to_a_limit(self, node: RunningNode) -> None:
        for key in ("e/2", "e/1", "e/3", "f"):
            node.call("put", key, f"v{key}")

        whole = node.call("scan", "e/", "--json")
        part = node.call("scan", "e/", "--limit", "2", "--json")

        assert events(whole) == [{"key": f"e/{i}", "value": f"ve/{i}"} for i in (1, 2, 3)]
        assert whole.stderr == ""
        assert events(part) == [{"key": f"e/{i}", "value": f"ve/{i}"} for i in (1, 2)]
        assert part.stderr.startswith("there are more than 2 entries")
        assert "3 entries at index" in node.call("scan", "e/").stdout

    def test_arguments_and_dump_carry_any_bytes(self, node: RunningNode, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "dengine_sm.cli", "put", "--target", node.target]
        done = subprocess.run([*command, b"g/\xff", b"\x80\xc3\xbc"], check=False)
        dumped = node.call("dump", "g/")
        (tmp_path / "dump").write_text(dumped.stdout)
        node.call("delete", "g/\udcff")
        loaded = node.call("load", tmp_path / "dump")

        assert (done.returncode, loaded.exit_code) == (0, 0)
        assert events(dumped) == [
            {
                "op": "put",
                "key": "Zy//",
                "key_base64": True,
                "value": "gMO8",
                "value_base64": True,
            }
        ]
        assert node.call("dump", "g/").stdout == dumped.stdout
        raw = dengine_sm("get", "g/\udcff", "--target", node.target, text=False)
        assert raw.stdout == b"\x80\xc3\xbc\n"

    def test_status_and_snapshot(self, node: RunningNode) -> None:
        node.call("put", "h", "x")

        taken = json.loads(node.call("snapshot", "--json").stdout)
        status = json.loads(node.call("status", "--json").stdout)

        assert taken.pop("taken") is True
        assert status["snapshot"] == taken
        assert status["running"] is True
        assert status["name"] == "node-1"
        assert "last_applied.index" in node.call("status").stdout
        assert node.call("snapshot").exit_code == 0

    def test_a_value_over_the_limit_is_refused(self, node: RunningNode, tmp_path: Path) -> None:
        huge = {"op": "put", "key": "i/huge", "value": "x" * (16 * 1024 * 1024 + 1)}
        path = write_history(tmp_path / "h", huge, {"op": "put", "key": "i/k", "value": "v"})

        result = node.call("load", path, "--json")

        assert result.exit_code == exit_codes.NEGATIVE
        refused = [event for event in events(result) if event["event"] == "refused"]
        assert refused == [
            {"event": "refused", "line": 1, "problem": "rejected by the state machine"}
        ]
        assert node.call("get", "i/k").stdout == "v\n"
        assert node.call("get", "i/huge").exit_code == exit_codes.NEGATIVE


class TestLoad:
    def test_bad_lines_are_reported_and_all_others_loaded(
        self, node: RunningNode, tmp_path: Path
    ) -> None:
        path = write_history(
            tmp_path / "h",
            {"op": "put", "key": "l/1", "value": "1"},
            "{",
            "",
            {"op": "put", "key": "l/2", "value": "2", "colour": "red"},
            {"op": "put", "key": "l/3", "value": "3"},
        )

        result = node.call("load", path)

        assert result.exit_code == exit_codes.NEGATIVE
        assert result.stdout == "5 lines: 2 commands acknowledged, 2 lines refused\n"
        assert re.findall(r"^line (\d+): ", result.stderr, re.MULTILINE) == ["2", "4"]
        assert [e["key"] for e in events(node.call("scan", "l/", "--json"))] == ["l/1", "l/3"]

    def test_goes_on_after_the_lines_acknowledged_earlier(
        self, node: RunningNode, tmp_path: Path
    ) -> None:
        records = [{"op": "put", "key": "m/k", "value": str(i)} for i in range(1, 6)]
        path = write_history(tmp_path / "h", *records)

        node.call("load", path, "--until-line", "3")
        node.call("put", "m/k", "changed")
        nothing = node.call("load", path, "--until-line", "3", "--json")
        unchanged = node.call("get", "m/k").stdout
        rest = node.call("load", path, "--batch", "1", "--json")

        assert [e["event"] for e in events(nothing)] == ["resumed", "done"]
        assert unchanged == "changed\n"
        assert [e["lines"] for e in events(rest)] == [3, 4, 5, 5]
        assert node.call("get", "m/k").stdout == "5\n"
        again = node.call("load", path, "--restart", "--json")
        assert [e["event"] for e in events(again)] == ["progress", "done"]

    def test_refused_lines_are_still_counted_after_a_resume(
        self, node: RunningNode, tmp_path: Path
    ) -> None:
        path = write_history(tmp_path / "h", "{", {"op": "delete", "key": "n"})

        first = node.call("load", path, "--until-line", "1")
        second = node.call("load", path)

        assert (first.exit_code, second.exit_code) == (1, 1)
        assert second.stdout == "2 lines: 1 commands acknowledged, 1 lines refused\n"

    def test_a_damaged_file_is_loaded_up_to_the_damage(
        self, node: RunningNode, tmp_path: Path
    ) -> None:
        path = tmp_path / "h.gz"
        lines = b"".join(
            b'{"op": "put", "key": "o/%d", "value": "%s"}\n' % (i, os.urandom(32).hex().encode())
            for i in range(2000)
        )
        path.write_bytes(gzip.compress(lines)[:-20_000])

        result = node.call("load", path)

        assert result.exit_code == exit_codes.STORAGE
        number = int(re.findall(r"cannot be read after line (\d+)", result.stderr)[0])
        assert f"{number} lines are done with" in result.stderr
        assert len(events(node.call("dump", "o/"))) == number > 100

    def test_refuses_progress_that_this_server_cannot_know(self, tmp_path: Path) -> None:
        path = write_history(tmp_path / "h", {"op": "put", "key": "k", "value": "v"})
        progress = tmp_path / "progress"
        with running(tmp_path / "one") as one:
            one.call("load", path, "--resume-file", progress)
            target = one.target
        with running(tmp_path / "two", listen=target) as two:
            refused = two.call("load", path, "--resume-file", progress)
            loaded = two.call("load", path, "--resume-file", progress, "--restart")

        assert refused.exit_code == exit_codes.CONFIG
        assert "has applied only 0: another node listens there now" in refused.stderr
        assert loaded.exit_code == 0

    def test_meets_the_oracle_across_a_kill(self, tmp_path: Path) -> None:
        checkpoint = json.loads(ORACLE.read_text())["checkpoints"][-1]
        data_dir = tmp_path / "data"
        with running(data_dir) as first:
            target = first.target
            command = [sys.executable, "-m", "dengine_sm.cli", "load", "--json", "--batch", "10"]
            with subprocess.Popen(
                [*command, "--target", target, str(HISTORY)], stdout=subprocess.PIPE, text=True
            ) as loading:
                assert loading.stdout is not None
                for line in loading.stdout:
                    acknowledged = json.loads(line)["lines"]
                    if acknowledged >= 500:
                        first.process.kill()
            assert loading.returncode in (exit_codes.REQUEST, exit_codes.UNKNOWN)

        with running(data_dir, listen=target) as second:
            resumed = second.call("load", HISTORY, "--json")
            observed = digest(second)

        assert second.ready["last_applied"]["index"] >= acknowledged
        assert events(resumed)[0]["lines"] == acknowledged
        assert observed == (checkpoint["entries"], checkpoint["sha256"])


class TestRun:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_stops_it_cleanly(self, tmp_path: Path, how: signal.Signals) -> None:
        with running(tmp_path / "data") as node:
            node.call("put", "k", "v")
            node.process.send_signal(how)

            assert node.end() == (0, "")
        with running(tmp_path / "data") as node:
            assert node.call("get", "k").stdout == "v\n"

    def test_says_when_it_is_ready(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "dengine_sm.cli", "run", "--listen", "127.0.0.1:0"]
        with subprocess.Popen(
            [*command, "--data-dir", str(tmp_path / "d")], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.terminate()

        assert re.fullmatch(
            r"ready: node 'node-1' listening on 127\.0\.0\.1:\d+ "
            r"\(backend file, last applied 0\)\n",
            line,
        )

    def test_a_port_in_use_is_exit_code_3(self, node: RunningNode, tmp_path: Path) -> None:
        done = dengine_sm("run", "--data-dir", tmp_path / "d", "--listen", node.target)

        assert (done.returncode, done.stdout) == (exit_codes.CONFIG, "")
        assert f"cannot listen on {node.target!r}" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("toml", "expected"), [("[node", "not TOML"), ("[state_machine]\nbackend='fiel'", "'file'")]
    )
    def test_a_wrong_config_is_exit_code_3(self, tmp_path: Path, toml: str, expected: str) -> None:
        (tmp_path / "node.toml").write_text(toml)

        done = dengine_sm("run", "--config", tmp_path / "node.toml", "--data-dir", tmp_path / "d")

        assert (done.returncode, done.stdout) == (exit_codes.CONFIG, "")
        assert expected in done.stderr
        assert not (tmp_path / "d").exists()

    def test_a_directory_in_use_is_exit_code_4(self, tmp_path: Path) -> None:
        with running(tmp_path / "data"):
            done = dengine_sm("run", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0")

        assert (done.returncode, done.stdout) == (exit_codes.STORAGE, "")
        assert "Traceback" not in done.stderr

    def test_an_unusable_directory_is_exit_code_4(self, tmp_path: Path) -> None:
        # A file where a directory should be: fails for root too, unlike missing permission.
        (tmp_path / "file").write_text("")

        done = dengine_sm("run", "--data-dir", tmp_path / "file" / "d", "--listen", "127.0.0.1:0")

        assert (done.returncode, done.stdout) == (exit_codes.STORAGE, "")
        assert str(tmp_path / "file") in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_node_that_stops_itself_is_exit_code_4(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        info = tmp_path / "site" / "fails-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fails\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[dengine_sm]\nfails = fails\n")
        (info.parent / "fails.py").write_text(FAILING_BACKEND)
        monkeypatch.setenv("PYTHONPATH", str(info.parent))
        monkeypatch.setenv("DENGINE_SM__STATE_MACHINE__BACKEND", "fails")
        monkeypatch.setenv("DENGINE_SM__STATE_MACHINE__VALIDATE", "off")

        with running(tmp_path / "data") as node:
            put = node.call("put", "k", "v")
            code, stderr = node.end()

        assert put.exit_code == exit_codes.UNKNOWN
        assert code == exit_codes.STORAGE
        assert "\nerror: node 'node-1' stopped itself: the disk is gone\n" in f"\n{stderr}"
        assert "Traceback" not in stderr

    def test_a_directory_of_another_backend_is_exit_code_4(self, tmp_path: Path) -> None:
        foreign = tmp_path / "data" / "state_machine" / "CURRENT"
        foreign.parent.mkdir(parents=True)
        foreign.write_text("MANIFEST-000001\n")

        done = dengine_sm("run", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0")

        assert (done.returncode, done.stdout) == (exit_codes.STORAGE, "")
        assert "'CURRENT'" in done.stderr
        assert "Traceback" not in done.stderr
        assert foreign.read_text() == "MANIFEST-000001\n"

    def test_a_full_disk_loses_nothing_that_was_acknowledged(self, tmp_path: Path) -> None:
        checkpoint = json.loads(ORACLE.read_text())["checkpoints"][-1]
        data_dir, resume_file = tmp_path / "data", tmp_path / "progress"
        load = ["load", HISTORY, "--resume-file", resume_file]
        with running(data_dir, largest_file_bytes=40_000) as full:
            failed = full.call(*load, "--batch", "10")
            acknowledged = json.loads(resume_file.read_text())["lines"]
            full.process.terminate()
            code, stderr = full.end()

        assert failed.exit_code in (exit_codes.REQUEST, exit_codes.UNKNOWN)
        assert 0 < acknowledged < checkpoint["after_line"]
        assert code in (exit_codes.OK, exit_codes.STORAGE)
        assert "Traceback" not in stderr
        with running(data_dir, listen=full.target) as cured:
            assert cured.call(*load).exit_code == 0
            assert digest(cured) == (checkpoint["entries"], checkpoint["sha256"])
