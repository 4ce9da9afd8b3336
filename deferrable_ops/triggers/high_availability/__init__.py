"""The triggers of a HighAvailabilityOperator and of its gates."""

from deferrable_ops.triggers.high_availability.triggers import (
    HighAvailabilityGateTrigger,
    HighAvailabilityPauseTrigger,
    HighAvailabilityTrigger,
)

__all__ = ["HighAvailabilityGateTrigger", "HighAvailabilityPauseTrigger", "HighAvailabilityTrigger"]
