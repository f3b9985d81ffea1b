"""Who else follows the stream: every node says so every other second.

Nothing of this is stored, and no promise rests on it: it shows the state of the cluster,
holds back purges, tells how many nodes a comparison of states may count on, and finds two
nodes with one id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from dengine_sm import CommitLogError
from dengine_sm.codec import DecodeFailure, decode_prefix, encode

BEAT_S = 2.0
_ALIVE_S = 5 * BEAT_S
_ALL_HEARD_S = 2.5 * BEAT_S
"""After this, every node that runs has spoken twice."""
_ANSWER_S = 1.0


@attrs.frozen
class Neighbour:
    """What a node says of itself."""

    name: str
    sender: bytes
    """Drawn at its start."""
    index: int
    """It has read the log up to here."""
    sequence: int
    """The same as a message of the stream."""
    host: str
    pid: int


@attrs.frozen
class _Heard:
    neighbour: Neighbour
    at_s: float


class Neighbours:
    """The nodes that follow one stream.

    Args:
        client: connected.
        stream: name of the stream.
        describe: returns what this node says of itself.
    """

    def __init__(self, client: Client, stream: str, describe: Callable[[], Neighbour]) -> None:
        self._client = client
        self._subject = f"dengine.{stream}.node"
        self._describe = describe
        self._heard: dict[str, _Heard] = {}
        self._beating: asyncio.Task[None] | None = None
        self._listening_since_s = 0.0
        self.conflict: Neighbour | None = None
        """A node with this one's id that was started later, or at the same time."""

    async def join(self) -> None:
        """Take this node's id, and begin to speak and to listen.

        Raises:
            CommitLogError: another node has the id.
        """
        own = self._describe()
        holder = await self._ask(own.name)
        if holder is not None:
            raise CommitLogError(
                f"log.options.node: {own.name!r} is the id of a node that runs on "
                f"{holder.host} as process {holder.pid}; expected an id of its own for every "
                "node; nothing was changed"
            )
        await self._client.subscribe(self._subject, cb=self._on_beat)
        await self._client.subscribe(f"{self._subject}.{own.name}", cb=self._on_question)
        self._listening_since_s = asyncio.get_running_loop().time()
        self._beating = asyncio.create_task(self._beat(), name="dengine-sm-nats-beat")

    async def leave(self) -> None:
        """Say no more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait((self._beating,))

    async def _ask(self, name: str) -> Neighbour | None:
        try:
            answer = await self._client.request(f"{self._subject}.{name}", timeout=_ANSWER_S)
        except (nats.errors.Error, TimeoutError):
            return None
        return _unpack(answer.data)

    async def _on_question(self, msg: Msg) -> None:
        with contextlib.suppress(nats.errors.Error):
            await msg.respond(_pack(self._describe()))

    async def _on_beat(self, msg: Msg) -> None:
        neighbour = _unpack(msg.data)
        if neighbour is None:
            return
        own = self._describe()
        if neighbour.name == own.name:
            # Started at the same moment: one of the two must give way, and both know which.
            if neighbour.sender < own.sender:
                self.conflict = neighbour
            return
        self._heard[neighbour.name] = _Heard(neighbour, asyncio.get_running_loop().time())

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(nats.errors.Error):
                await self._client.publish(self._subject, _pack(self._describe()))
            await asyncio.sleep(BEAT_S)

    def count(self) -> int | None:
        """Return how many nodes run, this one included; None while that is not known yet."""
        if asyncio.get_running_loop().time() - self._listening_since_s < _ALL_HEARD_S:
            return None
        return len(self.heard_within()) + 1

    def heard_within(self, seconds: float = _ALIVE_S) -> dict[Neighbour, float]:
        """Return the other nodes heard lately, and how many seconds ago each."""
        now_s = asyncio.get_running_loop().time()
        return {
            heard.neighbour: now_s - heard.at_s
            for heard in self._heard.values()
            if now_s - heard.at_s <= seconds
        }


def this_process() -> tuple[str, int]:
    """Return the host's name and the process id."""
    return socket.gethostname(), os.getpid()


def _pack(neighbour: Neighbour) -> bytes:
    return encode(list(attrs.astuple(neighbour)))


def _unpack(data: bytes) -> Neighbour | None:
    try:
        fields: Any = decode_prefix(data)
    except DecodeFailure:
        return None
    match fields:
        case [str(), bytes(), int(), int(), str(), int()]:
            return Neighbour(*fields)
    return None


def describe_nodes(heard: Mapping[Neighbour, float], last_sequence: int) -> list[dict[str, Any]]:
    """Return what people want to know of the nodes, by name, for JSON.

    Args:
        heard: how many seconds ago each was.
        last_sequence: of the stream.
    """
    return [
        {
            "node": node.name,
            "index": node.index,
            "lag_messages": max(0, last_sequence - node.sequence),
            "host": node.host,
            "pid": node.pid,
            "heard_s_ago": round(ago_s, 1),
        }
        for node, ago_s in sorted(heard.items(), key=lambda item: item[0].name)
    ]
