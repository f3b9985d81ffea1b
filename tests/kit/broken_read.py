"""Machines broken in what reads show."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from broken_base import LIMITS, SoundFileMachine, SoundMemoryMachine, breaks

from dengine_sm.backends.file_store import FileStore
from dengine_sm.kv import KeyValueStateMachine, RamStore, WriteBatch
from dengine_sm.kv.execution import Execution
from dengine_sm.kv.ram import LayeredMap
from dengine_sm.model import Durability, Limits, ScanResult

TRANSIENT = Durability.TRANSIENT


def let_others_run():
    time.sleep(0)


class Machine(KeyValueStateMachine):
    """A machine over a store of its own."""

    store = RamStore
    limits = LIMITS

    def __init__(self, _directory: Path) -> None:
        super().__init__(self.store(), limits=self.limits)


# READ-1: threads see half a chunk, or nothing


class RowByRowStore(RamStore):
    def write(self, batch):
        for key, value in batch.data.items():
            super().write(WriteBatch({key: value}))
            let_others_run()
        super().write(WriteBatch(internal=batch.internal))


@breaks("READ-1", durability=TRANSIENT)
class WritesAChunkRowByRow(Machine):
    """The rows of a chunk become visible one after the other."""

    store = RowByRowStore


class EarlyCountStore(RamStore):
    extra = 0

    def write(self, batch):
        for value in batch.data.values():
            self.extra += 1 if value is not None else -1
            let_others_run()
        super().write(batch)
        self.extra = 0

    def count(self):
        return super().count() + self.extra


@breaks("READ-1", durability=TRANSIENT)
class CountsRowsBeforeTheyAreThere(Machine):
    """While a chunk is applied `len` is that of no state."""

    store = EarlyCountStore


class BusyStore(RamStore):
    busy = False

    def write(self, batch):
        self.busy = True
        for _ in range(8):
            let_others_run()
        super().write(batch)
        self.busy = False

    def get(self, key):
        if self.busy:
            raise RuntimeError("the store is busy")
        return super().get(key)


@breaks("READ-1", durability=TRANSIENT)
class RefusesReadsDuringAnApply(Machine):
    """Reading while a chunk is applied raises."""

    store = BusyStore


# READ-2: several keys, several points in time, or in the wrong order


@breaks("READ-2", durability=TRANSIENT)
class ReadsKeysOneByOne(SoundMemoryMachine):
    """`get_multi` is a loop over `get`."""

    def get_multi(self, keys):
        values = []
        for key in keys:
            values.append(self.get(key))
            let_others_run()
        return values


@breaks("READ-2", durability=TRANSIENT)
class DropsRepeatedKeys(SoundMemoryMachine):
    """`get_multi` returns one value for a key that was asked for twice."""

    def get_multi(self, keys):
        return super().get_multi(list(dict.fromkeys(keys)))


@breaks("READ-2", durability=TRANSIENT)
class SortsTheKeysItIsAsked(SoundMemoryMachine):
    """`get_multi` answers in the order of the sorted keys."""

    def get_multi(self, keys):
        return super().get_multi(sorted(keys))


@breaks("READ-2", durability=TRANSIENT)
class ReadsTheIdAfterTheRows(SoundMemoryMachine):
    """The id of a scan is read when its rows have been read already."""

    def scan_prefix(self, prefix, **options):
        result = super().scan_prefix(prefix, **options)
        let_others_run()
        return ScanResult(result.entries, self.last_applied())


@breaks("READ-2", durability=TRANSIENT)
class ScansInHashOrder(SoundMemoryMachine):
    """A scan lists keys as a hash table has them."""

    def scan_prefix(self, prefix, **options):
        result = super().scan_prefix(prefix, **options)
        return ScanResult(tuple(sorted(result.entries, key=hash)), result.last_applied)


@breaks("READ-2", durability=TRANSIENT)
class TakesLimitZeroForNoLimit(SoundMemoryMachine):
    """`limit=0` lists everything."""

    def scan_prefix(self, prefix, *, limit=None, start_after=None):
        return super().scan_prefix(prefix, limit=limit or None, start_after=start_after)


@breaks("READ-2", durability=TRANSIENT)
class RepeatsTheKeyItStartsAfter(SoundMemoryMachine):
    """A page begins with the key that the page before it ended with."""

    def scan_prefix(self, prefix, *, limit=None, start_after=None):
        result = super().scan_prefix(prefix)
        rows = [row for row in result.entries if start_after is None or row[0] >= start_after]
        return ScanResult(tuple(rows[:limit]), result.last_applied)


@breaks("READ-2", durability=TRANSIENT)
class TakesTheEmptyPrefixForNothing(SoundMemoryMachine):
    """Scanning the empty prefix lists nothing."""

    def scan_prefix(self, prefix, **options):
        result = super().scan_prefix(prefix, **options)
        return result if prefix else ScanResult((), result.last_applied)


@breaks("READ-2", durability=TRANSIENT)
class DoesNotCarryThePrefixBound(SoundMemoryMachine):
    """The end of a prefix is its last byte plus one, and 0xFF has none."""

    def scan_prefix(self, prefix, **options):
        result = super().scan_prefix(prefix, **options)
        if not prefix:
            return result
        end = prefix[:-1] + bytes([min(prefix[-1] + 1, 0xFF)])
        rows = tuple(row for row in result.entries if row[0] < end)
        return ScanResult(rows, result.last_applied)


# READ-3: an empty value, taken for an absent key


class NothingForEmptyStore(RamStore):
    def get(self, key):
        return super().get(key) or None


@breaks("READ-3", durability=TRANSIENT)
class ReadsEmptyAsAbsent(Machine):
    """`get` of an empty value returns None."""

    store = NothingForEmptyStore


class LaxExecution(Execution):
    def _live(self, key):
        return super()._live(key) or None


@breaks("READ-3", durability=TRANSIENT)
class SwapsEmptyForAbsent(SoundMemoryMachine):
    """Compare-and-swap that expects absence matches an empty value."""

    def _new_execution(self):
        execution = super()._new_execution()
        execution.__class__ = LaxExecution
        return execution


class ForgetfulStore(FileStore):
    def open(self):
        super().open()
        lost = {key: None for key, value in list(self.scan(b"", None)) if not value}
        self._ram.write(WriteBatch(lost))


@breaks("READ-3")
class LosesEmptyValuesInRecovery(KeyValueStateMachine):
    """Empty values are gone after a start."""

    def __init__(self, directory: Path) -> None:
        super().__init__(ForgetfulStore(directory), limits=LIMITS)


@breaks("READ-3", durability=TRANSIENT)
class LosesEmptyValuesInSnapshots(SoundMemoryMachine):
    """Installing a snapshot leaves empty values out."""

    def _replace(self, batches):
        super()._replace(
            WriteBatch({k: v for k, v in batch.data.items() if v}, batch.internal)
            for batch in batches
        )


# READ-4: keys and values that are not what they were


class OneMapStore(RamStore):
    """Bookkeeping lies among the user's keys, where a prefix tells it apart."""

    def write(self, batch):
        clashing = {k: v for k, v in batch.data.items() if k.startswith(b"m/")}
        data = {k: v for k, v in batch.data.items() if k not in clashing}
        super().write(WriteBatch(data, {**clashing, **batch.internal}))

    def get(self, key):
        return self.get_internal(key) if key.startswith(b"m/") else super().get(key)


