"""Programs that end and are started again, over and over: seen by pid and start time, paused, at last given up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from deferrable_ops.supervisord.policy import ProgramPolicy
from deferrable_ops.supervisord.processes import Process, ProcessState


class CrashLoopStep(StrEnum):
    """What to do with a process now.

    NOTHING: leave it alone. PAUSE: stop it, its pause begins. RESUME: start it, its pause is over. GIVE_UP: it crashes
    again after all its pauses.
    """

    NOTHING = "nothing"
    PAUSE = "pause"
    RESUME = "resume"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class CrashHistory:
    """What has been seen of a process. All times are supervisord's, in whole seconds since 1970.

    :param start: of the start that was counted last.
    :param pid: of the process that was counted last.
    :param restarts: times of the restarts that are not older than the policy's window.
    :param pauses: how often it was paused, since it last ran for a whole window.
    :param paused_until: the end of the pause that lasts.
    """

    start: int = 0
    pid: int = 0
    restarts: tuple[int, ...] = ()
    pauses: int = 0
    paused_until: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the history as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__} | {"restarts": list(self.restarts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CrashHistory:
        """Return the history that :meth:`to_json` wrote; what another version added is passed over."""
        known = {name: data[name] for name in cls.__slots__ if name in data}
        return cls(**known | {"restarts": tuple(known.get("restarts", ()))})


def update_history(
    history: CrashHistory, process: Process, policy: ProgramPolicy
) -> tuple[CrashHistory, CrashLoopStep]:
    """Return the history with what is seen now, and what is to be done.

    The same history and process give the same answer: who could not do the step does it after the next look.
    A program that supervisord has not got to run yet (BACKOFF) is not counted: it gives that up by itself (FATAL).

    :param history: ``History()`` for a process that is seen for the first time.
    """
    if history.paused_until is not None:
        return _paused(history, history.paused_until, process)
    history = _counted(history, process, policy)
    if len(history.restarts) < policy.crash_restarts:
        return history, CrashLoopStep.NOTHING
    if history.pauses >= policy.crash_give_up:
        return history, CrashLoopStep.GIVE_UP
    delay = min(policy.crash_delay * 2 ** min(history.pauses, 32), policy.crash_longest_delay)
    until = process.now + max(1, round(delay.total_seconds()))
    return replace(history, restarts=(), pauses=history.pauses + 1, paused_until=until), CrashLoopStep.PAUSE


def _paused(history: CrashHistory, until: int, process: Process) -> tuple[CrashHistory, CrashLoopStep]:
    alive = process.state in (ProcessState.STARTING, ProcessState.RUNNING, ProcessState.BACKOFF)
    if process.now < until:
        # Not stopped yet, or started by somebody else: the pause holds.
        return history, CrashLoopStep.PAUSE if alive else CrashLoopStep.NOTHING
    if alive or process.start >= until:
        return replace(
            history, start=process.start, pid=process.pid, paused_until=None
        ), CrashLoopStep.NOTHING
    return history, CrashLoopStep.RESUME


def _counted(history: CrashHistory, process: Process, policy: ProgramPolicy) -> CrashHistory:
    window = policy.crash_window.total_seconds()
    if (
        process.state in (ProcessState.STARTING, ProcessState.BACKOFF, ProcessState.STOPPING)
        or not process.start
    ):
        return history
    if (
        process.state is ProcessState.RUNNING
        and process.start == history.start
        and process.now - process.start >= window
    ):
        return CrashHistory(process.start, process.pid or history.pid)
    restarts = tuple(time for time in history.restarts if process.now - time < window)
    if _was_started_again(history, process):
        restarts = (*restarts, process.start)
    return replace(history, start=process.start, pid=process.pid or history.pid, restarts=restarts)


def _was_started_again(history: CrashHistory, process: Process) -> bool:
    if not history.start:
        return False
    # Two starts within a second have the same start time.
    return process.start != history.start or (0 != process.pid != history.pid != 0)
