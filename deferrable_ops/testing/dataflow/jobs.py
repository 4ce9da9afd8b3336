"""The jobs of the fake Dataflow server, and the steps through which these jobs go."""

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
"""The states that a list of active jobs omits."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step changes a job's state after a number of seconds.

    :param state: the new state of the job: a name such as ``RUNNING``, or any number. An empty string does not change
        the state.
    :param after: how many seconds after the previous step this step happens.
    :param message: a message that the job writes at this step; with an empty string, the job writes no message.
    :param importance: the importance of the step's message.
    """

    state: str | int
    after: float = 0.0
    message: str = ""
    importance: str = "ERROR"


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a job."""

    id: str
    time: float
    importance: str
    text: str


@dataclass(slots=True)
class FakeJob:
    """A job of the fake Dataflow.

    :param request: the launch request, as the API's JSON.
    :param state: the job's current state, as a number of the API's enumeration JobState.
    :param steps: the steps through which the job will go.
    :param hides_type: if True, the API does not return the job's type while the job is queued.
    :param stop_seconds: how many seconds it takes to cancel or drain the job.
    :param list_lag: for how many seconds the new job is missing from lists of jobs; if None, `list_lag` of
        :class:`FakeDataflow` applies.
    :param metrics: the job's metrics, by name.
    :param get_lag: for how many seconds ``GetJob`` does not find the new job; if None, `get_lag` of
        :class:`FakeDataflow` applies.
    :param label_lag: for how many seconds the new job is returned without labels; if None, `label_lag` of
        :class:`FakeDataflow` applies.
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
    get_lag: float | None = None
    label_lag: float | None = None
    state: int = QUEUED
    created_at: float = field(default_factory=time.time)
    since: float = field(default_factory=time.time)
    messages: list[Message] = field(default_factory=list)
    replaced_by: str = ""
    stops_asked: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def is_older_than(self, seconds: float) -> bool:
        """Return whether the job was created at least this many seconds ago."""
        return self.created_at + seconds <= time.time()

    @property
    def is_finished(self) -> bool:
        """True if the job is in a final state."""
        return self.state in FINISHED

    def advance(self) -> None:
        """Apply the steps of the job that are due."""
        while self.steps and self.since + self.steps[0].after <= time.time():
            step = self.steps.pop(0)
            self._enter(step, self.since + step.after)

    def move(self, state: str | int) -> None:
        """Set the state of the job, and cancel the job's remaining steps."""
        self.steps.clear()
        self._enter(Step(state), time.time())

    def say(self, text: str, importance: str = "BASIC", at: float | None = None) -> None:
        """Add a message.

        :param at: the time of the message, in seconds since the epoch. If `at` is None, the message has the current
            time.
        :raises ValueError: if the API has no importance with this name.
        """
        if importance not in IMPORTANCES:
            raise ValueError(f"there is no importance {importance!r}; give one of {', '.join(IMPORTANCES)}")
        when = time.time() if at is None else at
        self.messages.append(Message(f"JOB_MESSAGE_{len(self.messages) + 1}", when, importance, text))

    def stop(self, how: str) -> None:
        """Start to cancel or drain the job."""
        self.stops_asked.append(how)
        stopping, stopped = (CANCELLING, CANCELLED) if how == "cancel" else (DRAINING, DRAINED)
        if self.state != stopping:
            self.move(stopping)
            self.steps = [Step(stopped, self.stop_seconds)]

    def replace(self, job_id: str) -> None:
        """End the job with the state UPDATED, because another job replaces it."""
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
    """The script for the jobs whose names begin with a prefix; see :meth:`FakeDataflow.script`."""

    steps: Sequence[Step]
    streaming: bool = False
    hides_type: bool = False
    stop_seconds: float = 0.0
    list_lag: float | None = None
    get_lag: float | None = None
    label_lag: float | None = None
