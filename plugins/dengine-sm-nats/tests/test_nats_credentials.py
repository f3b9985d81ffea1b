"""A `.creds` file: a server that trusts an operator, and users whose account has signed them.

Source: NATS documentation, "Decentralized JWT authentication"; JWT claims of version 2.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
from dengine_sm_nats.monitoring import MonitoringError, read_monitoring
from dengine_sm_nats.server_config import free_ports
from dengine_sm_nats.servers import find_server
from nats_testing import put

from dengine_sm import CommitLogError, Node, NodeBuilder, NodeConfig
from dengine_sm.config import LogSection, NodeSection, StateMachineSection


class Key:
    """A key pair, and the tokens that it signs."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(self.seed)
        self.public = self._pair.public_key.decode()

    def token(self, kind: str, subject: Key, **claims: Any) -> str:
        body = {
            "jti": subject.public,
            "iat": 1,
            "iss": self.public,
            "name": kind,
            "sub": subject.public,
            "nats": {"type": kind, "version": 2, **claims},
        }
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(body)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encoded(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


class Trust:
    """An operator with one account, and one for the servers themselves."""

    def __init__(self) -> None:
        self.operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self.account = Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self.system = Key(nkeys.PREFIX_BYTE_ACCOUNT)
        unlimited = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        storage = ("mem_storage", "disk_storage", "streams", "consumer")
        limits: dict[str, Any] = dict.fromkeys(unlimited, -1) | {"wildcards": True}
        self.operator_token = self.operator.token("operator", self.operator)
        self.system_token = self.operator.token("account", self.system, limits=limits)
        limits |= dict.fromkeys(storage, -1)
        self.account_token = self.operator.token("account", self.account, limits=limits)

    def credentials(self, path: Path) -> Path:
        """Write the file of a new user."""
        user = Key(nkeys.PREFIX_BYTE_USER)
        token = self.account.token("user", user, subs=-1, data=-1, payload=-1)
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            "-----BEGIN USER NKEY SEED-----\n"
            f"{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        path.chmod(0o600)
        return path


@contextmanager
def trusting_server(directory: Path, trust: Trust) -> Iterator[dict[str, Any]]:
    """Run a server that lets in whom an operator trusts; yield options of a log on it."""
    [ports] = free_ports(1)
    directory.mkdir()
    config = directory / "server.conf"
    config.write_text(
        f"""
        server_name: trusting
        listen: "127.0.0.1:{ports.client}"
        http: "127.0.0.1:{ports.monitoring}"
        jetstream {{ store_dir: "{directory / "store"}", sync_interval: always }}
        operator: {trust.operator_token}
        resolver: MEMORY
        system_account: {trust.system.public}
        resolver_preload: {{
          {trust.account.public}: {trust.account_token}
          {trust.system.public}: {trust.system_token}
        }}
        """
    )
    monitoring = f"http://127.0.0.1:{ports.monitoring}"
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([find_server(), "-c", config], stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 20
        while not _answers(monitoring):
            assert time.monotonic() < deadline_s, (directory / "log").read_text()
            time.sleep(0.02)
        yield {
            "servers": [f"nats://127.0.0.1:{ports.client}"],
            "monitoring": [monitoring],
            "stream": "trusted",
            "replicas": 1,
            "max_bytes": 64 << 20,
            "connect_timeout_s": 2.0,
        }
    finally:
        server.kill()
        server.wait()


def _answers(monitoring: str) -> bool:
    try:
        return read_monitoring(monitoring, "/healthz").get("status") == "ok"
    except MonitoringError:
        return False


def node_of(directory: Path, options: dict[str, Any]) -> Node:
    config = NodeConfig(
        node=NodeSection("n0", directory),
        state_machine=StateMachineSection("memory", validate="structure"),
        log=LogSection("nats", options),
    )
    return NodeBuilder(config).build()


async def test_a_node_with_a_credentials_file_gets_in(tmp_path: Path) -> None:
    trust = Trust()
    with trusting_server(tmp_path / "server", trust) as options:
        options["credentials"] = str(trust.credentials(tmp_path / "node.creds"))
        async with node_of(tmp_path / "node", options) as node:
            assert (await node.propose(put(b"k"))).succeeded
            assert await node.read(b"k") == b"v"


@pytest.mark.parametrize("has_others", [True, False])
async def test_who_is_not_trusted_is_refused(tmp_path: Path, has_others: bool) -> None:
    with trusting_server(tmp_path / "server", Trust()) as options:
        if has_others:
            options["credentials"] = str(Trust().credentials(tmp_path / "other.creds"))
        with pytest.raises(CommitLogError, match=r"(?i)lets this node in.*authorization"):
            await node_of(tmp_path / "node", options).start()


@pytest.mark.parametrize("text", [None, "", "no credentials"])
async def test_a_file_that_is_none_is_told(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "node.creds"
    if text is not None:
        path.write_text(text)
    with trusting_server(tmp_path / "server", Trust()) as options:
        options["credentials"] = str(path)
        with pytest.raises(CommitLogError, match=r"log\.options\.credentials: .*node\.creds"):
            await node_of(tmp_path / "node", options).start()
