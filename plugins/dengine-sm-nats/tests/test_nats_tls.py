"""Servers that speak only TLS and ask every node for a certificate of its own."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import trustme
from dengine_sm_nats.servers import LocalServers
from nats_testing import node_config, put

from dengine_sm import CommitLogError, NodeBuilder


@attrs.frozen
class Authority:
    """One authority's certificate, and a key pair that it signed, as files."""

    ca: Path
    cert: Path
    key: Path


def authority(directory: Path) -> Authority:
    directory.mkdir()
    signer = trustme.CA()
    files = Authority(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    issued = signer.issue_cert("127.0.0.1", "localhost")
    signer.cert_pem.write_to_path(str(files.ca))
    issued.private_key_pem.write_to_path(str(files.key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(files.cert), append=True)
    return files


def tls_servers(directory: Path, files: Authority) -> LocalServers:
    return LocalServers(
        directory,
        1,
        extra_config=f"""
        tls {{
          cert_file: "{files.cert}"
          key_file: "{files.key}"
          ca_file: "{files.ca}"
          verify: true
        }}
        """,
    )


async def test_a_node_with_a_certificate_gets_in(tmp_path: Path) -> None:
    files = authority(tmp_path / "pki")
    with tls_servers(tmp_path / "servers", files) as servers:
        config = node_config(
            tmp_path,
            servers,
            "tls",
            tls_ca=str(files.ca),
            tls_cert=str(files.cert),
            tls_key=str(files.key),
        )
        async with NodeBuilder(config).build() as node:
            result = await node.propose(put(b"k"))

            assert result.succeeded
            assert await node.read(b"k") == b"v"


async def test_servers_of_another_authority_are_refused(tmp_path: Path) -> None:
    files, other = authority(tmp_path / "pki"), authority(tmp_path / "other")
    with tls_servers(tmp_path / "servers", files) as servers:
        config = node_config(tmp_path, servers, "tls", tls_ca=str(other.ca), connect_timeout_s=1.5)
        with pytest.raises(CommitLogError, match=r"none of the servers .* lets this node in"):
            await NodeBuilder(config).build().start()


async def test_a_missing_certificate_file_is_named(tmp_path: Path) -> None:
    files = authority(tmp_path / "pki")
    with tls_servers(tmp_path / "servers", files) as servers:
        config = node_config(tmp_path, servers, "tls", tls_ca=str(tmp_path / "absent.pem"))
        with pytest.raises(CommitLogError, match=re.escape("absent.pem")):
            await NodeBuilder(config).build().start()
