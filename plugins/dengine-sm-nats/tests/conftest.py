"""One real server for the tests of a module, and a stream of its own for each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from dengine_sm_nats.servers import LocalServers
from nats_testing import single_server

_STREAMS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    with single_server(tmp_path_factory.mktemp("server")) as servers:
        yield servers


@pytest.fixture
def stream() -> str:
    """A log of its own on the shared server."""
    return f"log-{next(_STREAMS)}"
