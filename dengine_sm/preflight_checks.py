"""The checks of the preflight run: one function per promise, in a table with its clause."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import attrs

from dengine_sm.contract import StateMachine
from dengine_sm.entries import EntryBlock
from dengine_sm.errors import (
    LogGapError,
    LogOrderError,
    NotRunningError,
    SnapshotCorruptionError,
    SnapshotFormatError,
    SnapshotLabelError,
    StorageLockedError,
)
from dengine_sm.kv.commands import Delete, Put, decode_command, encode_command
from dengine_sm.model import (
    CHECKSUM_BYTES,
    ApplyResult,
    Entry,
    LogId,
    Outcome,
    SnapshotMetadata,
)

GARBAGE = b"\xff\x00dengine-sm preflight: no command"

_TERM = 2
_FIRST_TIMESTAMP_MS = 1_000_000
_STALE_KEY = b"preflight/stale"


class MismatchError(Exception):
    """A check saw something else than the contract says."""

    def __init__(self, expected: str, observed: str, method: str) -> None:
        super().__init__(f"expected {expected}, observed {observed}")
        self.expected = expected
        self.observed = observed
        self.method = method


@attrs.frozen
class PreflightRun:
    """What a check may use: a factory, an empty directory, commands."""

    open_state_machine: Callable[[Path], StateMachine]
    root: Path
    commands: tuple[bytes, ...]
    """At least one; empty data for a machine whose commands are unknown here."""
    is_key_value: bool
    machines: list[StateMachine] = attrs.field(factory=list)

    def machine(self, name: str = "data", *, start: bool = True) -> StateMachine:
        """Construct a machine on a directory of this run, and start it."""
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        machine = self.open_state_machine(directory)
        self.machines.append(machine)
        if start:
            machine.start()
        return machine

    async def applied(self, name: str = "data") -> StateMachine:
        """Return a running machine that has applied every command."""
        machine = self.machine(name)
        await machine.apply_chunk(self.entries())
        return machine

    def entries(self) -> Sequence[Entry]:
        """Return the commands as entries from index 1, in the shape that a log gives them."""
        timestamps_ms = range(_FIRST_TIMESTAMP_MS + 1, _FIRST_TIMESTAMP_MS + 1 + len(self.commands))
        return EntryBlock(1, _TERM, timestamps_ms, self.commands)

    def values(self) -> dict[bytes, bytes | None]:
        """Return what the keys of the commands must hold, where that is plain to see."""
        values: dict[bytes, bytes | None] = {}
        for data in self.commands if self.is_key_value else ():
            match decode_command(data):
                case Put(key, value, None):
                    values[key] = value
                case Delete(key):
                    values[key] = None
        return values

    def stop_all(self) -> None:
        """Stop what the check left running; a failing stop has a check of its own."""
        for machine in self.machines:
            with contextlib.suppress(Exception):
                machine.stop()
        self.machines.clear()


Check: TypeAlias = Callable[[PreflightRun], Awaitable[None]]


def entry(index: int, data: bytes = b"", *, term: int = _TERM) -> Entry:
    """Return an entry as a log would hold it."""
    return Entry(index=index, term=term, timestamp_ms=_FIRST_TIMESTAMP_MS + index, data=data)


async def starts_and_stops(run: PreflightRun) -> None:
    """`start` and `stop` are idempotent and alternate."""
    machine = run.machine()
    machine.start()
    _expect("True after start", repr(machine.is_running()), machine.is_running() is True, "start")
    machine.stop()
    machine.stop()
    _expect("False after stop", repr(machine.is_running()), machine.is_running() is False, "stop")
    machine.start()
    _expect("True after restart", repr(machine.is_running()), machine.is_running(), "start")


async def construction_touches_nothing(run: PreflightRun) -> None:
    """Construction leaves the directory alone, and the machine stopped."""
    machine = run.machine(start=False)
    found = sorted(str(path.relative_to(run.root)) for path in run.root.rglob("*"))
    _expect_equal("data directory untouched: ", ["data"], found, "__init__")
    _expect_equal("is_running() before start: ", False, machine.is_running(), "is_running")


async def stopped_machine_refuses(run: PreflightRun) -> None:
    """What reads or changes state raises `NotRunningError` while stopped."""
    machine = run.machine(start=False)
    await _expect_refusals(machine, run.root, "before start")
    machine.start()
    await machine.apply_chunk(run.entries())
    machine.stop()
    await _expect_refusals(machine, run.root, "after stop")


async def results_match_entries(run: PreflightRun) -> None:
    """One result per entry, in order, with the entry's index."""
    machine = run.machine()
    entries = run.entries()
    results = await machine.apply_chunk(entries)
    foreign = [result for result in results if not isinstance(result, ApplyResult)]
    _expect("ApplyResult values", f"{foreign[:1]!r:.80}", not foreign, "apply_chunk")
    expected = [item.index for item in entries]
    _expect_equal("result indices ", expected, [r.index for r in results], "apply_chunk")
    if run.is_key_value:
        outcomes = {result.outcome for result in results}
        shown = ", ".join(sorted(str(outcome) for outcome in outcomes))
        _expect("Outcome.APPLIED only", shown, outcomes == {Outcome.APPLIED}, "apply_chunk")


