"""Reads SQS queues as long as a task waits for their messages, and stores all their messages in the inbox.

Messages are also stored if they match no specification of a waiting task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, cast

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.event import Event
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, use_inbox
from deferrable_ops.inbox.events.events import Events, NewEvent
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.events.source_request import SourceRequest
from deferrable_ops.upstreams.sqs.queues import SqsPollers, use_sqs

_last_polls: Final[dict[tuple[asyncio.AbstractEventLoop, str | None, str], asyncio.Task[None]]] = {}


async def read_sqs(request: SourceRequest, body: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Await `body` while an SQS queue is polled for a waiting task.

    This function is a coroutine to save memory. A context manager that uses a generator would need 1 kB for each
    waiting task, and thousands of tasks may wait.

    :param request: the request of a wait to read a queue. All specifications of the request are SqsEvents of this one
        queue.
    :raises ConfigurationError: if the extra ``sqs`` is not installed, or the connection is missing or has a wrong
        setting.
    """
    event = cast("SqsEvent", request.specification)
    async with use_sqs(event.aws_conn_id) as pollers:
        store = partial(_store, request.inbox.events)
        try:
            with pollers.subscribe(event, store=store, listener=request.collector):
                return await body()
        finally:
            await _finish_last_poll(pollers, event)


async def _store(events: Events, messages: Sequence[Event]) -> None:
    await events.append_all(
        [
            NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)
            for event in messages
        ]
    )


async def _finish_last_poll(pollers: SqsPollers, event: SqsEvent) -> None:
    """If no other task waits for the queue, let the current poll of the queue finish in the background, for up to 20
    s.

    SQS does not notice when a client aborts a poll. SQS would deliver the next message to the aborted poll, and the
    next waiting task would not receive this message until the message's visibility timeout is over.
    """
    key = asyncio.get_running_loop(), event.aws_conn_id, event.source
    if key not in _last_polls and not pollers.has_readers(event):
        _last_polls[key] = asyncio.create_task(_poll_until_idle(event, await _keep_open(event)))
        _last_polls[key].add_done_callback(lambda _: _last_polls.pop(key, None))


async def _keep_open(event: SqsEvent) -> AsyncExitStack:
    """Open the inbox and the AWS connection one additional time, so that both stay open after the last waiting task
    has ended.
    """
    users = AsyncExitStack()
    await users.enter_async_context(use_inbox(retry_timeout=NO_RETRY_TIMEOUT))
    await users.enter_async_context(use_sqs(event.aws_conn_id))
    return users


async def _poll_until_idle(event: SqsEvent, users: AsyncExitStack) -> None:
    async with users, use_sqs(event.aws_conn_id) as pollers:
        await pollers.wait_until_idle(event)
