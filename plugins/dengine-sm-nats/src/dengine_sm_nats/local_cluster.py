"""Three servers and some nodes on this machine: what `dengine-sm cluster up` runs."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from dengine_sm.config import (
    LogSection,
    NodeConfig,
    NodeSection,
    ServerSection,
    StateMachineSection,
    config_to_toml,
    load_config,
)
from dengine_sm.errors import ConfigError, ServerError
from dengine_sm_nats.children import Children
from dengine_sm_nats.server_config import server_name
from dengine_sm_nats.servers import LocalServers

DEFAULT_BACKEND = "file"
_SERVERS = 3
_STORE_BYTES = 16 << 30
_NODE_READY_TIMEOUT_S = 120.0
_LOOK_S = 0.5
_LOG_TAIL_BYTES = 2000


@attrs.frozen
class LocalNode:
    """A node's process, and where it serves."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes]
    listen: str = ""
    """`HOST:PORT`, once it is ready."""
    backend: str = ""

    def log_tail(self) -> str:
        """Return the end of what it wrote to stderr."""
        return (self.directory / "log").read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


class LocalCluster:
    """Servers in `directory/servers`, each node in `directory/node-N`; all are kept.

    Nothing outlives this process. The same directory goes on with what is stored.
    """

    def __init__(self, directory: Path, nodes: int = 3, backends: Sequence[str] = ()) -> None:
        """Choose ports; nothing is started.

        Args:
            directory: made when it is missing.
            nodes: how many.
            backends: one of every node, one for all, or none for what the directory has.

        Raises:
            ConfigError: the number of backends fits no way of that.
        """
        if len(backends) not in (0, 1, nodes):
            problem = (
                f"--backend: {len(backends)} are given for {nodes} nodes; "
                "expected one for all, or one of each"
            )
            raise ConfigError(problem, problems=[problem])
        self.directory = Path(directory).resolve()
        self.servers = LocalServers(
            self.directory / "servers", _SERVERS, max_store_bytes=_STORE_BYTES
        )
        self._backends: Sequence[str | None] = backends or [None] * nodes
        if len(backends) == 1:
            self._backends = [*backends] * nodes
        self._children: Children | None = None
        self._said: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self.nodes: list[LocalNode] = []
        self._alive: set[str] = set()

    def start_servers(self) -> None:
        """Start the servers, and return when they are healthy.

        Raises:
            ConfigError, StorageLockedError, ServerError: as `LocalServers.start`.
        """
        self.servers.start()
        self._alive |= {server_name(index) for index in range(_SERVERS)}

    def start_nodes(self) -> Iterator[LocalNode]:
        """Start all nodes at once, and yield each when it is ready.

        Raises:
            ServerError: one ended, or is not ready in time; the rest still runs.
        """
        self._children = Children()
        for index, backend in enumerate(self._backends):
            self.nodes.append(start_node(self._children, self._configured(index, backend)))
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()
        waiting = set(range(len(self.nodes)))
        deadline = time.monotonic() + _NODE_READY_TIMEOUT_S
        while waiting:
            index, line = self._next_line(deadline, waiting)
            waiting.discard(index)
            self.nodes[index] = self._ready(self.nodes[index], line)
            self._alive.add(self.nodes[index].name)
            yield self.nodes[index]

    def wait_ended(self) -> str:
        """Return the name of the next server or node that ends; block until then."""
        while True:
            ended = {name for name in self._alive if not self._is_running(name)}
            if ended:
                name = min(ended)
                self._alive.discard(name)
                return name
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """Stop the nodes, then the servers that they still may need; idempotent."""
        if self._children is not None:
            self._children.close()
        self.servers.stop()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def _configured(self, index: int, backend: str | None) -> Path:
        """Write a node's configuration, with the ports of this start; return its directory."""
        name = f"node-{index + 1}"
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "node.toml"
        if backend is None:
            known = load_config(file).state_machine.backend if file.exists() else DEFAULT_BACKEND
            backend = known
        options = {
            "servers": self.servers.urls,
            "monitoring": self.servers.monitoring,
            "node": name,
        }
        config = NodeConfig(
            node=NodeSection(name=name, data_dir=directory / "data"),
            state_machine=StateMachineSection(backend=backend),
            log=LogSection(engine="nats", options=options),
            server=ServerSection(listen="127.0.0.1:0"),
        )
        file.write_text(config_to_toml(config))
        return directory

    def _listen(self, index: int) -> None:
        """Pass on what a node prints, an empty line for its end; in a thread of its own."""
        stdout = self.nodes[index].process.stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                self._said.put((index, line))
        self._said.put((index, b""))

    def _next_line(self, deadline: float, waiting: set[int]) -> tuple[int, bytes]:
        try:
            return self._said.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            node = self.nodes[min(waiting)]
            raise _not_started(node, f"was not ready within {_NODE_READY_TIMEOUT_S:g} s") from None

    def _ready(self, node: LocalNode, line: bytes) -> LocalNode:
        if not line:
            raise _not_started(node, f"ended with code {node.process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return attrs.evolve(node, listen=said["listen"], backend=said["backend"])

    def _is_running(self, name: str) -> bool:
        for node in self.nodes:
            if node.name == name:
                return node.process.poll() is None
        return self.servers.is_running(int(name.removeprefix("n")))


def start_node(children: Children, directory: Path) -> LocalNode:
    """Run the node that `directory/node.toml` describes; it prints JSON once it is ready."""
    command = [sys.executable, "-m", "dengine_sm.cli", "run", "--json", "--config"]
    with (directory / "log").open("ab") as log:
        process = children.spawn(
            [*command, str(directory / "node.toml")], stdout=subprocess.PIPE, stderr=log
        )
    return LocalNode(directory.name, directory, process)


def _not_started(node: LocalNode, what: str) -> ServerError:
    return ServerError(
        f"node {node.name} {what}; the end of {node.directory / 'log'}:\n{node.log_tail().strip()}",
        address=node.listen,
    )
