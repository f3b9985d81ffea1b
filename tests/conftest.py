"""Hypothesis profiles (the same examples in CI every time), a node with a server, toy plugins."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from toy_site import Site

from dengine_sm import NodeBuilder, NodeConfig
from dengine_sm.config import NodeSection, StateMachineSection
from dengine_sm.server import NodeServer

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest: at the end, one would keep the others waiting."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        is_long = any(map(item.get_closest_marker, ("long", "storm")))
        (first if is_long else others).append(item)
    arranged: list[pytest.Item] = []
    for worker in range(workers):  # which begin with a part each, in the order of the list
        own = first[worker::workers]
        size = (len(items) - len(arranged)) // (workers - worker) - len(own)
        arranged += own + others[:size]
        del others[:size]
    items[:] = arranged


@pytest.fixture
async def node(tmp_path):
    config = NodeConfig(
        node=NodeSection(data_dir=tmp_path / "node"),
        state_machine=StateMachineSection(validate="structure"),
    )
    async with NodeBuilder(config).state_machine("memory").commit_log("embedded").build() as node:
        yield node


@pytest.fixture
async def server(node):
    async with NodeServer(node, max_message_bytes=1_000_000) as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    yield Site(root)
    for name in [name for name in sys.modules if name.startswith("dengine_sm_toy_")]:
        del sys.modules[name]
