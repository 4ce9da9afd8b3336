"""SQS' messages come into the inbox while a wait needs their queue, whoever they are for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, cast

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.event import Event
from deferrable_ops.inbox import use_inbox
from deferrable_ops.inbox.events import Events, NewEvent
from deferrable_ops.triggers.base import PATIENCE
from deferrable_ops.triggers.events_need import Need
from deferrable_ops.upstreams.sqs import use_sqs

_lingering: Final[dict[tuple[asyncio.AbstractEventLoop, str | None, str], asyncio.Task[None]]] = {}


@asynccontextmanager
async def read_sqs(need: Need) -> AsyncIterator[None]:
    """Poll the queue of one event of a wait, while the block lasts.

    :raises ConfigurationError: the extra ``sqs`` or the connection is missing, or a setting of it is wrong.
    """
    event = cast("SqsEvent", need.specification)
    async with use_sqs(event.aws_conn_id) as sqs:
        try:
            with sqs.read(event, store=partial(_store, need.inbox.events), warn=need.warn, fail=need.fail):
                yield
        finally:
            key = asyncio.get_running_loop(), event.aws_conn_id, event.source
            if key not in _lingering and not sqs.is_read(event):
                _lingering[key] = asyncio.create_task(_linger(event, await _users(event)))
                _lingering[key].add_done_callback(lambda _: _lingering.pop(key, None))


async def _users(event: SqsEvent) -> AsyncExitStack:
    """Use what the last wait is about to leave, so that it stays open."""
    users = AsyncExitStack()
    await users.enter_async_context(use_inbox(patience=PATIENCE))
    await users.enter_async_context(use_sqs(event.aws_conn_id))
    return users


async def _linger(event: SqsEvent, users: AsyncExitStack) -> None:
    """Let the poll that is under way come to its end, in up to 20 s, which nobody need wait for.

    SQS would not notice if it were broken off, send the next message to it, and hide that from the next wait.
    """
    async with users, use_sqs(event.aws_conn_id) as sqs:
        await sqs.until_idle(event)


async def _store(events: Events, messages: Sequence[Event]) -> None:
    await events.append_all(
        [
            NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)
            for event in messages
        ]
    )
