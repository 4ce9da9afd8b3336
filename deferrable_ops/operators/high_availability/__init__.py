"""The HighAvailabilityOperator, the result types of its checks, and the checks HttpCheck, TcpCheck and FileCheck."""

from deferrable_ops.checks import FileCheck, HttpCheck, TcpCheck
from deferrable_ops.high_availability import Action, CheckResult, Result
from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator

HighAvailabilitySensor = HighAvailabilityOperator

__all__ = [
    "Action",
    "CheckResult",
    "FileCheck",
    "HighAvailabilityOperator",
    "HighAvailabilitySensor",
    "HttpCheck",
    "Result",
    "TcpCheck",
]
