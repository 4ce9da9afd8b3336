"""Results, limits and thresholds of the checks that the high availability operators run. This folder contains only
logic, no I/O.
"""

from deferrable_ops.high_availability.results import Action, CheckResult, Result

__all__ = ["Action", "CheckResult", "Result"]
