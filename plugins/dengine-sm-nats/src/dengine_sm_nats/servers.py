"""Real nats-servers on this machine, for development and tests; see `LocalServers`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import attrs

from dengine_sm.errors import ConfigError, ServerError, StorageLockedError
from dengine_sm_nats.children import Children, end, signal_process
from dengine_sm_nats.monitoring import MonitoringError, read_monitoring
from dengine_sm_nats.server_config import (
    ACCOUNT,
    HOST,
    ServerPorts,
    ServerSettings,
    free_ports,
    server_config,
    server_name,
)

READY_TIMEOUT_S = 30.0
_POLL_S = 0.02
_LOG_TAIL_BYTES = 1500

T = TypeVar("T")


def find_server() -> Path:
    """Return the nats-server of this Python environment, or else the one on PATH.

    Raises:
        ConfigError: there is none.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = beside if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        problem = (
            f"no program nats-server in {beside.parent} or on PATH; "
            "install it with: pip install 'dengine-sm-nats[server]'"
        )
        raise ConfigError(problem, problems=[problem])
    return Path(found)


class LocalServers:
    """`count` nats-servers on loopback that form one cluster; one alone has no cluster.

    Everything is in `directory`: `n0.conf`, `n0.log` and the store `n0/`, and so on. The same
    directory with the same count goes on with what is stored. Ports are chosen when this
    object is made, and kept by it. Methods block, and are for one thread at a time. The
    servers do not outlive this process. Linux only.
    """

    def __init__(
        self,
        directory: Path,
        count: int = 3,
        *,
        name: str | None = None,
        sync_always: bool = True,
        max_payload_bytes: int = 8 << 20,
        max_store_bytes: int = 8 << 30,
        user: str | None = None,
        password: str | None = None,
        ports: Sequence[ServerPorts] | None = None,
        extra_config: str = "",
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        """Choose names and ports; nothing is started.

        Args:
            directory: of configuration, logs and stores; made when it is missing.
            count: how many servers; 3 or 5 for a cluster, 1 for a server alone.
            name: of the cluster; by default one that the directory keeps.
            sync_always: sync before a message is acknowledged; False is the server's default,
                which loses acknowledged messages with the power.
            max_payload_bytes: the largest message.
            max_store_bytes: how much each server stores.
            user: what clients must log in as; None lets everybody in.
            password: of the user.
            ports: instead of free ones.
            extra_config: lines for the end of every configuration file.
            ready_timeout_s: how long servers may take until they are healthy.
        """
        self.directory = Path(directory).resolve()
        self.count = count
        self.ports = tuple(free_ports(count) if ports is None else ports)
        self.ready_timeout_s = ready_timeout_s
        self.directory.mkdir(parents=True, exist_ok=True)
        self.settings = ServerSettings(
            cluster=name or self._kept_name(),
            sync_always=sync_always,
            max_payload_bytes=max_payload_bytes,
            max_store_bytes=max_store_bytes,
            user=user,
            password=password,
            extra=extra_config,
        )
        self._routes: dict[tuple[int, int], int] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._paused: set[int] = set()
        self._children: Children | None = None
        self._lock = -1

    @property
    def urls(self) -> list[str]:
        """Where clients connect, one URL per server."""
        return [f"nats://{HOST}:{ports.client}" for ports in self.ports]

    @property
    def monitoring(self) -> list[str]:
        """Where each server tells about itself."""
        return [f"http://{HOST}:{ports.monitoring}" for ports in self.ports]

    def store(self, index: int) -> Path:
        """Return the directory of a server's data."""
        return self.directory / server_name(index)

    def log(self, index: int) -> Path:
        """Return the file that a server logs to, over all its starts."""
        return self.directory / f"{server_name(index)}.log"

    def is_running(self, index: int) -> bool:
        """Tell whether a server's process exists; a paused one does."""
        process = self._processes.get(index)
        return process is not None and process.poll() is None

    def route_through(self, routes: Mapping[tuple[int, int], int]) -> None:
        """Let servers reach each other by other ports, such as those of proxies.

        For the next starts. Servers then tell each other no ports of their own, so that
        nothing goes around the proxies.

        Args:
            routes: `(from, to)` to the port on loopback where `from` finds `to`.
        """
        self._routes = dict(routes)

    def start(self) -> None:
        """Start all servers that do not run, and return when all are healthy.

        Raises:
            ConfigError: no nats-server is installed.
            StorageLockedError: the directory is another process's.
            ServerError: a port is taken, a server ended, or they are not healthy in time;
                the message shows the end of a log. All servers are stopped.
        """
        try:
            for index in range(self.count):
                if not self.is_running(index):
                    self.start_one(index)
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all servers, paused ones too, and let go of the directory; idempotent."""
        if self._children is not None:
            self._children.close()
            self._children = None
        self._processes.clear()
        self._paused.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def start_one(self, index: int) -> None:
        """Start one server, which need not become healthy: see `wait_healthy`.

        Raises:
            ConfigError, StorageLockedError, ServerError: as for `start`, but nothing is stopped.
        """
        if self.is_running(index):
            return
        program = find_server()
        children = self._open_children()
        self._check_ports(index)
        config = self.directory / f"{server_name(index)}.conf"
        text = server_config(index, self.ports, self.settings, self.store(index), self._routes)
        config.touch(mode=0o600)  # it holds passwords
        config.write_text(text)
        with self.log(index).open("ab") as log:
            self._processes[index] = children.spawn([str(program), "-c", str(config)], stdout=log)

    def wait_healthy(self, indexes: Iterable[int] | None = None) -> None:
        """Return when servers are healthy: they have a leader, and caught up with it.

        Args:
            indexes: of the servers; None for all.

        Raises:
            ServerError: one ended, or `ready_timeout_s` is over; nothing is stopped.
        """
        waiting = set(range(self.count) if indexes is None else indexes)
        deadline = time.monotonic() + self.ready_timeout_s
        while waiting:
            answers = {index: self._health(index) for index in sorted(waiting)}
            waiting = {index for index, answer in answers.items() if answer is not None}
            if waiting and time.monotonic() > deadline:
                index = min(waiting)
                within = f"was not healthy within {self.ready_timeout_s:g} s: {answers[index]}"
                raise self._error(index, within)
            if waiting:
                time.sleep(_POLL_S)

    def terminate(self, index: int) -> None:
        """Let a server end in good order, and wait for that."""
        self._end(index, signal.SIGTERM)

    def kill(self, index: int) -> None:
        """Kill a server, paused or not; what it had not synced stays in the system's cache."""
        self._end(index, signal.SIGKILL)

    def pause(self, index: int) -> None:
        """Freeze a server: it keeps its connections and answers nothing."""
        signal_process(self._processes[index], signal.SIGSTOP)
        self._paused.add(index)

    def resume(self, index: int) -> None:
        """Let a paused server go on."""
        signal_process(self._processes[index], signal.SIGCONT)
        self._paused.discard(index)

    def wipe(self, index: int) -> None:
        """Remove what a stopped server has stored.

        Raises:
            ServerError: it runs; nothing is removed.
        """
        if self.is_running(index):
            raise ServerError(
                f"server {server_name(index)}: it runs; expected it stopped, nothing was removed",
                address=self.urls[index],
            )
        shutil.rmtree(self.store(index), ignore_errors=True)

    def leader_of(self, stream: str, *, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Return the server that leads a stream, once most of its replicas agree on one.

        Raises:
            TimeoutError: they do not in time.
        """
        return _poll(lambda: self._agreed_leader(stream), f"stream {stream!r}: a leader", timeout_s)

    def wait_copied(
        self, stream: str, last_seq: int, *, timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """Return when the copy of a stream on every running server is at a sequence.

        Health does not tell: a server that was paused believes it is up to date.

        Raises:
            TimeoutError: they are not in time.
        """

        def all_there() -> bool | None:
            states = [self._state_or_none(index, stream) for index in self._answering()]
            return all(state and state["last_seq"] >= last_seq for state in states) or None

        _poll(all_there, f"stream {stream!r}: sequence {last_seq} on every server", timeout_s)

    def replica_state(self, index: int, stream: str) -> dict[str, Any] | None:
        """Return the state of a server's own copy of a stream: `messages`, `first_seq`, ...

        None when the server has no copy.

        Raises:
            MonitoringError: it does not answer.
        """
        detail = self._stream_detail(index, stream)
        return None if detail is None else dict(detail["state"])

    def __enter__(self) -> LocalServers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def _kept_name(self) -> str:
        """The name is part of what the servers store, so it lives as long as that."""
        kept = self.directory / "cluster-name"
        if not kept.exists():
            kept.write_text(f"dengine-{uuid.uuid4().hex[:12]}\n")
        return kept.read_text().strip()

    def _open_children(self) -> Children:
        if self._children is None:
            self._lock = _locked(self.directory / "lock")
            self._children = Children(keep_open=[self._lock])
        return self._children

    def _check_ports(self, index: int) -> None:
        """Refuse a port that is taken: an old server there would answer in our name."""
        for port in attrs.astuple(self.ports[index]):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as exc:
                    raise ServerError(
                        f"server {server_name(index)}: port {port} of {HOST} is in use; "
                        "expected a free one, the server was not started",
                        address=f"{HOST}:{port}",
                    ) from exc

    def _health(self, index: int) -> str | None:
        """Return what keeps a server from being healthy, or None."""
        if not self.is_running(index):
            raise self._error(index, "ended")
        try:
            read_monitoring(self.monitoring[index], "/healthz")
        except MonitoringError as exc:
            return str(exc)
        return None

    def _error(self, index: int, what: str) -> ServerError:
        log = self.log(index)
        tail = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return ServerError(
            f"server {server_name(index)} {what}; the end of {log}:\n{tail}",
            address=self.urls[index],
        )

    def _end(self, index: int, number: signal.Signals) -> None:
        process = self._processes.get(index)
        if process is None:
            return
        signal_process(process, number)
        signal_process(process, signal.SIGCONT)
        end(process)
        self._paused.discard(index)

    def _answering(self) -> list[int]:
        running = (index for index in range(self.count) if self.is_running(index))
        return [index for index in running if index not in self._paused]

    def _agreed_leader(self, stream: str) -> int | None:
        votes: Counter[str] = Counter()
        peers = 1
        for index in self._answering():
            with contextlib.suppress(MonitoringError):
                detail = self._stream_detail(index, stream)
                if detail is not None:
                    group = detail.get("cluster") or {"leader": server_name(index)}
                    peers = max(peers, 1 + len(group.get("replicas") or ()))
                    votes[group.get("leader") or ""] += 1
        for leader, count in votes.items():
            if leader and 2 * count > peers:
                return int(leader.removeprefix("n"))
        return None

    def _state_or_none(self, index: int, stream: str) -> dict[str, Any] | None:
        with contextlib.suppress(MonitoringError):
            return self.replica_state(index, stream)
        return None

    def _stream_detail(self, index: int, stream: str) -> dict[str, Any] | None:
        page = read_monitoring(self.monitoring[index], f"/jsz?acc={ACCOUNT}&streams=1")
        for account in page.get("account_details") or ():
            for detail in account.get("stream_detail") or ():
                if detail["name"] == stream:
                    return dict(detail)
        return None


def _locked(path: Path) -> int:
    """Return a descriptor that holds the lock of a directory."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StorageLockedError(
            f"directory {str(path.parent)!r}: another process runs servers there; "
            "nothing was started"
        ) from exc
    return descriptor


def _poll(look: Callable[[], T | None], expected: str, timeout_s: float) -> T:
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{expected} was expected within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return found
