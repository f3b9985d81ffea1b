"""Real node processes on real servers, to be killed, frozen and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from dengine_sm_nats.servers import LocalServers

from dengine_sm.client import Client

READY_S = 90.0


class NodeProcess:
    """One `dengine-sm run`, on the same data directory and port at every start."""

    def __init__(
        self,
        directory: Path,
        name: str,
        backend: str,
        servers: LocalServers,
        *,
        snapshot_entries: int = 2000,
        keep_log_entries: int = 200,
        log_options: dict[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.name = name
        self.backend = backend
        self.address = ""
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        directory.mkdir(parents=True, exist_ok=True)
        options = {
            "servers": list(servers.urls),
            "monitoring": list(servers.monitoring),
            "node": name,
            **(log_options or {}),
        }
        self._sections = {
            "node": {"name": name, "data_dir": str(directory / "data")},
            "state_machine": {"backend": backend, "validate": "structure"},
            "log": {"engine": "nats"},
            "log.options": options,
            "snapshot": {
                "every_entries": snapshot_entries,
                "keep_log_entries": keep_log_entries,
            },
        }

    @property
    def errors(self) -> str:
        path = self.directory / "stderr"
        return path.read_text()[-4000:] if path.exists() else ""

    async def start(self) -> None:
        self.starts += 1
        listen = self.address or "127.0.0.1:0"
        sections = {**self._sections, "server": {"listen": listen}}
        (self.directory / "node.toml").write_text(_toml(sections))
        with (self.directory / "stderr").open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dengine_sm.cli",
                "run",
                "--config",
                str(self.directory / "node.toml"),
                "--json",
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self.process.stdout.readline()
        if not line:
            await self.process.wait()
            raise AssertionError(f"node {self.name} did not start:\n{self.errors}")
        self.address = json.loads(line)["listen"]

    async def start_until_ready(self) -> None:
        """Start as a supervisor does: again, when the servers were not there yet."""
        for _ in range(10):
            try:
                return await self.start()
            except (AssertionError, TimeoutError):
                await self.kill()
        raise AssertionError(f"node {self.name} does not start:\n{self.errors}")

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, number: int) -> None:
        if self.is_running:
            assert self.process is not None
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def stop(self) -> int:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        assert self.process is not None
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def wipe(self) -> None:
        await self.kill()
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def client(self, timeout_s: float = 10.0) -> Client:
        return Client(self.address, timeout_s=timeout_s)


def _toml(sections: dict[str, dict[str, Any]]) -> str:
    # A JSON string, number or array of strings is a TOML one.
    lines: list[str] = []
    for name, table in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def bytes_on_disk(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(root) / name).stat().st_size
    return total
