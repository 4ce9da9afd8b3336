"""What a check says: how healthy things are, and what is to happen."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

CheckResult = tuple["Result", "Action"]
"""What a check returns."""


class Result(StrEnum):
    """How healthy things are, which becomes the state of the DAG run that ends."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"


class Action(StrEnum):
    """What is to happen."""

    CONTINUE = "continue"  # check again later
    RETRIGGER = "retrigger"  # start the DAG again, and end this run
    STOP = "stop"  # end this run


class Decision(NamedTuple):
    """How the checks of a run ended.

    :param action: never CONTINUE.
    :param reason: one clause for the logs.
    """

    result: Result
    action: Action
    reason: str

    def as_json(self) -> list[str]:
        """Return what the task's XCom is: the two words, as airflow-ha has them."""
        return [self.result.value, self.action.value]


def read_result(returned: Any) -> CheckResult | None:
    """Return the result and the action that a check returned; None where it returned something else.

    Their words count as well, because checks that go through JSON have nothing else.
    """
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        return None
    try:
        return Result(returned[0]), Action(returned[1])
    except (ValueError, TypeError):
        return None
