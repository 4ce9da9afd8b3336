"""Reads SQS queues into the inbox while a wait needs them. All messages are stored, even if no wait matches them."""

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
    """Await `body` while a queue is polled for a wait.

    This is a plain coroutine, because a generator-based context manager would need 1 kB for each of thousands of waits.

    :param request: the request. Its specifications are :class:`~deferrable_ops.events.SqsEvent` of one queue.
    :raises ConfigurationError: the extra ``sqs`` or the connection is missing, or one of its settings is wrong.
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
    """If no other wait needs the queue, let the current poll finish in the background. That takes up to 20 s.

    If the poll were aborted, SQS would not notice it. SQS would deliver the next message to the aborted poll, and so
    hide this message from the next wait.
    """
    key = asyncio.get_running_loop(), event.aws_conn_id, event.source
    if key not in _last_polls and not pollers.has_readers(event):
        _last_polls[key] = asyncio.create_task(_poll_until_idle(event, await _keep_open(event)))
        _last_polls[key].add_done_callback(lambda _: _last_polls.pop(key, None))


async def _keep_open(event: SqsEvent) -> AsyncExitStack:
    """Use the inbox and the connection, so that they stay open when the last wait stops using them."""
    users = AsyncExitStack()
    await users.enter_async_context(use_inbox(retry_timeout=NO_RETRY_TIMEOUT))
    await users.enter_async_context(use_sqs(event.aws_conn_id))
    return users


async def _poll_until_idle(event: SqsEvent, users: AsyncExitStack) -> None:
    async with users, use_sqs(event.aws_conn_id) as pollers:
        await pollers.wait_until_idle(event)
