"""Helpers of the contract tests: new attempts, waits, callbacks and events, and waiting for a condition."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait
from deferrable_ops.inbox.events.events import NewEvent, StoredEvent
from deferrable_ops.inbox.waits.callbacks import Callback, Receipt, Verb

T = TypeVar("T")

RETRY_TIMEOUT = 20.0


def new_attempt(task: str | None = None, **fields: Any) -> Attempt:
    """Return an attempt of a new task, or of the named task."""
    task = task or uuid4().hex
    return Attempt(
        **{
            "ti_id": str(uuid4()),
            "try_number": 1,
            "dag_id": "dag",
            "run_id": task,
            "task_id": "task",
            **fields,
        }
    )


def new_wait(attempt: Attempt | None = None, *, late: bool = False, **fields: Any) -> NewWait:
    """Return a wait to register; the deadline of a late one has passed."""
    wait = {"feature": "webhook", "timeout": 3600.0, "latest_deadline": 1.0 if late else None, **fields}
    return NewWait(attempt or new_attempt(), **wait)


async def register(inbox: Inbox, attempt: Attempt | None = None, **fields: Any) -> Wait:
    return await inbox.waits.register(new_wait(attempt, **fields))


async def send(
    inbox: Inbox, wait_id: str, payload: Any = None, verb: Verb = Verb.POST, **fields: Any
) -> Receipt:
    return await inbox.callbacks.record(callback(wait_id, payload, verb, **fields))


def callback(wait_id: str, payload: Any = None, verb: Verb = Verb.POST, **fields: Any) -> Callback:
    return Callback(wait_id, verb, json.dumps(payload).encode(), payload, **fields)


async def eventually(condition: Callable[[], Awaitable[T]], what: str, timeout: float = 30) -> T:
    """Return the first true value of the condition."""
    deadline = time.monotonic() + timeout
    while not (value := await condition()):
        assert time.monotonic() < deadline, (
            f"waited {timeout:g} s in vain for {what}; the last look found {value!r}"
        )
        await asyncio.sleep(0.02)
    return value


def new_event(source: str = "channel:orders", key: str | None = None, **fields: Any) -> NewEvent:
    """Return an event with a new key, or with this one."""
    return NewEvent(
        source, key or uuid4().hex, fields.pop("payload", {}), fields.pop("attributes", {}), **fields
    )


async def read_all(
    inbox: Inbox, *sources: str, after: int = 0, since: float | None = None
) -> list[StoredEvent]:
    """Return every event of these sources."""
    upto = await inbox.events.newest()
    return await inbox.events.read(sources, after=after, upto=upto, since=since, limit=100_000)
