"""supervisord's configuration as models, its rendering, and what its answers mean. Pure, apart from reading YAML."""

from deferrable_ops.supervisord.airflow import (
    AirflowConfiguration,
    SSHOperatorArgs,
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.configuration import SupervisorConfiguration
from deferrable_ops.supervisord.daemon import (
    GroupConfiguration,
    IncludeConfiguration,
    InetHttpServerConfiguration,
    RpcInterfaceConfiguration,
    SupervisorctlConfiguration,
    SupervisordConfiguration,
    UnixHttpServerConfiguration,
)
from deferrable_ops.supervisord.policy import Action, ProgramPolicy
from deferrable_ops.supervisord.programs import (
    EventListenerConfiguration,
    FcgiProgramConfiguration,
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
    "ProgramConfiguration",
    "ProgramPolicy",
    "RpcInterfaceConfiguration",
    "SSHOperatorArgs",
    "SupervisorAirflowConfiguration",
    "SupervisorConfiguration",
    "SupervisorSSHAirflowConfiguration",
    "SupervisorctlConfiguration",
    "SupervisordConfiguration",
    "UnixHttpServerConfiguration",
]