async def applied_id_follows(run: PreflightRun) -> None:
    """`last_applied` is the last entry's id, and the state shows the entries."""
    machine = run.machine()
    _expect_equal("last_applied() at first: ", LogId.ZERO, machine.last_applied(), "last_applied")
    for chunk in (run.entries()[:1], run.entries()[1:]):
        if chunk:
            await machine.apply_chunk(chunk)
            expected = chunk[-1].log_id
            _expect_equal("last_applied() ", expected, machine.last_applied(), "last_applied")
    _expect_state(run, machine, "get")
    _expect_equal("is_empty() ", machine.len() == 0, machine.is_empty(), "is_empty")


async def terms_are_known(run: PreflightRun) -> None:
    """`entry_term` is exact for applied entries, None outside."""
    machine = run.machine()
    await machine.apply_chunk([entry(1), entry(2), entry(3, term=_TERM + 1)])
    terms = [machine.entry_term(index) for index in (1, 2, 3, 4)]
    _expect_equal("terms of 1 to 4: ", [_TERM, _TERM, _TERM + 1, None], terms, "entry_term")


async def applied_id_never_falls(run: PreflightRun) -> None:
    """The applied id is not moved back; moving it to itself is allowed."""
    machine = await run.applied()
    place, earlier = machine.last_applied(), LogId(_TERM, machine.last_applied().index - 1)
    for name in ("update_last_applied", "persist_last_applied"):
        method = getattr(machine, name)
        method(place)
        await _expect_raises(
            (LogOrderError,), f"{name} of a lower id", name, partial(method, earlier)
        )
        _expect_equal("last_applied() ", place, machine.last_applied(), name)


async def duplicates_are_skipped(run: PreflightRun) -> None:
    """Entries already applied are `DUPLICATE`, also in a chunk with new ones."""
    machine = await run.applied()
    entries, length = run.entries(), machine.len()
    for chunk in (entries, [*entries, entry(len(entries) + 1)]):
        results = await machine.apply_chunk(chunk)
        outcomes = [result.outcome for result in results][: len(entries)]
        expected = [Outcome.DUPLICATE] * len(entries)
        _expect_equal("outcomes of applied entries: ", expected, outcomes, "apply_chunk")
        _expect_equal("last_applied() ", chunk[-1].log_id, machine.last_applied(), "apply_chunk")
    _expect_equal("len() after duplicates: ", length, machine.len(), "apply_chunk")


async def gaps_are_refused(run: PreflightRun) -> None:
    """A gap or a falling term raises, and nothing is applied."""
    machine = await run.applied()
    place = machine.last_applied()
    after = place.index + 1
    chunks = {
        "a gap before the chunk": [entry(after + 1)],
        "a gap inside the chunk": [entry(after), entry(after + 2)],
        "a falling term": [entry(after, term=_TERM - 1)],
    }
    errors = (LogGapError, LogOrderError)
    for what, chunk in chunks.items():
        await _expect_raises(errors, what, "apply_chunk", partial(machine.apply_chunk, chunk))
        observed = machine.last_applied()
        _expect_equal(f"last_applied() after {what}: ", place, observed, "apply_chunk")


async def garbage_is_rejected(run: PreflightRun) -> None:
    """A malformed command is `REJECTED`, the index advances, and the machine goes on."""
    machine = await run.applied()
    index = len(run.commands) + 1
    results = await machine.apply_chunk([entry(index, GARBAGE), entry(index + 1)])
    if run.is_key_value:
        outcome = results[0].outcome
        _expect_equal("outcome of garbage ", Outcome.REJECTED, outcome, "apply_chunk")
    _expect_equal("last_applied() ", LogId(_TERM, index + 1), machine.last_applied(), "apply_chunk")
    _expect_state(run, machine, "apply_chunk")


