"""A key-value store in memory, with views that are pinned in constant time.

A `LayeredMap` is a dict until a view pins it; from then on writes go to a new layer on
top, and the layers below stand still. When the last view is closed the layers are folded
together a slice per write, so that neither pinning nor unpinning stalls an apply.
Key order is kept only once somebody has asked for it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from sortedcontainers import SortedList

from dengine_sm.errors import NotRunningError
from dengine_sm.kv.store import WriteBatch

Layer: TypeAlias = dict[bytes, bytes | None]

_ABSENT: Any = object()
_FOLD_AT_ONCE = 4096
"""Entries folded by one write beside its own; about a millisecond."""
_PAGE = 1024
_RUN = 8192
"""Keys sorted in one go: `sorted` keeps the interpreter lock, this many for about 2 ms."""


def _lookup(layers: tuple[Layer, ...], key: bytes) -> bytes | None:
    for layer in layers:
        value = layer.get(key, _ABSENT)
        if value is not _ABSENT:
            return value  # type: ignore[no-any-return]  # the sentinel is Any
    return None


def _sorted_keys(layers: tuple[Layer, ...], start: bytes, stop: bytes | None) -> Iterator[bytes]:
    """Yield the live keys of frozen layers in `[start, stop)`, in order.

    Sorts short runs and merges them, so that other threads get the interpreter lock.
    """
    runs: list[list[bytes]] = []
    for depth, layer in enumerate(layers):
        newer = layers[:depth]
        keys = iter(layer)
        while block := list(islice(keys, _RUN)):
            runs.append(
                sorted(
                    key
                    for key in block
                    if key >= start
                    and (stop is None or key < stop)
                    and layer[key] is not None
                    and not any(key in other for other in newer)
                )
            )
    return iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs)


def _blocks(layers: tuple[Layer, ...], size: int) -> Iterator[Layer]:
    """Yield the live entries of frozen layers in no order, at most `size` at a time."""
    for depth, layer in enumerate(layers):
        newer = layers[:depth]
        items = iter(layer.items())
        while part := list(islice(items, size)):
            block: Layer = {
                key: value
                for key, value in part
                if value is not None and not any(key in other for other in newer)
            }
            if block:
                yield block


class LayeredMap:
    """Bytes to bytes with pinned views; the caller holds the lock for every change.

    Reads of one key need no lock: `layers` is replaced, never changed, when its shape
    changes, and a write reaches one layer through a single `dict.update`.
    """

    def __init__(self) -> None:
        self.layers: tuple[Layer, ...] = ({},)
        self.only: Layer | None = self.layers[0]
        """The layer, when there is one only: what the fastest reads look at."""
        self.count = 0
        self.version = 0
        self._pins = 0
        self._folding: Iterator[tuple[bytes, bytes | None]] | None = None
        self._order: SortedList | None = None
        self._unordered: Layer = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the newest value, or None."""
        layers = self.layers
        if len(layers) == 1:
            return layers[0].get(key)
        return _lookup(layers, key)

    def write(self, changes: Layer) -> None:
        """Apply changes at once, for every reader."""
        if not changes:
            return
        self.version += 1
        layers = self.layers
        front = layers[0]
        if len(layers) == 1:
            front.update(changes)
            if None in changes.values():
                for key in [key for key, value in changes.items() if value is None]:
                    del front[key]
            self.count = len(front)
        else:
            self.count += sum(
                (value is not None) - (_lookup(layers, key) is not None)
                for key, value in changes.items()
            )
            front.update(changes)
            if not self._pins:
                self._fold(len(changes) * 2 + _FOLD_AT_ONCE)
        if self._order is not None:
            self._unordered.update(changes)

    def _set_layers(self, *layers: Layer) -> None:
        # A reader that still looks at the former ones reads the state of a moment ago.
        self.layers = layers
        self.only = layers[0] if len(layers) == 1 else None

    def pin(self) -> tuple[Layer, ...]:
        """Freeze the current layers for a view."""
        self._pins += 1
        if self.layers[0] or len(self.layers) == 1:
            self._set_layers({}, *self.layers)
        return self.layers[1:]

    def unpin(self) -> None:
        """Give a view's layers back."""
        self._pins -= 1

    def _fold(self, budget: int) -> None:
        """Move up to `budget` entries of the second oldest layer into the oldest.

        The layer that is folded takes no writes and shadows the oldest one, so readers
        see the same either way.
        """
        while budget > 0 and len(self.layers) > 1:
            if self._folding is None:
                if len(self.layers) == 2 and len(self.layers[0]) >= budget:
                    self._set_layers({}, *self.layers)
                self._folding = iter(self.layers[-2].items())
            oldest = self.layers[-1]
            part = list(islice(self._folding, budget))
            exhausted = len(part) < budget
            budget -= len(part)
            oldest.update(part)
            for key, value in part:
                if value is None:
                    oldest.pop(key, None)
            if exhausted:
                self._folding = None
                self._set_layers(*self.layers[:-2], oldest)

    def page(self, version: int, start: bytes, stop: bytes | None) -> list[bytes] | None:
        """Return up to 1024 keys in `[start, stop)`; None if the map has moved on."""
        if version != self.version:
            return None
        if self._order is None or len(self._unordered) * 4 > self.count + _PAGE:
            self._order = SortedList(_sorted_keys(self.layers, b"", None))
        else:
            for key, value in self._unordered.items():
                if value is None:
                    self._order.discard(key)
                elif key not in self._order:
                    self._order.add(key)
        self._unordered = {}
        return list(islice(self._order.irange(start, stop, inclusive=(True, False)), _PAGE))