@breaks("READ-4", durability=TRANSIENT)
class KeepsItsRowsAmongTheUsersKeys(Machine):
    """A user's key may be the name of a bookkeeping row."""

    store = OneMapStore


def with_keys(translate):
    """Return a store that changes keys."""

    class Store(RamStore):
        def write(self, batch):
            data = {translate(key): value for key, value in batch.data.items()}
            super().write(WriteBatch(data, batch.internal))

        def get(self, key):
            return super().get(translate(key))

        def get_multi(self, keys):
            return super().get_multi([translate(key) for key in keys])

    return Store


@breaks("READ-4", durability=TRANSIENT)
class EndsKeysAtNul(Machine):
    """A key ends at its first NUL."""

    store = with_keys(lambda key: key.partition(b"\x00")[0])


@breaks("READ-4", durability=TRANSIENT)
class TakesKeysForText(Machine):
    """Keys are kept as text: bytes that are none become one and the same."""

    store = with_keys(lambda key: key.decode(errors="replace").encode())


@breaks("READ-4", durability=TRANSIENT)
class EnforcesNoLimit(Machine):
    """Accepts more than it declares."""

    limits = Limits(LIMITS.max_key_bytes * 2, LIMITS.max_value_bytes * 2)


@breaks("READ-4", durability=TRANSIENT)
class RejectsAtTheLimit(Machine):
    """Rejects a value of exactly the declared size."""

    limits = Limits(LIMITS.max_key_bytes, LIMITS.max_value_bytes - 1)


