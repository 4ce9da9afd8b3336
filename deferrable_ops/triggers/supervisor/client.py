"""Asking a supervisord from a task that runs on a worker."""

from __future__ import annotations

import logging
from typing import Any

from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.host import open_host

log = logging.getLogger(__name__)


class SupervisorClient:
    """Calls a supervisord's XML-RPC methods, on its machine's Unix socket; each call connects and leaves again.

    A task on a worker reaches the supervisord of a machine that is reached by SSH, and one that runs on the worker's
    own host.

    :param cfg: its configuration.
    """

    def __init__(self, cfg: SupervisorAirflowConfiguration) -> None:
        self._cfg = cfg

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what a method answers.

        :param method: as ``supervisor.getState``; see supervisor's documentation.
        :raises SupervisordUnavailable: supervisord does not run, or cannot be reached.
        :raises SupervisordRefused: it refuses, with a code.
        :raises MachineError: the machine cannot be reached.
        """
        return run_sync(self._call(method, arguments))

    def processes(self) -> list[Process]:
        """Return the processes of all programs, as they are."""
        return [Process.from_info(info) for info in self.call("supervisor.getAllProcessInfo")]

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        async with open_host(self._cfg, log) as host:
            return await host.rpc.call(method, *arguments)
