"""The configuration of supervisord: pydantic models, the text of the configuration file, and the meaning of process
states. This package reads YAML files. Only its commands ``render`` and ``check`` do other input or output.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from deferrable_ops.supervisord.airflow import (
        AirflowConfiguration,
        SSHOperatorArgs,
        SupervisorAirflowConfiguration,
        SupervisorConvenienceConfiguration,
        SupervisorSSHAirflowConfiguration,
    )
    from deferrable_ops.supervisord.configuration import SupervisorConfiguration, load_config
    from deferrable_ops.supervisord.daemon_sections import (
        GroupConfiguration,
        IncludeConfiguration,
        InetHttpServerConfiguration,
        RpcInterfaceConfiguration,
        SupervisorctlConfiguration,
        SupervisordConfiguration,
        UnixHttpServerConfiguration,
    )
    from deferrable_ops.supervisord.policy import Action, ProgramPolicy
    from deferrable_ops.supervisord.program_sections import (
        EventListenerConfiguration,
        FcgiProgramConfiguration,
        LogLine,
        ProgramConfiguration,
    )

__all__ = [
    "Action",
    "AirflowConfiguration",
    "EventListenerConfiguration",
    "FcgiProgramConfiguration",
    "GroupConfiguration",
    "IncludeConfiguration",
    "InetHttpServerConfiguration",
    "LogLine",
    "ProgramConfiguration",
    "ProgramPolicy",
    "RpcInterfaceConfiguration",
    "SSHOperatorArgs",
    "SupervisorAirflowConfiguration",
    "SupervisorConfiguration",
    "SupervisorConvenienceConfiguration",
    "SupervisorSSHAirflowConfiguration",
    "SupervisorctlConfiguration",
    "SupervisordConfiguration",
    "UnixHttpServerConfiguration",
    "load_config",
]

_MODULES: Final = ("airflow", "configuration", "daemon_sections", "policy", "program_sections")


def __getattr__(name: str) -> Any:
    # Import the models on first use: building them takes a third of a second, and the CLI parser does not need them.
    if name in __all__:
        for module_name in _MODULES:
            module = import_module(f"{__name__}.{module_name}")
            found = getattr(module, name, None)
            if found is not None and found.__module__ == module.__name__:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
