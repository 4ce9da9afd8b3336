"""Runs a task of the library in a test until the task has an outcome, without Airflow's processes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from airflow.sdk.crypto import get_fernet

from deferrable_ops.events import ChannelEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Attempt, Inbox, Wait
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.inbox.waits.callbacks import Callback, Verb
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.outcome import Outcome, outcome_from_json
from deferrable_ops.testing.inbox import memory_inbox
from deferrable_ops.triggers.base import TaskTrigger


class TaskUnderTest:
    """A task whose trigger runs on an in-memory inbox.

    :param inbox: the in-memory inbox, in which a test can read the task's wait.
    :param attempt: the ids of the task and of its attempt, which are generated for the test.
    """

    def __init__(self, trigger: TaskTrigger, inbox: Inbox, attempt: Attempt) -> None:
        self.inbox = inbox
        self.attempt = attempt
        self._run = asyncio.create_task(_first_event(trigger))

    async def wait(self) -> Wait:
        """Wait until the task's wait is registered, and return the wait's current row."""
        while not (found := await self.inbox.waits.get_many([self.attempt.wait_id])):
            if self._run.done():
                raise AssertionError(f"the task ended before it registered its wait: {await self.outcome()}")
            await asyncio.sleep(0.01)
        return found[0]

    async def call_back(self, payload: Any = None, verb: str = "post") -> tuple[int, dict[str, Any]]:
        """Send a callback as an outside service does, and return the response's status and JSON value.

        :param verb: the kind of the callback, which is ``success``, ``failure``, ``skip``, ``heartbeat`` or ``post``.
            The operator's expressions decide what a ``post`` means.
        """
        wait = await self.wait()
        body = json.dumps(payload).encode()
        receipt = await self.inbox.callbacks.record(
            Callback(wait.id, Verb(verb), body, payload, source="test")
        )
        return receipt.status, json.loads(receipt.body)

    async def publish(self, channel: str, payload: Any = None, **attributes: Any) -> None:
        """Wait until the task waits for events, and then post an event to a channel as an outside system does.

        :param attributes: the dicts ``headers``, ``attributes`` and ``metadata`` of the event. The argument ``match``
            of an event specification can test the values in these dicts.
        """
        await self.wait()
        described = {"headers": {}, "attributes": {}, "metadata": {}, **attributes}
        source = ChannelEvent(channel).source
        await self.inbox.events.append(NewEvent(source, f"test:{uuid4()}", payload, described))

    async def outcome(self) -> Outcome:
        """Wait until the task ends, and return its outcome, which is a Success, a Failure or a Skip."""
        event = await self._run
        if "outcome" in event:
            return outcome_from_json(event["outcome"])
        outcome = (await self.inbox.waits.get(event["wait"])).outcome
        assert outcome is not None, "an event was sent for a wait without an outcome"
        return outcome

    async def stop(self) -> None:
        """Cancel the trigger, as a triggerer does when it shuts down."""
        self._run.cancel()
        await asyncio.gather(self._run, return_exceptions=True)


@asynccontextmanager
async def running(task: TriggererOperator | TaskTrigger) -> AsyncIterator[TaskUnderTest]:
    """Run a trigger, or the trigger of an operator, in the same way as a triggerer runs it.

    Templates are not rendered. If the configuration has neither ``endpoint_url`` nor ``base_url``, a task that needs a
    callback URL fails as in production. In a test, you can set ``endpoint_url`` to any URL, because no service calls
    the URL.

    :raises InputError: if the task runs code on a worker.
    """
    attempt = Attempt(
        str(uuid4()), 1, "dag_under_test", "run_under_test", getattr(task, "task_id", "") or "task"
    )
    trigger_class, kwargs = _trigger_of(task)
    trigger = trigger_class(**{**kwargs, "attempt": asdict(attempt)})
    _allow_missing_fernet_key()
    async with memory_inbox() as inbox:
        under_test = TaskUnderTest(trigger, inbox, attempt)
        try:
            yield under_test
        finally:
            await under_test.stop()


def _trigger_of(task: Any) -> tuple[type[TaskTrigger], dict[str, Any]]:
    if isinstance(task, TriggererOperator):
        return task.trigger_class, task.trigger_kwargs()
    if isinstance(task, TaskTrigger):
        return type(task), task.serialize()[1]
    raise InputError(
        f"running() takes a trigger, or an operator that only defers; {type(task).__name__} is neither. "
        "Use dag.test() for a task that runs code on a worker, such as WebhookOperatorMixin or @task.webhook"
    )


def _allow_missing_fernet_key() -> None:
    # Triggers are stored encrypted. Where Airflow is not configured, for example in CI, there is no key.
    try:
        get_fernet()
    except Exception:
        # An empty key turns encryption off. That is safe here, because nothing leaves this process's memory.
        os.environ["AIRFLOW__CORE__FERNET_KEY"] = ""


async def _first_event(trigger: TaskTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        payload: dict[str, Any] = event.payload
        return payload
    raise AssertionError("the trigger ended without an event")