class RamView:
    """A pinned state of a `RamStore`; safe to read from any thread."""

    def __init__(self, store: RamStore, data: LayeredMap, internal: LayeredMap) -> None:
        self._lock = store.lock
        self._data, self._internal = data, internal
        self._data_layers, self._internal_layers = data.pin(), internal.pin()
        self._data_version, self._internal_version = data.version, internal.version
        self._count = data.count
        self._open = True

    def get(self, key: bytes) -> bytes | None:
        """Return the user's value, or None."""
        return _lookup(self._data_layers, key)

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the user's values in key order."""
        return [_lookup(self._data_layers, key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the user's entries in `[start, stop)`."""
        return self._scan(self._data, self._data_layers, self._data_version, start, stop)

    def count(self) -> int:
        """Return the number of the user's keys."""
        return self._count

    def get_internal(self, key: bytes) -> bytes | None:
        """Return a bookkeeping row."""
        return _lookup(self._internal_layers, key)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the bookkeeping rows in `[start, stop)`."""
        return self._scan(
            self._internal, self._internal_layers, self._internal_version, start, stop
        )

    def _scan(
        self,
        live: LayeredMap,
        layers: tuple[Layer, ...],
        version: int,
        start: bytes,
        stop: bytes | None,
    ) -> Iterator[tuple[bytes, bytes]]:
        # The live order is right for as long as nothing was written since the pin.
        while True:
            with self._lock:
                page = live.page(version, start, stop)
            if page is None:
                break
            for key in page:
                yield key, _lookup(layers, key)  # type: ignore[misc]  # listed keys are live
            if len(page) < _PAGE:
                return
            start = page[-1] + b"\0"
        for key in _sorted_keys(layers, start, stop):
            yield key, _lookup(layers, key)  # type: ignore[misc]  # listed keys are live

    def blocks(self, size: int) -> Iterator[Layer]:
        """Yield the user's entries in no order, at most `size` at a time."""
        return _blocks(self._data_layers, size)

    def internal_blocks(self, size: int) -> Iterator[Layer]:
        """Yield the bookkeeping rows in no order, at most `size` at a time."""
        return _blocks(self._internal_layers, size)

    def close(self) -> None:
        """Release the pinned layers."""
        with self._lock:
            if self._open:
                self._open = False
                self._data.unpin()
                self._internal.unpin()


class RamStore:
    """A `KeyValueStore` that survives nothing; also the memory of the file backend."""

    writes_block = False

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._data: LayeredMap | None = None
        self._internal: LayeredMap | None = None

    def _maps(self) -> tuple[LayeredMap, LayeredMap]:
        if self._data is None or self._internal is None:
            raise NotRunningError("the key-value store is closed; nothing was read or changed")
        return self._data, self._internal

    def open(self) -> None:
        """Begin empty; a no-op while open."""
        if self._data is None:
            self._data, self._internal = LayeredMap(), LayeredMap()

    def close(self) -> None:
        """Forget everything."""
        with self.lock:
            self._data = self._internal = None

    def get(self, key: bytes) -> bytes | None:
        """Return the user's value, or None."""
        data = self._data
        if data is None:
            raise NotRunningError("the key-value store is closed; nothing was read")
        only = data.only
        if only is not None:
            return only.get(key)
        return _lookup(data.layers, key)

    def get_multi(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the user's values in key order, at one point in time."""
        with self.lock:
            data, _ = self._maps()
            return [data.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the user's entries in `[start, stop)`, at one point in time."""
        view = self.view()
        try:
            yield from view.scan(start, stop)
        finally:
            view.close()

    def count(self) -> int:
        """Return the number of the user's keys."""
        with self.lock:
            return self._maps()[0].count

    def get_internal(self, key: bytes) -> bytes | None:
        """Return a bookkeeping row.

        The lock makes it wait for a write under way, so that nobody can see a write's
        data and then an older applied id (APPLY-2).
        """
        with self.lock:
            return self._maps()[1].get(key)

    def scan_internal(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the bookkeeping rows in `[start, stop)`."""
        view = self.view()
        try:
            yield from view.scan_internal(start, stop)
        finally:
            view.close()

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch."""
        with self.lock:
            data, internal = self._maps()
            data.write(batch.data)
            internal.write(batch.internal)

    def flush(self) -> None:
        """Do nothing: nothing here survives."""
        with self.lock:
            self._maps()

    def view(self) -> RamView:
        """Pin the current state."""
        with self.lock:
            return RamView(self, *self._maps())

    def replace_all(self, batches: Iterable[WriteBatch]) -> None:
        """Build the new state aside, then switch to it."""
        self._maps()
        self.swap(*build_maps(batches))

    def swap(self, data: LayeredMap, internal: LayeredMap) -> None:
        """Make two maps the live ones, at once."""
        with self.lock:
            self._data, self._internal = data, internal


def build_maps(batches: Iterable[WriteBatch]) -> tuple[LayeredMap, LayeredMap]:
    """Return the maps that the batches add up to."""
    data, internal = LayeredMap(), LayeredMap()
    for batch in batches:
        data.write(batch.data)
        internal.write(batch.internal)
    return data, internal
