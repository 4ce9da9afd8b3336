"""The HighAvailabilityOperator, the result types of its checks, the checks HttpCheck, TcpCheck and FileCheck, and the
classes for YAML files of airflow-config.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deferrable_ops.checks import FileCheck, HttpCheck, TcpCheck
from deferrable_ops.high_availability import Action, CheckResult, Result
from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator

if TYPE_CHECKING:
    from deferrable_ops.operators.high_availability.airflow_config_tasks import (
        HighAvailabilitySensorTask,
        HighAvailabilitySensorTaskArgs,
        HighAvailabilityTask,
        HighAvailabilityTaskArgs,
    )

HighAvailabilitySensor = HighAvailabilityOperator

__all__ = [
    "Action",
    "CheckResult",
    "FileCheck",
    "HighAvailabilityOperator",
    "HighAvailabilitySensor",
    "HighAvailabilitySensorTask",
    "HighAvailabilitySensorTaskArgs",
    "HighAvailabilityTask",
    "HighAvailabilityTaskArgs",
    "HttpCheck",
    "Result",
    "TcpCheck",
]


def __getattr__(name: str) -> Any:
    # This module imports airflow-pydantic, if it is installed. This takes seconds, so it is imported on first use.
    if name in __all__:
        return getattr(import_module(f"{__name__}.airflow_config_tasks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
