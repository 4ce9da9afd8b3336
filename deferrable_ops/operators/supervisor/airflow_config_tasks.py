"""airflow-pydantic models for YAML files of airflow-config. Each model creates a Supervisor or a SupervisorSSH.

If airflow-pydantic is not installed, the models are plain pydantic models, which create the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WrapSerializer

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.supervisor.hosts import resolve_callable, run_query
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

_AIRFLOW_PYDANTIC: Final[Any] = import_module("airflow_pydantic") if find_spec("airflow_pydantic") else None


class _PlainTaskArgs(BaseModel, extra="allow"):
    """Replaces the class TaskArgs of airflow-pydantic if airflow-pydantic is not installed."""


class _PlainTask(_PlainTaskArgs):
    """Replaces the class Task of airflow-pydantic if airflow-pydantic is not installed."""

    task_id: str | None = None
    operator: Callable[..., Any]

    def instantiate(self, **kwargs: Any) -> Any:
        """Create the tasks.

        :param kwargs: ``dag``, and other arguments of the operator. Each of these arguments replaces the field of this
            model that has the argument's name.
        """
        return self.operator(**{**self.model_dump(exclude_unset=True, exclude={"operator"}), **kwargs})


_TaskArgs: Any = _AIRFLOW_PYDANTIC.TaskArgs if _AIRFLOW_PYDANTIC else _PlainTaskArgs
_Task: Any = _AIRFLOW_PYDANTIC.Task if _AIRFLOW_PYDANTIC else _PlainTask


def _subclass_of(kind: type) -> Any:
    def check(value: Any) -> Any:
        found = resolve_callable(value)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise InputError(
                f"operator={value!r} is not {kind.__name__} or a subclass; give one of these classes"
            )
        return found

    return BeforeValidator(check)


def _path_of(value: Any) -> Any:
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, (type, FunctionType)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, StrEnum) else value


# airflow-pydantic renders a dump as Python code. The repr of an enum member is not valid Python code.
_AsPlainData: Final = WrapSerializer(lambda value, write: _plain(write(value)))
_AsPath: Final = PlainSerializer(_path_of, when_used="json")
_HostOrPort: Any = Annotated[Any, BeforeValidator(lambda value: run_query(resolve_callable(value))), _AsPath]


class SupervisorTaskArgs(_TaskArgs):  # type: ignore[misc]
    """The fields of a :class:`SupervisorTask`: the supervisord's configuration, and operator arguments for all tasks of
    the Supervisor.
    """

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorAirflowConfiguration, _AsPlainData]


class SupervisorTask(_Task, SupervisorTaskArgs):  # type: ignore[misc]
    """A pydantic model that describes a :class:`Supervisor` in a YAML file. ``instantiate(dag=dag)`` creates the
    Supervisor in a DAG; airflow-config calls this method for DAGs in YAML files.

    :param task_id: the name by which other tasks of the YAML file refer to this Supervisor. The ids of the Supervisor's
        tasks do not contain this `task_id`. These ids begin with `name`, or with the DAG's id if `name` is not given.
    """

    operator: Annotated[type, _subclass_of(Supervisor), _AsPath] = Field(
        default=Supervisor, validate_default=True
    )


class SupervisorSSHTaskArgs(_TaskArgs):  # type: ignore[misc]
    """Arguments of a :class:`SupervisorSSH`.

    :param host: the machine on which supervisord runs: a host name, a Host or HostQuery of airflow-pydantic, a function
        that returns any of these, or the dotted path of such a function. If `host` is a function, it is called each
        time the DAG is parsed.
    :param port: the TCP port of supervisord: a port number, a Port or PortQuery of airflow-pydantic, a function that
        returns any of these, or the dotted path of such a function.
    """

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorSSHAirflowConfiguration, _AsPlainData]
    host: _HostOrPort = None
    port: _HostOrPort = None


class SupervisorSSHTask(_Task, SupervisorSSHTaskArgs):  # type: ignore[misc]
    """A pydantic model that describes a :class:`SupervisorSSH` in a YAML file. ``instantiate(dag=dag)`` creates the
    tasks in a DAG; airflow-config calls this method for DAGs in YAML files.
    """

    operator: Annotated[type, _subclass_of(SupervisorSSH), _AsPath] = Field(
        default=SupervisorSSH, validate_default=True
    )


SupervisorOperatorArgs = SupervisorTaskArgs
SupervisorOperator = SupervisorTask
SupervisorSSHOperatorArgs = SupervisorSSHTaskArgs
SupervisorSSHOperator = SupervisorSSHTask
