"""The base of all triggers: which errors fail a task, which are retried, and what a timeout's reason contains."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent
from unit.triggers.base.support import Scripted, Working, event_of, in_triggerer, register
from unit.triggers.support import AirflowComms, eventually

from deferrable_ops import Failure, Outcome, Success
from deferrable_ops.exceptions import (
    AirflowUnavailable,
    ConfigurationError,
    DataflowRefused,
    DeploymentError,
    InputError,
    KafkaRefused,
    KafkaUnavailable,
    LaunchRefused,
    MachineRefused,
    SqsRefused,
)
from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait, WaitState
from deferrable_ops.inbox.waits.cancellations import Cancellations
from deferrable_ops.outages import DEPLOYMENT, Outages
from deferrable_ops.triggers import base
from deferrable_ops.triggers.lifecycle import cancellation


class Flaky(Scripted):
    """Raises errors, one in each run of :meth:`wait`, and then succeeds."""

    first_retry_pause: ClassVar[float] = 0.01

    def __init__(self, *errors: Exception, begun: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.errors = list(errors)
        self.begun = begun

    async def wait(self) -> Outcome:
        self.started = self.started or self.begun
        if self.errors:
            raise self.errors.pop(0)
        return Success("in the end")


TEMPORARY = [KafkaUnavailable("away"), TimeoutError(), AirflowUnavailable("no answer")]


UNTIL_STARTED = [
    ConfigurationError("there is no connection 'x'"),
    DataflowRefused("no", "PERMISSION_DENIED"),
    KafkaRefused("no topic"),
    SqsRefused("no queue"),
    MachineRefused("no login"),
]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "error", [*TEMPORARY, DeploymentError("Fernet key")], ids=lambda error: type(error).__name__
)
async def test_error_that_may_pass_fails_no_task(
    airflow_comms: AirflowComms, inbox: Inbox, error: Exception, begun: bool
) -> None:
    trigger = in_triggerer(Flaky(error, error, begun=begun))
    assert isinstance(await event_of(trigger), TaskSuccessEvent)


@pytest.mark.parametrize("error", UNTIL_STARTED, ids=lambda error: type(error).__name__)
async def test_refusal_fails_a_task_that_has_read_nothing_and_is_retried_by_one_that_has(
    airflow_comms: AirflowComms, inbox: Inbox, error: Exception
) -> None:
    new, begun = in_triggerer(Flaky(error)), in_triggerer(Flaky(error, begun=True))
    assert isinstance(await event_of(new), TaskFailedEvent)
    outcome = (await inbox.waits.get(new.identify().wait_id)).outcome
    assert outcome == Failure(str(error), retryable=False)
    assert isinstance(await event_of(begun), TaskSuccessEvent)


@pytest.mark.parametrize("error", UNTIL_STARTED, ids=lambda error: type(error).__name__)
async def test_refusal_after_a_restart_fails_no_task(
    airflow_comms: AirflowComms, inbox: Inbox, error: Exception
) -> None:
    again = in_triggerer(Flaky(error))
    await register(inbox, again)
    assert isinstance(await event_of(again), TaskSuccessEvent)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (InputError("a bad argument"), False),
        (LaunchRefused("422"), False),
        (LaunchRefused("403", retry_can_help=True), True),
        (KeyError("a fault of the program"), True),
    ],
)
async def test_permanent_error_fails_a_task_that_has_started_and_is_retried_where_that_can_help(
    airflow_comms: AirflowComms, inbox: Inbox, error: Exception, retryable: bool
) -> None:
    trigger = in_triggerer(Flaky(error, begun=True))
    assert isinstance(await event_of(trigger), TaskFailedEvent)
    outcome = (await inbox.waits.get(trigger.identify().wait_id)).outcome
    assert isinstance(outcome, Failure)
    assert outcome.retryable is retryable


async def test_error_that_does_not_pass_ends_at_the_deadline(
    airflow_comms: AirflowComms, inbox: Inbox
) -> None:
    trigger = in_triggerer(Flaky(*[KafkaUnavailable("away")] * 100, timeout=0.2))
    trigger.first_retry_pause = 60.0  # type: ignore[misc]
    async with asyncio.timeout(10):
        assert isinstance(await event_of(trigger), TaskFailedEvent)
    assert (await inbox.waits.get(trigger.identify().wait_id)).state is WaitState.EXPIRED


@pytest.mark.parametrize(
    ("error", "source"),
    [
        (KafkaUnavailable("no broker answers"), "Kafka (logs)"),
        (AirflowUnavailable("no answer"), "Airflow's API"),
        (DeploymentError("a wrong Fernet key"), "the deployment"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
async def test_reason_of_a_timeout_has_the_outage(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, error: Exception, source: str
) -> None:
    class Reading(Flaky):
        first_retry_pause: ClassVar[float] = 60.0

        @property
        def sources(self) -> tuple[str, ...]:
            return ("Kafka (logs)",)

    clock = [0.0]
    seen = Outages(lambda: clock[0])
    monkeypatch.setattr(base, "outages", seen)
    trigger = in_triggerer(Reading(error, timeout=1.0))
    running = asyncio.create_task(event_of(trigger))
    await eventually(seen.active, "the outage")
    clock[0] = 15.0
    assert isinstance(await running, TaskFailedEvent)
    wait = await inbox.waits.get(trigger.identify().wait_id)
    assert wait.outcome == Failure(
        f"no result within the timeout of 1 s; {source} was unreachable for 1 of 1 s: {error}"
    )
    assert airflow_comms.xcoms == {}, "an outage is no XCom"


async def test_task_waits_while_the_fernet_key_is_wrong(airflow_comms: AirflowComms, inbox: Inbox) -> None:
    class Encrypted(Flaky):
        keys: ClassVar[list[str]] = ["wrong", "wrong"]

        def new_wait(self, attempt: Attempt) -> NewWait:
            if self.keys:
                raise DeploymentError(f"[core] fernet_key is {self.keys.pop()}")
            return super().new_wait(attempt)

    assert isinstance(await event_of(in_triggerer(Encrypted())), TaskSuccessEvent)
    assert DEPLOYMENT not in {outage.source for outage in base.outages.active()}, "it is right again"


async def test_only_a_final_refusal_uses_up_the_tries_of_a_cancellation(
    airflow_comms: AirflowComms, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = in_triggerer(Working(Success(1)))
    wait_id = await register(inbox, working)
    await inbox.waits.kill([wait_id])
    problem: list[Exception] = [KafkaUnavailable("away")]

    async def cancel(wait: Wait) -> None:
        raise problem[0]

    monkeypatch.setattr(working, "cancel", cancel)
    monkeypatch.setattr(cancellation, "decrypt", lambda _encrypted: working)
    inbox.cancellations = Cancellations(inbox.database, inbox.owner, lease=0.0)
    states = []
    passing = LaunchRefused("503", retry_can_help=True)
    for error, tries in (
        (problem[0], 25),
        (KeyError("a fault"), 25),
        (passing, 25),
        (LaunchRefused("no"), 10),
    ):
        problem[0] = error
        for _ in range(tries):
            due = await inbox.cancellations.claim(wait_id)
            assert due is not None
            await cancellation.cancel_once(inbox, due)
        states.append((await inbox.waits.get(wait_id)).cancel)
    assert states == ["due", "due", "due", "failed"]
