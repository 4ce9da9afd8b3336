"""The triggers that launch, watch and stop Dataflow jobs."""

from deferrable_ops.triggers.dataflow.triggers import (
    DataflowJobTrigger,
    DataflowLaunchTrigger,
    DataflowStopTrigger,
)

__all__ = ["DataflowJobTrigger", "DataflowLaunchTrigger", "DataflowStopTrigger"]
