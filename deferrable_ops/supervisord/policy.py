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

    SUCCESS: the program is done. FAIL: the task fails without a retry. SKIP: the program had nothing to do; the task is
    skipped unless another program succeeded. RETRY: the task fails and uses one of its ``retries``. RETRIGGER: the DAG
    triggers another run of itself, which starts the programs again.
    """

    SUCCESS = "success"
    FAIL = "fail"
    SKIP = "skip"
    RETRY = "retry"
    RETRIGGER = "retrigger"


class ProgramPolicy(Model):
    """How the end of a program and its crash loops are handled.

    :param exit_codes: maps an exit code to an action; -1 stands for a program that was ended by a signal. Other codes
        are a success if they are among the program's ``exitcodes``, else ``otherwise`` applies. supervisord reports the
        exit code only of a process that ran for ``startsecs``; with ``exit_codes``, ``startsecs`` therefore defaults to
        0.
    :param otherwise: action for every other end: another code, FATAL, or a program that supervisord never started.
    :param crash_restarts: number of restarts within ``crash_window`` that count as a crash loop.
    :param crash_window: a duration, or seconds.
    :param crash_delay: how long a program in a crash loop is kept stopped the first time. The delay doubles each time,
        up to ``crash_longest_delay``, and is reset once the program has run for ``crash_window``.
    :param crash_longest_delay: a duration, or seconds.
    :param crash_give_up: number of such pauses before the program is given up, which counts as ``otherwise``; 0: give
        up at the first crash loop.
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
