"""A node: one state machine on one commit log, and what builds it."""

from __future__ import annotations

from dengine_sm.node.builder import NodeBuilder
from dengine_sm.node.node import Node, NodeStatus

__all__ = ["Node", "NodeBuilder", "NodeStatus"]
