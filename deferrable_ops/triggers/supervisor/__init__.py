"""The triggers that run the tasks of a Supervisor."""

from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.conditional_step import SupervisorDueStepTrigger
from deferrable_ops.triggers.supervisor.gate_triggers import (
    SupervisorAlarmTrigger,
    SupervisorSwitchTrigger,
    SupervisorTeardownTrigger,
)
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger

__all__ = [
    "SupervisorAlarmTrigger",
    "SupervisorCheckTrigger",
    "SupervisorDueStepTrigger",
    "SupervisorStepTrigger",
    "SupervisorSwitchTrigger",
    "SupervisorTeardownTrigger",
]
