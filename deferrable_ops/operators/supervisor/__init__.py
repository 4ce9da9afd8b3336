"""Supervisor and SupervisorSSH, the models of their configuration, and the classes for YAML files of airflow-config."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.checks import HttpCheck, TcpCheck
from deferrable_ops.operators.supervisor.health import check_supervisor_health
from deferrable_ops.operators.supervisor.supervisor import Supervisor, SupervisorSSH
from deferrable_ops.supervisord import (
    AirflowConfiguration,
    EventListenerConfiguration,
    FcgiProgramConfiguration,
    GroupConfiguration,
    IncludeConfiguration,
    InetHttpServerConfiguration,
    LogLine,
    ProgramConfiguration,
    ProgramPolicy,
    RpcInterfaceConfiguration,
    SSHOperatorArgs,
    SupervisorAirflowConfiguration,
    SupervisorConfiguration,
    SupervisorConvenienceConfiguration,
    SupervisorctlConfiguration,
    SupervisordConfiguration,
    SupervisorSSHAirflowConfiguration,
    UnixHttpServerConfiguration,
    load_config,
)
from deferrable_ops.triggers.supervisor.client import SupervisorClient

if TYPE_CHECKING:
    from deferrable_ops.operators.supervisor.airflow_config import (
        load_airflow_config,
        load_airflow_ssh_config,
    )
    from deferrable_ops.operators.supervisor.airflow_config_tasks import (
        SupervisorOperator,
        SupervisorOperatorArgs,
        SupervisorSSHOperator,
        SupervisorSSHOperatorArgs,
        SupervisorSSHTask,
        SupervisorSSHTaskArgs,
        SupervisorTask,
        SupervisorTaskArgs,
    )

__all__ = [
    "AirflowConfiguration",
    "EventListenerConfiguration",
    "FcgiProgramConfiguration",
    "GroupConfiguration",
    "HttpCheck",
    "IncludeConfiguration",
    "InetHttpServerConfiguration",
    "LogLine",
    "ProgramConfiguration",
    "ProgramPolicy",
    "RpcInterfaceConfiguration",
    "SSHOperatorArgs",
    "Supervisor",
    "SupervisorAirflowConfiguration",
    "SupervisorClient",
    "SupervisorConfiguration",
    "SupervisorConvenienceConfiguration",
    "SupervisorLocal",
    "SupervisorOperator",
    "SupervisorOperatorArgs",
    "SupervisorRemote",
    "SupervisorSSH",
    "SupervisorSSHAirflowConfiguration",
    "SupervisorSSHOperator",
    "SupervisorSSHOperatorArgs",
    "SupervisorSSHTask",
    "SupervisorSSHTaskArgs",
    "SupervisorTask",
    "SupervisorTaskArgs",
    "SupervisorctlConfiguration",
    "SupervisordConfiguration",
    "TcpCheck",
    "UnixHttpServerConfiguration",
    "check_supervisor_health",
    "load_airflow_config",
    "load_airflow_ssh_config",
    "load_config",
]

SupervisorLocal = Supervisor
SupervisorRemote = SupervisorSSH

# These modules import airflow-pydantic, if it is installed. This takes seconds, so they are imported on first use.
_LAZY: Final = ("airflow_config_tasks", "airflow_config")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _LAZY:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
