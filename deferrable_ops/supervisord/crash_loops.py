"""Detection of crash loops.

A restart of a process is detected by a new pid or a new start time. When a process is in a crash loop, the library
stops the process for some time. This time is called a pause. Each pause is twice as long as the previous pause, but at
most ``crash_longest_delay``. If the process is in a crash loop again after ``crash_give_up`` pauses, the library gives
up: it does not start the process again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from deferrable_ops.supervisord.policy import ProgramPolicy
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.supervisord.program_sections import ProgramConfiguration


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


# The default timeout of a check in seconds.
_CHECK_SECONDS: Final = 10.0

# The value of resume_at after the process was asked to start again.
_ASKED: Final = float("-inf")


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
        to continue a saved pause.
    :param resume_at: the end of the current pause on the monotonic clock of this Python process; None if the process is
        not paused, or the pause was loaded from the inbox. A change of the system time does not change a pause.
    :param unhealthy_pid: process id of the process that the library restarts because its liveness check has failed; 0
        if there is none. Such a restart is a pause that ends as soon as the process has stopped.
    """

    start: int = 0
    pid: int = 0
    restarts: tuple[int, ...] = ()
    pauses: int = 0
    paused_until: int | None = None
    resume_at: float | None = field(default=None, compare=False)
    unhealthy_pid: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the crash history as a JSON object."""
        saved = {name: getattr(self, name) for name in self.__slots__ if name != "resume_at"}
        if not self.unhealthy_pid:
            del saved["unhealthy_pid"]
        return saved | {"restarts": list(self.restarts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CrashHistory:
        """Return the crash history from a JSON object that :meth:`to_json` returned. Unknown keys are ignored."""
        known = {name: data[name] for name in cls.__slots__ if name in data and name != "resume_at"}
        return cls(**known | {"restarts": tuple(known.get("restarts", ()))})


def mark_unhealthy(history: CrashHistory, process: Process) -> CrashHistory:
    """Return the crash history of a running process that must be restarted, because its liveness check has failed. The
    restart counts as a restart of the process, so it may lead to a pause.
    """
    return replace(history, restarts=(*history.restarts, process.now), unhealthy_pid=process.pid)


def liveness_policy(
    policy: ProgramPolicy, program: ProgramConfiguration, check_interval: timedelta
) -> ProgramPolicy:
    """Return the policy of a program with a ``crash_window`` in which its liveness check can cause ``crash_restarts``
    restarts. Without a liveness check, return the policy unchanged.
    """
    if program.healthy is None:
        return policy
    (check,) = program.healthy.values()
    one_check = check_interval + timedelta(seconds=check.get("timeout", _CHECK_SECONDS))
    stop_and_start = timedelta(seconds=program.stopwaitsecs + program.startsecs) + 2 * check_interval
    longest = program.ready_timeout + program.failure_threshold * one_check + stop_and_start
    return policy.model_copy(
        update={"crash_window": max(policy.crash_window, policy.crash_restarts * longest)}
    )


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
    if history.paused_until is not None:
        return _handle_pause(history, history.paused_until, process, policy)
    history = _count_restart(history, process, policy)
    if len(history.restarts) < policy.crash_restarts:
        if not history.unhealthy_pid:
            return history, CrashLoopStep.NOTHING
        restarted = replace(history, paused_until=process.now + 1, resume_at=time.monotonic())
        return restarted, CrashLoopStep.PAUSE
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
        unhealthy_pid=0,
    )
    return paused, CrashLoopStep.PAUSE


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
    if not was_asked and history.unhealthy_pid and history.unhealthy_pid == process.pid:
        # The unhealthy process has not stopped yet.
        return history, CrashLoopStep.PAUSE if alive else CrashLoopStep.NOTHING
    if alive or process.start >= until or (was_asked and process.start != history.start):
        return replace(
            history,
            start=process.start,
            pid=process.pid,
            paused_until=None,
            resume_at=None,
            unhealthy_pid=0,
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
        and not history.unhealthy_pid
    ):
        return CrashHistory(process.start, process.pid or history.pid)
    restarts = tuple(time for time in history.restarts if process.now - time < window)
    if _was_restarted(history, process):
        restarts = (*restarts, process.start)
        history = replace(history, unhealthy_pid=0)
    return replace(history, start=process.start, pid=process.pid or history.pid, restarts=restarts)


def _was_restarted(history: CrashHistory, process: Process) -> bool:
    if not history.start:
        return False
    # Two starts within a second have the same start time, so compare the pids, too.
    return process.start != history.start or (0 != process.pid != history.pid != 0)
