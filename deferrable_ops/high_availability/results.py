"""The return value of a check: a result (healthy or not healthy), and an action (check again, retrigger or stop)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple

SKIPPED_TASKS: Final = "skipmixin_key"
"""The key of the XCom from which Airflow's scheduler reads which downstream tasks of a task it must skip."""

CheckResult = tuple["Result", "Action"]
"""The return value of a check: a tuple of a Result and an Action."""


class Result(StrEnum):
    """The result of a check: PASS (healthy) or FAIL (not healthy). The last result becomes the state of the DAG run."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"


class Action(StrEnum):
    """The action that a check returns: what the task does next."""

    # Check again later.
    CONTINUE = "continue"
    # Start the DAG again and end this run.
    RETRIGGER = "retrigger"
    # End this run.
    STOP = "stop"


class Decision(NamedTuple):
    """How the checks of a run ended.

    :param action: RETRIGGER or STOP.
    :param reason: why the checks ended; log messages contain it.
    """

    result: Result
    action: Action
    reason: str

    def as_json(self) -> list[str]:
        """Return the task's XCom: the result and the action, in the format of the package airflow-ha."""
        return [self.result.value, self.action.value]


def gates_to_skip(check_task_id: str, result: Result, action: Action) -> list[str]:
    """Return the ids of the gates (the check's downstream tasks) that are skipped after this result and action."""
    gates = [(other, one) for other in (Action.STOP, Action.RETRIGGER) for one in Result]
    skipped = [f"{other}-{one}" for other, one in gates if (one, other) != (result, action)]
    if result is Result.PASS:
        skipped.append("force-dag-fail")
    return [f"{check_task_id}-{suffix}" for suffix in skipped]


def read_result(returned: Any) -> CheckResult | None:
    """Return a check's return value as a result and an action. If `returned` is not a pair of a result and an action,
    return None.

    Strings such as ``"pass"`` are valid too, because the return value may have been converted to JSON and back.
    """
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        return None
    try:
        return Result(returned[0]), Action(returned[1])
    except (ValueError, TypeError):
        return None
