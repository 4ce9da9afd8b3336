"""Results, actions, limits and thresholds of high availability: pure logic, no I/O."""

from deferrable_ops.high_availability.results import Action, CheckResult, Result

__all__ = ["Action", "CheckResult", "Result"]
