"""What the end of a program means to the task that watches it."""

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

    SUCCESS: the program is done. FAIL: the task fails, and is not tried again. SKIP: there was nothing to do: the task
    is skipped, unless another program succeeded. RETRY: the task fails and takes one of its ``retries``. RETRIGGER: the
    programs are started again, by another run of the DAG.
    """

    SUCCESS = "success"
    FAIL = "fail"
    SKIP = "skip"
    RETRY = "retry"
    RETRIGGER = "retrigger"


class ProgramPolicy(Model):
    """How one program is judged.

    :param exit_codes: what an exit code means; what is not in it is a success when it is one of the program's
        ``exitcodes``, else ``otherwise``. A program that a signal ended has the code -1. supervisord tells the code
        only of a process that lived for ``startsecs``, so that becomes 0 where ``exit_codes`` is given alone.
    :param otherwise: what any other end means: another code, FATAL, or a program that supervisord never started.
    :param crash_restarts: how many restarts within ``crash_window`` are a crash loop.
    :param crash_window: a duration, or seconds.
    :param crash_delay: for how long a crashing program is kept stopped the first time; it doubles each time, up to
        ``crash_longest_delay``. A program that then ran for ``crash_window`` begins anew.
    :param crash_longest_delay: a duration, or seconds.
    :param crash_give_up: how often it is kept stopped before it is given up, which counts as ``otherwise``; 0: the
        first crash loop ends it.
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
    def _consistent(self) -> Self:
        if self.crash_longest_delay < self.crash_delay:
            raise InputError("crash_longest_delay is shorter than crash_delay; give a longer one")
        if self.otherwise is Action.SUCCESS:
            raise InputError(
                "otherwise=success would call every crash a success; name the good codes in exit_codes instead"
            )
        return self
