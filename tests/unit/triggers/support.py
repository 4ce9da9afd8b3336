"""Helpers of the tests of all triggers: run a trigger as the triggerer does, and record what it sends to Airflow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from airflow.sdk.execution_time.comms import GetXCom, SetXCom, XComResult
from sqlalchemy import delete

from deferrable_ops.inbox import Attempt, Inbox, Wait
from deferrable_ops.inbox.database.database import Transaction
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.outcome import Outcome, outcome_from_json
from deferrable_ops.supervisor_calls import WARM_UP_VARIABLE
from deferrable_ops.triggers.base import TaskTrigger


class AirflowComms:
    """Replace the connection to Airflow's supervisor process, and record each message but the warm-up.

    `asend` raises `error` when it is set.
    """

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.error: Exception | None = None

    async def asend(self, message: Any) -> None:
        if getattr(message, "key", "") == WARM_UP_VARIABLE:
            return
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    @property
    def xcoms(self) -> dict[str, Any]:
        return {message.key: message.value for message in self.sent if isinstance(message, SetXCom)}


class XComs:
    """Replace the connection to Airflow's supervisor process, which keeps XComs."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.reads = 0
        self.error: Exception | None = None

    async def asend(self, message: Any) -> Any:
        if self.error is not None:
            raise self.error
        if isinstance(message, SetXCom):
            self.values[message.key] = message.value
        elif isinstance(message, GetXCom):
            self.reads += 1
            return XComResult(key=message.key, value=self.values.get(message.key))
        return None


class Runs:
    """Runs triggers of made-up attempts, and stops them at the end."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, trigger: TaskTrigger, attempt: Attempt | None = None) -> Run:
        run = Run(self.inbox, trigger, attempt or new_attempt())
        self._tasks.append(run.task)
        return run

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Run:
    """One run of a trigger."""

    def __init__(self, inbox: Inbox, trigger: TaskTrigger, attempt: Attempt) -> None:
        kwargs = trigger.serialize()[1] | {"attempt": asdict(attempt)}
        self.inbox = inbox
        self.attempt = attempt
        self.task = asyncio.create_task(_event(type(trigger)(**kwargs)))

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(20):
            event = await self.task
        if "outcome" in event:
            return outcome_from_json(event["outcome"])
        outcome = (await self.wait()).outcome
        assert outcome is not None
        return outcome

    async def wait(self) -> Wait:
        return await self.inbox.waits.get(self.attempt.wait_id)

    async def kill_process(self) -> None:
        """End the run as a triggerer that is killed does: nothing of it goes on."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


def new_attempt(try_number: int = 1, of: Attempt | None = None, task_id: str = "load_orders") -> Attempt:
    """Return an attempt of a task of its own, or the next attempt of another's."""
    ti_id, run_id = (str(uuid4()), uuid4().hex) if of is None else (of.ti_id, of.run_id)
    return Attempt(ti_id, try_number, "dag", run_id, task_id)


async def change(run: Run, statement: Any) -> None:
    async def write(transaction: Transaction) -> None:
        await transaction.connection.execute(statement.where(waits.c.id == run.attempt.wait_id))

    await run.inbox.database.write(write)


async def lose(run: Run) -> None:
    """Delete the row of a wait, as the restore of an older backup does."""
    await change(run, delete(waits))


async def eventually(condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    """Return the first true value of the condition."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain for {what}"
        await asyncio.sleep(0.01)
    return value


async def _event(trigger: TaskTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        payload: dict[str, Any] = event.payload
        return payload
    raise AssertionError("the trigger ended without an event")
