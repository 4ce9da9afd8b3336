"""airflow-pydantic models for YAML files of airflow-config. Each model creates a HighAvailabilityOperator.

If airflow-pydantic is not installed, the models are plain pydantic models, which create the same tasks.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from deferrable_ops.operators.airflow_config_models import (
    AS_PATH,
    AS_PLAIN_DATA,
    Task,
    TaskArgs,
    resolve_callable,
    subclass_of,
)
from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator

__all__ = [
    "HighAvailabilitySensorTask",
    "HighAvailabilitySensorTaskArgs",
    "HighAvailabilityTask",
    "HighAvailabilityTaskArgs",
]


class HighAvailabilityTaskArgs(TaskArgs):  # type: ignore[misc]
    """The fields of a :class:`HighAvailabilityTask`: the arguments of :class:`HighAvailabilityOperator`.

    :param python_callable: the check: a function, the dotted path of a function, or an HttpCheck, TcpCheck or
        FileCheck.
    """

    model_config = ConfigDict(extra="allow")

    python_callable: Annotated[Any, BeforeValidator(resolve_callable), AS_PATH]
    op_args: Annotated[list[Any] | None, AS_PLAIN_DATA] = None
    op_kwargs: Annotated[dict[str, Any] | None, AS_PLAIN_DATA] = None
    templates_dict: Annotated[dict[str, Any] | None, AS_PLAIN_DATA] = None
    conf: Annotated[dict[str, Any] | str | None, AS_PLAIN_DATA] = None
    pass_trigger_kwargs: Annotated[dict[str, Any] | None, AS_PLAIN_DATA] = None
    fail_trigger_kwargs: Annotated[dict[str, Any] | None, AS_PLAIN_DATA] = None


class HighAvailabilityTask(Task, HighAvailabilityTaskArgs):  # type: ignore[misc]
    """A pydantic model that describes a :class:`HighAvailabilityOperator` in a YAML file. ``instantiate(dag=dag)``
    creates the operator in a DAG; airflow-config calls this method for DAGs in YAML files.
    """

    operator: Annotated[type, subclass_of(HighAvailabilityOperator), AS_PATH] = Field(
        default=HighAvailabilityOperator, validate_default=True
    )

    def instantiate(self, **kwargs: Any) -> Any:
        """Create the operator.

        :param kwargs: ``dag``, and other arguments of the operator. Each of these arguments replaces the field of this
            model that has the argument's name.
        """
        # A dump of this model would contain a ready-made check as a dict.
        return super().instantiate(**{"python_callable": self.python_callable, **kwargs})


HighAvailabilitySensorTaskArgs = HighAvailabilityTaskArgs
HighAvailabilitySensorTask = HighAvailabilityTask