async def empty_entries_only_advance(run: PreflightRun) -> None:
    """An empty chunk gives nothing; empty data only advances the applied id."""
    machine = await run.applied()
    place, length = machine.last_applied(), machine.len()
    results = await machine.apply_chunk([])
    _expect_equal("results of an empty chunk: ", [], list(results), "apply_chunk")
    _expect_equal("last_applied() ", place, machine.last_applied(), "apply_chunk")
    (result,) = await machine.apply_chunk([entry(place.index + 1)])
    _expect_equal("outcome of empty data ", Outcome.APPLIED, result.outcome, "apply_chunk")
    expected = LogId(_TERM, place.index + 1)
    _expect_equal("last_applied() ", expected, machine.last_applied(), "apply_chunk")
    _expect_equal("len() ", length, machine.len(), "apply_chunk")


async def snapshot_needs_the_applied_id(run: PreflightRun) -> None:
    """A snapshot under another id than the applied one is refused."""
    machine = await run.applied()
    label = LogId(_TERM, machine.last_applied().index + 1)
    generate = partial(machine.generate_snapshot_data, run.root / "snapshot", label)
    what, name = "an id that is not applied", "generate_snapshot_data"
    await _expect_raises((SnapshotLabelError,), what, name, generate)


async def snapshot_is_labelled(run: PreflightRun) -> None:
    """A snapshot has 32 bytes of checksum, and the metadata carry it."""
    machine = await run.applied()
    name = "generate_snapshot_data"
    checksum = await machine.generate_snapshot_data(run.root / "snapshot", machine.last_applied())
    is_checksum = isinstance(checksum, bytes) and len(checksum) == CHECKSUM_BYTES and any(checksum)
    _expect(f"{CHECKSUM_BYTES} bytes, not all zero", f"{checksum!r:.80}", is_checksum, name)
    _expect("a directory", "none", (run.root / "snapshot").is_dir(), name)
    metadata = machine.snapshot_metadata()
    if metadata is None:
        _fail("snapshot_metadata() after generating", "None", "snapshot_metadata")
    expected = (machine.last_applied(), checksum)
    observed = (metadata.last_included, metadata.checksum)
    _expect_equal("snapshot_metadata() ", expected, observed, "snapshot_metadata")


async def install_replaces_everything(run: PreflightRun) -> None:
    """An installed snapshot replaces the state, the applied id and the metadata."""
    source = await run.applied()
    metadata = await _snapshot(source, run.root / "snapshot")
    target = run.machine("target")
    stale = encode_command(Put(_STALE_KEY, b"x")) if run.is_key_value else b""
    await target.apply_chunk([entry(1, stale, term=1)])
    await target.apply_snapshot_from_file(metadata, run.root / "snapshot")
    name = "apply_snapshot_from_file"
    _expect_equal("last_applied() ", metadata.last_included, target.last_applied(), name)
    _expect_equal("snapshot_metadata() ", metadata, target.snapshot_metadata(), name)
    _expect_equal("len() ", source.len(), target.len(), name)
    _expect_state(run, target, name)
    if run.is_key_value:
        _expect_equal("value of an earlier key: ", None, target.get(_STALE_KEY), name)
    following = entry(metadata.last_included.index + 1)
    await target.apply_chunk([following])
    _expect_equal("last_applied() ", following.log_id, target.last_applied(), name)


async def damaged_snapshot_is_refused(run: PreflightRun) -> None:
    """A damaged snapshot raises, and nothing has changed."""
    source = await run.applied()
    pristine = run.root / "snapshot"
    metadata = await _snapshot(source, pristine)
    target = run.machine("target")
    name = "apply_snapshot_from_file"
    errors = (SnapshotCorruptionError, SnapshotFormatError)
    for number, (what, damage) in enumerate(_damages(pristine)):
        copy = run.root / f"damaged-{number}"
        shutil.copytree(pristine, copy)
        damage(copy)
        install = partial(target.apply_snapshot_from_file, metadata, copy)
        await _expect_raises(errors, what, name, install)
        _expect_equal("last_applied() ", LogId.ZERO, target.last_applied(), name)
        _expect_equal("snapshot_metadata() ", None, target.snapshot_metadata(), name)
        _expect_equal("len() ", 0, target.len(), name)


async def reopening_finds_everything(run: PreflightRun) -> None:
    """After `stop`, another machine on the directory finds all there was."""
    first = await run.applied()
    metadata = await _snapshot(first, run.root / "snapshot")
    place, length = first.last_applied(), first.len()
    first.stop()
    second = run.machine()
    _expect_equal("last_applied() after reopening: ", place, second.last_applied(), "start")
    _expect_equal("len() after reopening: ", length, second.len(), "start")
    _expect_equal("term after reopening: ", _TERM, second.entry_term(place.index), "start")
    observed = second.snapshot_metadata()
    _expect_equal("snapshot_metadata() after reopening: ", metadata, observed, "start")
    _expect_state(run, second, "start")


