"""The jobs of the fake: what each was launched with, and which states it goes through, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deferrable_ops.upstreams.dataflow.jobs import (
    CANCELLED,
    CANCELLING,
    DRAINED,
    DRAINING,
    FINISHED,
    IMPORTANCES,
    PAUSED,
    QUEUED,
    STOPPED,
    UPDATED,
    state_number,
)

NOT_ACTIVE = FINISHED | {STOPPED, PAUSED}
"""What a list of the active jobs leaves out."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to a job by itself.

    :param state: ``RUNNING``, or a number that no version knows; empty leaves the state as it is.
    :param after: seconds since the step before.
    :param message: what the job says when it gets there; empty says nothing.
    :param importance: of that message.
    """

    state: str | int
    after: float = 0.0
    message: str = ""
    importance: str = "ERROR"


@dataclass(frozen=True, slots=True)
class Message:
    """What a job said."""

    id: str
    time: float
    importance: str
    text: str


@dataclass(slots=True)
class FakeJob:
    """A job of the fake.

    :param request: what it was launched with, as the API's JSON.
    :param state: a number of the API's JobState.
    :param steps: what will happen to it, by itself.
    :param hides_type: the API does not say whether it is streaming as long as it is queued.
    :param stop_seconds: how long it takes to cancel or to drain.
    :param list_lag: seconds for which it is missing from lists; None takes what holds for all jobs.
    """

    id: str
    name: str
    project_id: str
    region: str
    labels: dict[str, str]
    request: dict[str, Any]
    steps: list[Step]
    streaming: bool = False
    hides_type: bool = False
    stop_seconds: float = 0.0
    list_lag: float | None = None
    state: int = QUEUED
    created_at: float = field(default_factory=time.time)
    since: float = field(default_factory=time.time)
    messages: list[Message] = field(default_factory=list)
    replaced_by: str = ""
    stops_asked: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Return whether it has ended."""
        return self.state in FINISHED

    def advance(self) -> None:
        """Take the steps whose time has come."""
        while self.steps and self.since + self.steps[0].after <= time.time():
            step = self.steps.pop(0)
            self._enter(step, self.since + step.after)

    def move(self, state: str | int) -> None:
        """Put it into a state, from which it goes nowhere by itself."""
        self.steps.clear()
        self._enter(Step(state), time.time())

    def say(self, text: str, importance: str = "BASIC", at: float | None = None) -> None:
        """Let it say something.

        :param at: seconds since the epoch; None is now.
        """
        if importance not in IMPORTANCES:
            raise ValueError(f"{importance!r} is none of {', '.join(IMPORTANCES)}")
        when = time.time() if at is None else at
        self.messages.append(Message(f"JOB_MESSAGE_{len(self.messages) + 1}", when, importance, text))

    def stop(self, how: str) -> None:
        """Begin to cancel or to drain it."""
        self.stops_asked.append(how)
        going, gone = (CANCELLING, CANCELLED) if how == "cancel" else (DRAINING, DRAINED)
        if self.state != going:
            self.move(going)
            self.steps = [Step(gone, self.stop_seconds)]

    def replace(self, job_id: str) -> None:
        """Let another job take its place, as an update does."""
        self.replaced_by = job_id
        self.move(UPDATED)

    def _enter(self, step: Step, when: float) -> None:
        self.since = when
        if step.state != "":
            self.state = state_number(step.state)
        if step.message:
            self.say(step.message, step.importance, when)


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of the jobs whose names begin with a prefix."""

    steps: Sequence[Step]
    streaming: bool = False
    hides_type: bool = False
    stop_seconds: float = 0.0
    list_lag: float | None = None
