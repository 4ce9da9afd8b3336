"""Decides which changed program is replaced next, so that two programs are never down at the same time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from deferrable_ops.supervisord.crash_loops import CrashHistory
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import Process, ProcessState, interpret_end, processes_by_program
from deferrable_ops.supervisord.program_sections import start_order
from deferrable_ops.triggers.supervisor.daemon.readiness import (
    CHANGING,
    NotReady,
    StartOrder,
    StartSnapshot,
)
from deferrable_ops.triggers.supervisor.host import SupervisorHost

_FINISHED: Final = (Action.SUCCESS, Action.SKIP)
_FAILED: Final = (ProcessState.FATAL, ProcessState.UNKNOWN)


class RollingUpdate:
    """A rolling update: it replaces the programs whose configuration has changed, one after another.

    Supervisord and the saved crash histories contain the state of the rolling update. So if this triggerer is killed,
    another triggerer continues the rolling update.
    """

    __slots__ = ("_host", "_order", "_waits_for", "is_active")

    def __init__(self, host: SupervisorHost) -> None:
        self._host = host
        self._order: StartOrder | None = None
        # The names of the programs that must be ready before the next program is replaced.
        self._waits_for: set[str] = set()
        self.is_active = False

    async def next(
        self, left: Collection[str], processes: Sequence[Process], histories: Mapping[str, CrashHistory]
    ) -> tuple[Process, ...] | None:
        """Return the processes that must be replaced now. Return an empty tuple if all programs were replaced, and None
        if a program is not ready yet.

        :param left: the names of the groups that still run with other settings than in the task's configuration.
        :param processes: all processes of supervisord in the newest poll result.
        :param histories: the crash histories of the processes.
        :raises NotReady: if a program has not started, or was not ready within its ``ready_timeout``.
        """
        own = processes_by_program(self._host.cfg, processes)
        if self._is_down(own, histories):
            return None
        # The check of a program is in its new configuration, so a program that is still to be replaced is not checked.
        running = {
            name
            for name, found in own.items()
            if all(process.is_alive and process.group not in left for process in found)
        }
        if self._order is None or not self._waits_for <= running:
            await self._wait_for(running, processes)
        assert self._order is not None
        await self._order.next(processes)
        if self._order.is_waiting:
            return None
        for name in start_order(self._host.cfg.programs):
            if any(process.group in left for process in own[name]):
                await self._wait_for({name}, processes)
                return own[name]
        return ()

    def stop(self) -> None:
        """End the rolling update. The next call of :meth:`next` begins another rolling update."""
        self.is_active, self._order = False, None

    def _is_down(self, own: Mapping[str, tuple[Process, ...]], histories: Mapping[str, CrashHistory]) -> bool:
        """Return whether at least one of the programs is down, but may start by itself.

        :raises NotReady: if a program is down, and does not start by itself.
        """
        is_down, failed = False, {}
        for name, found in own.items():
            for process in found:
                history = histories.get(process.full_name, CrashHistory())
                if process.state in CHANGING or history.paused_until is not None:
                    is_down = True
                elif process.state is not ProcessState.RUNNING:
                    action = interpret_end(
                        process, self._host.cfg.programs[name], self._host.cfg.policy_of(name)
                    )
                    is_down = is_down or action is None
                    has_failed = process.state in _FAILED or not process.start
                    if has_failed or action not in (None, *_FINISHED):
                        failed[name] = f"{process.full_name} {process.end}"
        if failed:
            raise NotReady("; ".join(failed.values()), failed, retryable=True)
        return is_down

    async def _wait_for(self, names: set[str], processes: Sequence[Process]) -> None:
        before = await StartSnapshot.of(processes, restart=False).with_logs(self._host)
        self._order, self._waits_for = StartOrder(self._host, before, names), names
