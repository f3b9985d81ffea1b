"""Compare what nodes hold at one id, as their snapshots' checksums in the log tell it."""

from __future__ import annotations

from collections import OrderedDict

from dengine_sm import LogId, StateDivergenceError
from dengine_sm.snapshot import PORTABLE_FORMAT
from dengine_sm_nats.frames import Digest

_KEPT = 16


class StateComparison:
    """Takes every node's checksum in log order; tells when this node is in the minority.

    Args:
        name: this node's id.
        identity: of this node's data directory.
    """

    def __init__(self, name: str, identity: bytes) -> None:
        self._name = name
        self._identity = identity
        # A node has one voice, however often it was wiped and told the checksum again.
        self._at: OrderedDict[LogId, dict[str, Digest]] = OrderedDict()
        self.last_equal: LogId | None = None
        """The newest id at which a majority, with this node, held the same."""

    def take(self, digest: Digest, nodes: int | None) -> None:
        """Take a checksum.

        Args:
            digest: of any node, this one too.
            nodes: how many nodes run now, this one included; None while that is not known:
                two that differ may then be a good one and a bad one of three.

        Raises:
            StateDivergenceError: most nodes hold another state than this one, or all have
                told and there is no majority.
        """
        # Other formats need not be byte-identical for equal states (SNAP-11).
        if digest.format != PORTABLE_FORMAT:
            return
        log_id = LogId(digest.term, digest.index)
        told = self._at.setdefault(log_id, {})
        told[digest.node] = digest
        while len(self._at) > _KEPT:
            self._at.popitem(last=False)
        if nodes is not None:
            self._judge(log_id, told, max(nodes, len(told)))

    def _judge(self, log_id: LogId, told: dict[str, Digest], nodes: int) -> None:
        own = told.get(self._name)
        if own is None or own.identity != self._identity:
            return
        checksums = [digest.checksum for digest in told.values()]
        if checksums.count(own.checksum) * 2 > nodes:
            if self.last_equal is None or log_id > self.last_equal:
                self.last_equal = log_id
            return
        others = [checksum for checksum in checksums if checksum != own.checksum]
        strongest = max(map(others.count, others), default=0)
        nobody_can_win = bool(others) and len(told) >= nodes
        if strongest * 2 > nodes or nobody_can_win:
            raise self._divergence(log_id, told, own.checksum)

    def _divergence(
        self, log_id: LogId, told: dict[str, Digest], own: bytes
    ) -> StateDivergenceError:
        others = ", ".join(
            f"{node} {digest.checksum.hex()[:12]}"
            for node, digest in sorted(told.items())
            if digest.checksum != own
        )
        equal = f"last known to be equal at {self.last_equal}" if self.last_equal else "never equal"
        return StateDivergenceError(
            f"the state of node {self._name!r} at {log_id} is not that of other nodes: its "
            f"portable snapshot has checksum {own.hex()[:12]}, theirs are {others}; this is the "
            f"first id known to differ, {equal}; this node must not serve",
            log_id=log_id,
            last_equal=self.last_equal,
        )
