"""SQS' messages come into the inbox while a wait needs their queue, whoever they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, cast

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.event import Event
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, use_inbox
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.triggers.events.source_request import Need
from deferrable_ops.upstreams.sqs.queues import use_sqs

_lingering: Final[dict[tuple[asyncio.AbstractEventLoop, str | None, str], asyncio.Task[None]]] = {}


class SqsUse:
    """Polls the queue of one event of a wait, while its ``async with`` statement lasts.

    :param need: for an :class:`~deferrable_ops.events.SqsEvent`.
    :raises ConfigurationError: on entering; the extra ``sqs`` or the connection is missing, or a setting of it is
        wrong.
    """

    # There are thousands, and a generator for each would take 1 kB.
    __slots__ = ("_event", "_events", "_need", "_reading", "_sqs", "_use")

    def __init__(self, need: Need) -> None:
        self._need = need
        self._event = cast("SqsEvent", need.specification)
        self._events = need.inbox.events

    async def __aenter__(self) -> None:
        """Begin to poll, or join who does."""
        listener = self._need.intake
        del self._need  # nor does a wait hold what it has handed on
        self._use = use_sqs(self._event.aws_conn_id)
        self._sqs = await self._use.__aenter__()
        self._reading = self._sqs.subscribe(self._event, store=self._store, listener=listener)
        self._reading.__enter__()

    async def __aexit__(self, *error: object) -> None:
        """Let the poll end when nobody needs it any more."""
        self._reading.__exit__(*error)
        key = asyncio.get_running_loop(), self._event.aws_conn_id, self._event.source
        if key not in _lingering and not self._sqs.has_readers(self._event):
            _lingering[key] = asyncio.create_task(_linger(self._event, await _users(self._event)))
            _lingering[key].add_done_callback(lambda _: _lingering.pop(key, None))
        await self._use.__aexit__(None, None, None)

    async def _store(self, messages: Sequence[Event]) -> None:
        await self._events.append_all(
            [
                NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)
                for event in messages
            ]
        )


async def _users(event: SqsEvent) -> AsyncExitStack:
    """Use what the last wait is about to leave, so that it stays open."""
    users = AsyncExitStack()
    await users.enter_async_context(use_inbox(retry_timeout=NO_RETRY_TIMEOUT))
    await users.enter_async_context(use_sqs(event.aws_conn_id))
    return users


async def _linger(event: SqsEvent, users: AsyncExitStack) -> None:
    """Let the poll that is under way come to its end, in up to 20 s, which nobody need wait for.

    SQS would not notice if it were broken off, send the next message to it, and hide that from the next wait.
    """
    async with users, use_sqs(event.aws_conn_id) as sqs:
        await sqs.wait_until_idle(event)
