"""airflow-pydantic models for YAML files of airflow-config, which create a Supervisor or a SupervisorSSH.

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
    """Replaces the model TaskArgs if airflow-pydantic is not installed."""


class _PlainTask(_PlainTaskArgs):
    """Replaces the model Task if airflow-pydantic is not installed."""

    task_id: str | None = None
    operator: Callable[..., Any]

    def instantiate(self, **kwargs: Any) -> Any:
        """Create the tasks.

        :param kwargs: ``dag``, and other arguments, which override the fields of this model.
        """
        return self.operator(**{**self.model_dump(exclude_unset=True, exclude={"operator"}), **kwargs})


_TaskArgs: Any = _AIRFLOW_PYDANTIC.TaskArgs if _AIRFLOW_PYDANTIC else _PlainTaskArgs
_Task: Any = _AIRFLOW_PYDANTIC.Task if _AIRFLOW_PYDANTIC else _PlainTask


def _subclass_of(kind: type) -> Any:
    def check(value: Any) -> Any:
        found = resolve_callable(value)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise InputError(f"operator={value!r} is not {kind.__name__} or a subclass of it")
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
    """Arguments of a :class:`Supervisor`: the supervisord's configuration, and operator arguments for all tasks."""

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorAirflowConfiguration, _AsPlainData]


class SupervisorTask(_Task, SupervisorTaskArgs):  # type: ignore[misc]
    """The model of a :class:`Supervisor`. ``instantiate(dag=dag)`` or airflow-config creates the Supervisor in a DAG.

    :param task_id: the name by which other tasks of the YAML file refer to this Supervisor. The ids of the
        Supervisor's tasks begin with the DAG's id or with `name`, and do not contain this `task_id`.
    """

    operator: Annotated[type, _subclass_of(Supervisor), _AsPath] = Field(
        default=Supervisor, validate_default=True
    )


class SupervisorSSHTaskArgs(_TaskArgs):  # type: ignore[misc]
    """Arguments of a :class:`SupervisorSSH`.

    :param host: a host name, a Host or HostQuery of airflow-pydantic, a function that returns any of these, or the
        dotted path of this function. A function is called each time the DAG is parsed.
        :param port: a port number, a Port or PortQuery of airflow-pydantic, a function that returns any of these, or
            the dotted path of this function.
    """

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorSSHAirflowConfiguration, _AsPlainData]
    host: _HostOrPort = None
    port: _HostOrPort = None


class SupervisorSSHTask(_Task, SupervisorSSHTaskArgs):  # type: ignore[misc]
    """The model of a :class:`SupervisorSSH`. ``instantiate(dag=dag)`` or airflow-config creates the tasks in a DAG."""

    operator: Annotated[type, _subclass_of(SupervisorSSH), _AsPath] = Field(
        default=SupervisorSSH, validate_default=True
    )


SupervisorOperatorArgs = SupervisorTaskArgs
SupervisorOperator = SupervisorTask
SupervisorSSHOperatorArgs = SupervisorSSHTaskArgs
SupervisorSSHOperator = SupervisorSSHTask
