"""airflow-pydantic models for YAML files of airflow-config. Each model creates a Supervisor or a SupervisorSSH.

If airflow-pydantic is not installed, the models are plain pydantic models, which create the same tasks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, Field, WrapSerializer

from deferrable_ops.operators.airflow_config_models import (
    AS_PATH,
    AS_PLAIN_DATA,
    Task,
    TaskArgs,
    resolve_callable,
    subclass_of,
)
from deferrable_ops.operators.supervisor.hosts import run_query
from deferrable_ops.operators.supervisor.supervisor import Supervisor, SupervisorSSH
from deferrable_ops.supervisord import SupervisorAirflowConfiguration, SupervisorSSHAirflowConfiguration

__all__ = [
    "SupervisorOperator",
    "SupervisorOperatorArgs",
    "SupervisorSSHOperator",
    "SupervisorSSHOperatorArgs",
    "SupervisorSSHTask",
    "SupervisorSSHTaskArgs",
    "SupervisorTask",
    "SupervisorTaskArgs",
]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, StrEnum) else value


# airflow-pydantic renders a dump as Python code. The repr of an enum member is not valid Python code.
_AsPlainData: Final = WrapSerializer(lambda value, write: _plain(write(value)))
_HostOrPort: Any = Annotated[Any, BeforeValidator(lambda value: run_query(resolve_callable(value))), AS_PATH]


class SupervisorTaskArgs(TaskArgs):  # type: ignore[misc]
    """The fields of a :class:`SupervisorTask`: the supervisord's configuration, and operator arguments for all tasks of
    the Supervisor.
    """

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorAirflowConfiguration, _AsPlainData]
    conf: Annotated[dict[str, Any] | str | None, AS_PLAIN_DATA] = None


class SupervisorTask(Task, SupervisorTaskArgs):  # type: ignore[misc]
    """A pydantic model that describes a :class:`Supervisor` in a YAML file. ``instantiate(dag=dag)`` creates the
    Supervisor in a DAG; airflow-config calls this method for DAGs in YAML files.

    :param task_id: the name by which other tasks of the YAML file refer to this Supervisor. The ids of the Supervisor's
        tasks do not contain this `task_id`. These ids begin with `name`, or with the DAG's id if `name` is not given.
    """

    operator: Annotated[type, subclass_of(Supervisor), AS_PATH] = Field(
        default=Supervisor, validate_default=True
    )


class SupervisorSSHTaskArgs(TaskArgs):  # type: ignore[misc]
    """Arguments of a :class:`SupervisorSSH`.

    :param host: the machine on which supervisord runs: a host name, a Host or HostQuery of airflow-pydantic, a function
        that returns any of these, or the dotted path of such a function. If `host` is a function, it is called each
        time the DAG is parsed.
    :param port: the TCP port of supervisord: a port number, a Port or PortQuery of airflow-pydantic, a function that
        returns any of these, or the dotted path of such a function.
    """

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorSSHAirflowConfiguration, _AsPlainData]
    conf: Annotated[dict[str, Any] | str | None, AS_PLAIN_DATA] = None
    host: _HostOrPort = None
    port: _HostOrPort = None


class SupervisorSSHTask(Task, SupervisorSSHTaskArgs):  # type: ignore[misc]
    """A pydantic model that describes a :class:`SupervisorSSH` in a YAML file. ``instantiate(dag=dag)`` creates the
    tasks in a DAG; airflow-config calls this method for DAGs in YAML files.
    """

    operator: Annotated[type, subclass_of(SupervisorSSH), AS_PATH] = Field(
        default=SupervisorSSH, validate_default=True
    )


SupervisorOperatorArgs = SupervisorTaskArgs
SupervisorOperator = SupervisorTask
SupervisorSSHOperatorArgs = SupervisorSSHTaskArgs
SupervisorSSHOperator = SupervisorSSHTask
