"""The return value of a check: a result (healthy or not healthy), and an action (check again, retrigger or stop)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

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