class CuttingExecution(Execution):
    def _fits(self, key, value):
        return True

    def _set(self, key, value, deadline):
        limits = self._limits
        cut = value and value[: limits.max_value_bytes]
        super()._set(key[: limits.max_key_bytes], cut, deadline)


@breaks("READ-4", durability=TRANSIENT)
class CutsWhatIsTooLarge(SoundMemoryMachine):
    """Larger keys and values are cut to the limit, and applied."""

    def _new_execution(self):
        execution = super()._new_execution()
        execution.__class__ = CuttingExecution
        return execution


class LaxSwapExecution(Execution):
    def _execute(self, data):
        if data[:2] == b"\x84\x03":
            self._limits = Limits()
        try:
            return super()._execute(data)
        finally:
            self._limits = LIMITS


@breaks("READ-4", durability=TRANSIENT)
class LimitsPutsOnly(SoundMemoryMachine):
    """The limits do not hold for compare-and-swap."""

    def _new_execution(self):
        execution = super()._new_execution()
        execution.__class__ = LaxSwapExecution
        return execution


# READ-6: an install that can be seen half done


class ClearsFirstStore(RamStore):
    def replace_all(self, batches):
        batches = list(batches)
        self.swap(LayeredMap(), LayeredMap())
        for batch in batches:
            for key, value in batch.data.items():
                self.write(WriteBatch({key: value}))
            let_others_run()
            self.write(WriteBatch(internal=batch.internal))


@breaks("READ-6", durability=TRANSIENT)
class InstallsIntoTheLiveState(Machine):
    """Install empties the live state and fills it row by row."""

    store = ClearsFirstStore


class DataFirstStore(RamStore):
    def swap(self, data, internal):
        with self.lock:
            self._data = data
        let_others_run()
        with self.lock:
            self._internal = internal


@breaks("READ-6", durability=TRANSIENT)
class InstallsTheIdLast(Machine):
    """For a moment the new state is there with the old applied id."""

    store = DataFirstStore


@breaks("READ-6", durability=TRANSIENT)
class FailsReadsDuringAnInstall(SoundMemoryMachine):
    """While a snapshot is installed `len` says that the storage is broken."""

    installing = threading.Event()

    def _install(self, metadata, directory):
        self.installing.set()
        try:
            for _ in range(20):
                let_others_run()
            super()._install(metadata, directory)
        finally:
            self.installing.clear()

    def len(self):
        if self.installing.is_set():
            raise OSError("no such table")
        return super().len()


# READ-7: what was returned does not stay


class BufferStore(RamStore):
    """Keeps each value in one buffer, and hands that out."""

    def open(self):
        super().open()
        self.buffers = {}

    def get(self, key):
        value = super().get(key)
        if value is None:
            return None
        buffer = self.buffers.setdefault(key, bytearray())
        buffer[:] = value
        return buffer


@breaks("READ-7", durability=TRANSIENT)
class ReturnsItsBuffer(Machine):
    """`get` returns the buffer that the next write of the key changes."""

    store = BufferStore


@breaks("READ-7", durability=TRANSIENT)
class ScansIntoViews(SoundMemoryMachine):
    """A scan returns views of the storage's memory instead of bytes."""

    def scan_prefix(self, prefix, **options):
        result = super().scan_prefix(prefix, **options)
        rows = tuple((key, memoryview(value)) for key, value in result.entries)
        return ScanResult(rows, result.last_applied)


class Borrowed(bytes):
    """Stands for memory that the engine gives back to the system when it is closed."""

    owner: ReturnsMemoryOfTheEngine

    def __ne__(self, other):
        if not self.owner.is_running():
            os.kill(os.getpid(), signal.SIGSEGV)
        return bytes(self) != other


@breaks("READ-7")
class ReturnsMemoryOfTheEngine(SoundFileMachine):
    """Looking at a value after `stop` crashes the process."""

    def get(self, key):
        value = super().get(key)
        if value is None:
            return None
        borrowed = Borrowed(value)
        borrowed.owner = self
        return borrowed
