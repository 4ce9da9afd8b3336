"""A client that calls a supervisord from a task on a worker."""

from __future__ import annotations

import logging
from typing import Any

from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.host import open_host

log = logging.getLogger(__name__)


class SupervisorClient:
    """Calls XML-RPC methods of a supervisord over its Unix socket. Each call opens its own connection.

    A worker can call a supervisord on another machine over SSH, or a supervisord on the worker's own host.

    :param cfg: configuration of the supervisord.
    """

    def __init__(self, cfg: SupervisorAirflowConfiguration) -> None:
        self._cfg = cfg

    def call(self, method: str, *arguments: Any) -> Any:
        """Call an XML-RPC method of supervisord, and return its result.

        :param method: the name of the method, for example ``supervisor.getState``. The documentation of supervisor
            lists the methods.
        :raises SupervisordUnavailable: if supervisord is not running, or does not answer.
        :raises SupervisordRefused: if supervisord returned a fault; the exception has the fault code.
        :raises MachineError: if the machine cannot be reached.
        """
        return run_sync(self._call(method, arguments))

    def processes(self) -> list[Process]:
        """Return the current processes of all programs."""
        return [Process.from_info(info) for info in self.call("supervisor.getAllProcessInfo")]

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        async with open_host(self._cfg, log) as host:
            return await host.rpc.call(method, *arguments)
