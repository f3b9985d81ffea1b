"""What may happen to a machine between two chunks and must leave no trace."""

from __future__ import annotations

from dengine_sm.conformance.follower import Follower
from dengine_sm.conformance.trial import Trial, take_snapshot

EVENTS = ("restart", "install", "replay")


async def disturb(clause: str, trial: Trial, follower: Follower, event: str) -> None:
    """Restart the machine, move it by snapshot, or begin anew; then look at its state.

    Args:
        clause: broken if that leaves a trace.
        trial: makes the new machines.
        follower: goes on with the machine that comes out.
        event: one of `EVENTS`, or empty for nothing.
    """
    __tracebackhide__ = True
    machine = follower.machine
    match event:
        case "restart" if not trial.subject.is_transient:
            follower.restart()
        case "install":
            directory = trial.directory("snapshot") / "data"
            metadata = await take_snapshot(machine, directory)
            follower.machine = trial.open()
            follower.history.append("snapshot, installed in a new machine")
            await follower.machine.apply_snapshot_from_file(metadata, directory)
            machine.stop()
        case "replay":
            applied, follower.applied = follower.applied, 0
            follower.machine = trial.open()
            follower.history.append("a new machine, which begins at index 1")
            await follower.follow(clause, applied)
            machine.stop()
    follower.check(clause)
