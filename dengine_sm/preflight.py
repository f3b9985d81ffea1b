"""A short behavioural run of a machine in a temporary directory.

Not the conformance kit: a second's worth of checks before real data is at stake. Each
check gets directories and machines of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from dengine_sm import preflight_checks
from dengine_sm.contract import StateMachine
from dengine_sm.kv.commands import CompareAndSwap, Delete, Put, encode_command
from dengine_sm.model import Durability
from dengine_sm.preflight_checks import (
    CHECKS,
    NOT_FOR_TRANSIENT,
    Check,
    MismatchError,
    PreflightRun,
)
from dengine_sm.validation import Finding, locate

TIMEOUT_S = 10.0

_OWN_FILES = (__file__, preflight_checks.__file__)
_OPAQUE_COMMANDS = (b"", b"", b"", b"")


def run_preflight(
    open_state_machine: Callable[[Path], StateMachine],
    *,
    durability: Durability,
    commands: Sequence[bytes] | None,
    timeout_s: float = TIMEOUT_S,
) -> list[Finding]:
    """Run every check that binds the machine; nothing is raised for what it does.

    Works inside a running event loop too, which it blocks: the machine runs in a thread
    and loop of its own.

    Args:
        open_state_machine: constructs a machine on a directory, without starting it.
        durability: TRANSIENT machines are not asked what survives a stop.
        commands: `kv/1` commands to apply, or None for a machine that is not key-value.
        timeout_s: seconds that a single check may take before the run is given up.

    Returns:
        One finding per check that failed; none after the first check if the machine
        does not even start, or after one that hangs.
    """
    session = _Session(open_state_machine, durability, commands)
    thread = threading.Thread(target=session.run, name="dengine-sm-preflight", daemon=True)
    thread.start()
    findings: list[Finding] = []
    clause, function = CHECKS[0]
    while True:
        try:
            report = session.reports.get(timeout=timeout_s)
        except queue.Empty:
            session.cancel()
            thread.join(timeout=1.0)  # one that blocks the thread is left behind
            hung = f"still busy after {timeout_s:g} s in {function.__name__}"
            return [*findings, Finding(clause, "an end", hung, session.location)]
        if report is None:
            thread.join()
            return findings
        if isinstance(report, Finding):
            findings.append(report)
        else:
            clause, function = report


def key_value_commands() -> list[bytes]:
    """Return `kv/1` commands for a run, small enough for any sensible limits."""
    return [
        encode_command(Put(b"preflight/a", b"1")),
        encode_command(Put(b"preflight/empty", b"")),
        encode_command(Put(b"\x00\xff", b"\x00\xff")),
        encode_command(CompareAndSwap(b"preflight/c", None, b"2")),
        encode_command(Put(b"preflight/gone", b"3")),
        encode_command(Delete(b"preflight/gone")),
    ]


class _Session:
    """The thread's side: runs the checks, reports each beginning and finding."""

    def __init__(
        self,
        open_state_machine: Callable[[Path], StateMachine],
        durability: Durability,
        commands: Sequence[bytes] | None,
    ) -> None:
        self.reports: queue.SimpleQueue[tuple[str, Check] | Finding | None] = queue.SimpleQueue()
        self.location = "unknown"
        self._open = open_state_machine
        self._transient = durability is Durability.TRANSIENT
        self._commands = commands
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Run every check in a new event loop; the thread's target."""
        try:
            with tempfile.TemporaryDirectory(
                prefix="dengine-sm-preflight-", ignore_cleanup_errors=True
            ) as root:
                asyncio.run(self._run_checks(Path(root)))
        except asyncio.CancelledError:
            pass  # the other side has given up on a check
        except Exception as exc:
            observed = f"{type(exc).__name__}: {exc}"
            self.reports.put(Finding("preflight", "a run", observed, self.location))
        finally:
            self.reports.put(None)

    def cancel(self) -> None:
        """Ask the checks to end; called from the other thread."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _run_checks(self, root: Path) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for number, (clause, check) in enumerate(CHECKS):
            if self._transient and clause in NOT_FOR_TRANSIENT:
                continue
            self.reports.put((clause, check))
            directory = root / f"{number}"
            directory.mkdir()
            finding = await self._run_check(clause, check, directory)
            shutil.rmtree(directory, ignore_errors=True)
            if finding is not None:
                self.reports.put(finding)
                if number == 0:
                    return

    async def _run_check(self, clause: str, check: Check, directory: Path) -> Finding | None:
        commands = _OPAQUE_COMMANDS if self._commands is None else tuple(self._commands)
        run = PreflightRun(self._tracked, directory, commands, self._commands is not None)
        try:
            await check(run)
        except MismatchError as exc:
            at = locate(run.machines[-1], exc.method) if run.machines else self.location
            return Finding(clause, exc.expected, exc.observed, at)
        except BaseException as exc:  # a native library's panic is no Exception
            if self._task is not None and self._task.cancelling():
                raise
            observed = f"{type(exc).__name__}: {exc}"
            return Finding(clause, "no exception", observed, _raised_at(exc, self.location))
        finally:
            run.stop_all()
        return None

    def _tracked(self, directory: Path) -> StateMachine:
        machine = self._open(directory)
        self.location = locate(machine)
        return machine


def _raised_at(exc: BaseException, fallback: str) -> str:
    frames = [f for f in traceback.extract_tb(exc.__traceback__) if f.filename not in _OWN_FILES]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else fallback
