"""Hypothesis profiles (the same examples in CI every time), and a node with a server on it."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from dengine_sm import NodeBuilder, NodeConfig
from dengine_sm.config import NodeSection, StateMachineSection
from dengine_sm.server import NodeServer

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


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
