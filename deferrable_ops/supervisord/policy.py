"""How the end of a program is mapped to the result of the task that watches it."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.section import Model

_Length = Annotated[timedelta, Field(gt=timedelta(0))]


class Action(StrEnum):
    """What the watching task does when a program has ended.

    SUCCESS: the program succeeded. FAIL: the task fails without a retry. SKIP: the program had nothing to do; the task
    is skipped unless another program succeeded. RETRY: the task fails and uses one of its ``retries``. RETRIGGER: the
    DAG triggers another run of itself, which starts the programs again.
    """

    SUCCESS = "success"
    FAIL = "fail"
    SKIP = "skip"
    RETRY = "retry"
    RETRIGGER = "retrigger"


class ProgramPolicy(Model):
    """How the end of a program and its crash loops are handled.

    :param exit_codes: maps an exit code to an action. The key -1 is for a program that was ended by a signal. If a code
        has no key here, it is a success if it is among the program's ``exitcodes``; otherwise ``otherwise`` applies.
        supervisord reports an exit code only if the process ran for ``startsecs``. Therefore ``startsecs`` defaults to
        0 if ``exit_codes`` is given.
    :param otherwise: action for every other end: another code, FATAL, or a program that supervisord never started.
    :param crash_restarts: number of restarts within ``crash_window`` that make a crash loop.
    :param crash_window: a duration, or seconds.
    :param crash_delay: how long a program in a crash loop is kept stopped the first time. The delay doubles each time,
        up to ``crash_longest_delay``, and is reset once the program has run for ``crash_window``.
    :param crash_longest_delay: a duration, or seconds.
    :param crash_give_up: number of such pauses before the program is given up; then ``otherwise`` applies. 0: the
        program is given up at its first crash loop.
    :raises InputError: two parameters contradict each other.
    """

    exit_codes: dict[Annotated[int, Field(ge=-1, le=255)], Action] = Field(default_factory=dict)
    otherwise: Action = Action.RETRIGGER
    crash_restarts: int = Field(default=3, ge=1)
    crash_window: _Length = timedelta(minutes=1)
    crash_delay: _Length = timedelta(seconds=30)
    crash_longest_delay: _Length = timedelta(minutes=10)
    crash_give_up: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.crash_longest_delay < self.crash_delay:
            raise InputError("crash_longest_delay is shorter than crash_delay; increase it")
        if self.otherwise is Action.SUCCESS:
            raise InputError(
                "otherwise=success would make every crash a success; list the successful codes in exit_codes instead"
            )
        return self
