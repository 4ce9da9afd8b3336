"""Operators that launch, watch and stop Dataflow jobs. docs/dataflow.md is their documentation."""

from deferrable_ops.operators.dataflow.operators import (
    DataflowFlexTemplateOperator,
    DataflowJobLink,
    DataflowJobSensor,
    DataflowStopJobOperator,
    DataflowTemplateOperator,
    DeferrableDataflowOperator,
)

__all__ = [
    "DataflowFlexTemplateOperator",
    "DataflowJobLink",
    "DataflowJobSensor",
    "DataflowStopJobOperator",
    "DataflowTemplateOperator",
    "DeferrableDataflowOperator",
]
