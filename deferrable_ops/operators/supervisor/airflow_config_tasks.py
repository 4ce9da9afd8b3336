"""Supervisors as models of airflow-pydantic, for YAML files that airflow-config reads.

Where airflow-pydantic is not installed, they are plain models, which still make their tasks.
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

_FOUND: Final[Any] = import_module("airflow_pydantic") if find_spec("airflow_pydantic") else None


class _PlainTaskArgs(BaseModel, extra="allow"):
    """What airflow-pydantic's TaskArgs would be: arguments for all tasks."""


class _PlainTask(_PlainTaskArgs):
    """What airflow-pydantic's Task would be: it makes what ``operator`` names."""

    task_id: str | None = None
    operator: Callable[..., Any]

    def instantiate(self, **kwargs: Any) -> Any:
        """Make the tasks.

        :param kwargs: ``dag``, and what shall replace this model's own arguments.
        """
        return self.operator(**{**self.model_dump(exclude_unset=True, exclude={"operator"}), **kwargs})


_TaskArgs: Any = _FOUND.TaskArgs if _FOUND else _PlainTaskArgs
_Task: Any = _FOUND.Task if _FOUND else _PlainTask


def _a(kind: type) -> Any:
    def check(value: Any) -> Any:
        found = resolve_callable(value)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise InputError(f"operator={value!r} is no {kind.__name__}")
        return found

    return BeforeValidator(check)


def _path_of(value: Any) -> Any:
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, (type, FunctionType)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, StrEnum) else value


# airflow-pydantic writes a dump as Python, in which an enum's value would be no expression.
_AsPlainData: Final = WrapSerializer(lambda value, write: _plain(write(value)))
_AsPath: Final = PlainSerializer(_path_of, when_used="json")
_Given: Any = Annotated[Any, BeforeValidator(lambda value: run_query(resolve_callable(value))), _AsPath]


class SupervisorTaskArgs(_TaskArgs):  # type: ignore[misc]
    """The arguments of a :class:`Supervisor`: its configuration, and those of an operator, for all its tasks."""

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorAirflowConfiguration, _AsPlainData]


class SupervisorTask(_Task, SupervisorTaskArgs):  # type: ignore[misc]
    """A :class:`Supervisor`, to be made in a DAG by ``instantiate(dag=dag)`` or by airflow-config.

    :param task_id: by which other tasks of the YAML file name it; its own tasks are named after the DAG, or `name`.
    """

    operator: Annotated[type, _a(Supervisor), _AsPath] = Field(default=Supervisor, validate_default=True)


class SupervisorSSHTaskArgs(_TaskArgs):  # type: ignore[misc]
    """The arguments of a :class:`SupervisorSSH`.

    :param host: a name, airflow-pydantic's Host or HostQuery, a function that returns one of them, or its dotted path.
        A function is called each time that the DAG is parsed.
    :param port: as `host`, a number, Port or PortQuery.
    """

    model_config = ConfigDict(extra="allow")

    cfg: Annotated[SupervisorSSHAirflowConfiguration, _AsPlainData]
    host: _Given = None
    port: _Given = None


class SupervisorSSHTask(_Task, SupervisorSSHTaskArgs):  # type: ignore[misc]
    """A :class:`SupervisorSSH`, to be made in a DAG by ``instantiate(dag=dag)`` or by airflow-config."""

    operator: Annotated[type, _a(SupervisorSSH), _AsPath] = Field(
        default=SupervisorSSH, validate_default=True
    )


SupervisorOperatorArgs = SupervisorTaskArgs
SupervisorOperator = SupervisorTask
SupervisorSSHOperatorArgs = SupervisorSSHTaskArgs
SupervisorSSHOperator = SupervisorSSHTask
