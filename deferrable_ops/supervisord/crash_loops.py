"""Detects crash loops: a process is in a crash loop if it is restarted too many times within a time span.

A restart of a process is detected by a new pid or a new start time. When a process is in a crash loop, the library
stops the process for some time. This time is called a pause. Each pause is twice as long as the previous pause, but at
most ``crash_longest_delay``. If the process is in a crash loop again after ``crash_give_up`` pauses, the library gives
up: it does not start the process again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from deferrable_ops.supervisord.policy import ProgramPolicy
from deferrable_ops.supervisord.processes import Process, ProcessState


class CrashLoopStep(StrEnum):
    """The step that the library takes for a process after a poll of the process's state.

    NOTHING: no action. PAUSE: stop the process until its pause is over. RESUME: start the process after its pause.
    GIVE_UP: do not start the process again, because it was in a crash loop after the last allowed pause.
    """

    NOTHING = "nothing"
    PAUSE = "pause"
    RESUME = "resume"
    GIVE_UP = "give_up"


_ALIVE: Final = (ProcessState.STARTING, ProcessState.RUNNING, ProcessState.BACKOFF)


# The value of resume_at after the process was asked to start again.
_ASKED: Final = float("-inf")

# The value of paused_until while the library restarts a process.
_RESTARTING: Final = 0


@dataclass(frozen=True, slots=True)
class CrashHistory:
    """The restarts and pauses of a process that the library has observed. All times are whole seconds since 1970
    according to supervisord's clock.

    :param start: time of the process's newest start; 0 if no start was observed.
    :param pid: process id after the newest start; 0 if the process id is unknown.
    :param restarts: times of the restarts within the last ``crash_window`` of the policy.
    :param pauses: number of pauses so far. The number is reset to 0 when the process has run for the length of
        ``crash_window`` without a restart.
    :param paused_until: time at which the current pause ends; None if the process is not paused. This time is only used
        to continue a saved pause. If the time is 0, the library restarts the process: the pause ends as soon as the
        process has stopped.
    :param resume_at: the end of the current pause on the monotonic clock of this Python process; None if the process is
        not paused, or the pause was loaded from the inbox. A change of the system time does not change a pause.
    :param is_replaced: whether a rolling update has replaced the process, and the process has not been ready since.
    """

    start: int = 0
    pid: int = 0
    restarts: tuple[int, ...] = ()
    pauses: int = 0
    paused_until: int | None = None
    resume_at: float | None = field(default=None, compare=False)
    is_replaced: bool = False

    @property
    def is_restarting(self) -> bool:
        """Whether the library is just restarting the process, see :func:`begin_restart`."""
        return self.paused_until == _RESTARTING

    def to_json(self) -> dict[str, Any]:
        """Return the crash history as a JSON object."""
        saved = {name: getattr(self, name) for name in self.__slots__ if name != "resume_at"}
        if not self.is_replaced:
            del saved["is_replaced"]
        return saved | {"restarts": list(self.restarts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CrashHistory:
        """Return the crash history from a JSON object that :meth:`to_json` returned. Unknown keys are ignored."""
        known = {name: data[name] for name in cls.__slots__ if name in data and name != "resume_at"}
        return cls(**known | {"restarts": tuple(known.get("restarts", ()))})


def begin_restart(history: CrashHistory, process: Process) -> CrashHistory:
    """Return the crash history with which the following calls of :func:`update_history` stop and start a running
    process once. This restart does not count as a restart of a crash loop.
    """
    return replace(history, start=process.start, pid=process.pid, paused_until=_RESTARTING, resume_at=None)


def update_history(
    history: CrashHistory, process: Process, policy: ProgramPolicy
) -> tuple[CrashHistory, CrashLoopStep]:
    """Return the updated crash history of a process, and the step that the caller must take for this process.

    Each call returns the same step again until the process is in the state that the step requires. A restart in the
    state BACKOFF is not counted, because supervisord itself retries this start. If all its retries fail, supervisord
    sets the state FATAL.

    :param history: the crash history that the previous call for this process returned. For the first call, give
        ``CrashHistory()``.
    """
    if history.is_restarting:
        return _handle_restart(history, process)
    if history.paused_until is not None:
        return _handle_pause(history, history.paused_until, process, policy)
    history = _count_restart(history, process, policy)
    if len(history.restarts) < policy.crash_restarts:
        return history, CrashLoopStep.NOTHING
    if history.pauses >= policy.crash_give_up:
        return history, CrashLoopStep.GIVE_UP
    delay = min(policy.crash_delay * 2 ** min(history.pauses, 32), policy.crash_longest_delay)
    seconds = max(1, round(delay.total_seconds()))
    paused = replace(
        history,
        restarts=(),
        pauses=history.pauses + 1,
        paused_until=process.now + seconds,
        resume_at=time.monotonic() + seconds,
    )
    return paused, CrashLoopStep.PAUSE


def _handle_restart(history: CrashHistory, process: Process) -> tuple[CrashHistory, CrashLoopStep]:
    alive = process.state in _ALIVE
    if process.pid == history.pid:
        return history, CrashLoopStep.PAUSE if alive else CrashLoopStep.NOTHING
    # The start is 0 if the process's group was replaced, or supervisord was restarted, while the process was stopped.
    if alive or process.start not in (0, history.start):
        return replace(
            history, start=process.start, pid=process.pid, paused_until=None
        ), CrashLoopStep.NOTHING
    return history, CrashLoopStep.RESUME


def _handle_pause(
    history: CrashHistory, until: int, process: Process, policy: ProgramPolicy
) -> tuple[CrashHistory, CrashLoopStep]:
    now, alive = time.monotonic(), process.state in _ALIVE
    if history.resume_at is None:
        # After a restart of the triggerer, only the system time is known. It may have changed since the pause began.
        longest = max(1.0, policy.crash_longest_delay.total_seconds())
        history = replace(history, resume_at=now + min(max(until - process.now, 0), longest))
    assert history.resume_at is not None
    if now < history.resume_at:
        # If the process is alive, it has not been stopped yet, or a user has started it. Stop it in both cases.
        return history, CrashLoopStep.PAUSE if alive else CrashLoopStep.NOTHING
    was_asked = history.resume_at == _ASKED
    if alive or process.start >= until or (was_asked and process.start != history.start):
        return replace(
            history, start=process.start, pid=process.pid, paused_until=None, resume_at=None
        ), CrashLoopStep.NOTHING
    return replace(history, start=process.start, resume_at=_ASKED), CrashLoopStep.RESUME


def _count_restart(history: CrashHistory, process: Process, policy: ProgramPolicy) -> CrashHistory:
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
    if _was_restarted(history, process):
        restarts = (*restarts, process.start)
    return replace(history, start=process.start, pid=process.pid or history.pid, restarts=restarts)


def _was_restarted(history: CrashHistory, process: Process) -> bool:
    if not history.start:
        return False
    # Two starts within a second have the same start time, so compare the pids, too.
    return process.start != history.start or (0 != process.pid != history.pid != 0)