async def second_opener_is_refused(run: PreflightRun) -> None:
    """A running machine locks its directory; `stop` unlocks it."""
    first = await run.applied()
    second = run.machine(start=False)
    await _expect_raises(
        (StorageLockedError,), "starting on a locked directory", "start", second.start
    )
    _expect_state(run, first, "start")
    first.stop()
    second.start()


CHECKS: tuple[tuple[str, Check], ...] = (
    ("LIFE-2", starts_and_stops),
    ("LIFE-1", construction_touches_nothing),
    ("LIFE-3", stopped_machine_refuses),
    ("APPLY-1", results_match_entries),
    ("APPLY-2", applied_id_follows),
    ("LOG-2", terms_are_known),
    ("LOG-1", applied_id_never_falls),
    ("APPLY-5", duplicates_are_skipped),
    ("APPLY-6", gaps_are_refused),
    ("APPLY-7", garbage_is_rejected),
    ("APPLY-8", empty_entries_only_advance),
    ("SNAP-1", snapshot_needs_the_applied_id),
    ("SNAP-2", snapshot_is_labelled),
    ("SNAP-5", install_replaces_everything),
    ("SNAP-4", damaged_snapshot_is_refused),
    ("LIFE-4", reopening_finds_everything),
    ("LIFE-6", second_opener_is_refused),
)
NOT_FOR_TRANSIENT = frozenset({"LIFE-4", "LIFE-6"})


async def _snapshot(machine: StateMachine, directory: Path) -> SnapshotMetadata:
    checksum = await machine.generate_snapshot_data(directory, machine.last_applied())
    metadata = machine.snapshot_metadata()
    format_name = metadata.format if metadata is not None else ""
    return SnapshotMetadata(machine.last_applied(), checksum, format_name)


def _damages(pristine: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    files = [path for path in pristine.rglob("*") if path.is_file()]
    if files:
        largest = max(files, key=lambda path: path.stat().st_size).relative_to(pristine)
        if (pristine / largest).stat().st_size:
            yield "a flipped bit", lambda copy: _flip(copy / largest)
            yield "a truncated file", lambda copy: _cut(copy / largest)
        yield "a missing file", lambda copy: (copy / largest).unlink()
    yield "an extra file", lambda copy: (copy / "preflight-extra").write_bytes(b"extra")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


async def _expect_refusals(machine: StateMachine, root: Path, when: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: machine.get(b"key"),
        "entry_term": lambda: machine.entry_term(1),
        "len": machine.len,
        "is_empty": machine.is_empty,
        "last_applied": machine.last_applied,
        "snapshot_metadata": machine.snapshot_metadata,
        "update_last_applied": lambda: machine.update_last_applied(LogId(_TERM, 99)),
        "persist_last_applied": lambda: machine.persist_last_applied(LogId(_TERM, 99)),
        "apply_chunk": lambda: machine.apply_chunk([entry(1)]),
        "generate_snapshot_data": lambda: machine.generate_snapshot_data(
            root / "refused", LogId.ZERO
        ),
        "reset": machine.reset,
    }
    wrong: dict[str, str] = {}
    for name, call in calls.items():
        try:
            observed = call()
            if asyncio.iscoroutine(observed):
                observed = await observed
            wrong[name] = f"{name} returned {observed!r:.60}"
        except NotRunningError:
            continue
        except Exception as exc:
            wrong[name] = f"{name}: {_raised(exc)}"
    if wrong:
        _fail(f"NotRunningError {when}", "; ".join(wrong.values()), next(iter(wrong)))


def _expect_state(run: PreflightRun, machine: StateMachine, method: str) -> None:
    for key, value in run.values().items():
        _expect_equal(f"value of {key!r}: ", value, machine.get(key), method)


async def _expect_raises(
    errors: tuple[type[Exception], ...], what: str, method: str, call: Callable[[], Any]
) -> None:
    names = " or ".join(error.__name__ for error in errors)
    try:
        observed = call()
        if asyncio.iscoroutine(observed):
            await observed
    except errors:
        return
    except Exception as exc:
        _fail(f"{names} for {what}", _raised(exc), method)
    _fail(f"{names} for {what}", "no exception", method)


def _expect_equal(what: str, expected: object, observed: object, method: str) -> None:
    _expect(f"{what}{expected!r}", f"{observed!r:.200}", expected == observed, method)


def _expect(expected: str, observed: str, holds: bool, method: str) -> None:
    if not holds:
        _fail(expected, observed, method)


def _fail(expected: str, observed: str, method: str) -> NoReturn:
    raise MismatchError(expected, observed, method) from None


def _raised(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
