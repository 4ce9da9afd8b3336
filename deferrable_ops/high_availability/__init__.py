"""Results, limits and thresholds of checks. This folder contains only logic, no I/O."""

from deferrable_ops.high_availability.results import Action, CheckResult, Result

__all__ = ["Action", "CheckResult", "Result"]
