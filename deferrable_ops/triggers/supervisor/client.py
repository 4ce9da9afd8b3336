"""A client with which a task on a worker can call a supervisord."""

from __future__ import annotations

import logging
from typing import Any

from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.host import open_host

log = logging.getLogger(__name__)


class SupervisorClient:
    """Calls XML-RPC methods of a supervisord through its Unix socket. Each call opens its own connection.

    The supervisord must run on the worker's own host, or on another machine that the worker reaches over SSH.

    :param cfg: configuration of the supervisord to call.
    """

    def __init__(self, cfg: SupervisorAirflowConfiguration) -> None:
        self._cfg = cfg

    def call(self, method: str, *arguments: Any) -> Any:
        """Call an XML-RPC method of supervisord, and return its result.

        :param method: the full name of the method, for example ``supervisor.getState``. All methods are listed in the
            documentation of supervisor.
        :raises SupervisordUnavailable: if supervisord is not running, or does not respond.
        :raises SupervisordRefused: if supervisord returned a fault instead of a result; the exception contains the
            fault code.
        :raises MachineError: if no connection to the supervisord's machine is possible.
        """
        return run_sync(self._call(method, arguments))

    def processes(self) -> list[Process]:
        """Return all processes of supervisord, with their current states."""
        return [Process.from_info(info) for info in self.call("supervisor.getAllProcessInfo")]

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        async with open_host(self._cfg, log) as host:
            return await host.rpc.call(method, *arguments)
