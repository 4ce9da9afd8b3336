"""The trigger that runs a check again and again, and those of the tasks behind it."""

from deferrable_ops.triggers.high_availability.triggers import (
    HighAvailabilityGateTrigger,
    HighAvailabilityPauseTrigger,
    HighAvailabilityTrigger,
)

__all__ = ["HighAvailabilityGateTrigger", "HighAvailabilityPauseTrigger", "HighAvailabilityTrigger"]
