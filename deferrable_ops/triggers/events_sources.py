"""What must run while a wait needs a source, so that the source's events come into the inbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, Specification, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Inbox


@dataclass(frozen=True, slots=True)
class Need:
    """What one wait needs for one of its events.

    :param inbox: where the source's events are appended, by :meth:`~deferrable_ops.inbox.events.Events.append_all`.
    :param key: tells this need from all others, the same after a restart: for how far it is read.
    :param specification: says which source, and which of its events.
    :param since: seconds since the epoch, from when on its events are needed.
    :param warn: tells the task's log of trouble; the wait goes on.
    :param fail: ends the wait with a reason, for trouble that only a person can end, as credentials that are refused.
    """

    inbox: Inbox
    key: str
    specification: Specification
    since: float
    warn: Callable[[str], None]
    fail: Callable[[str], None]


RunUpstream = Callable[[Need], AbstractAsyncContextManager[Any]]

# A channel's events come by the endpoint: nothing runs here for them. Kafka and SQS are added once they can be read.
UPSTREAMS: Final[dict[type[Specification], RunUpstream | None]] = {
    ChannelEvent: None,
}
_NOTHING: Final = nullcontext()  # one for all: there are thousands of waits for channels
_CALLED: Final = {ChannelEvent: "channels", KafkaEvent: "Kafka", SqsEvent: "SQS"}


def upstreams_of(needs: Iterable[Need]) -> AbstractAsyncContextManager[Any]:
    """Run what the sources need, as long as the block lasts. An upstream itself shares what its waits have in common.

    :raises InputError: this version cannot read one of the sources.
    """
    running = []
    for need in needs:
        kind = type(need.specification)
        if kind not in UPSTREAMS:
            raise InputError(
                f"{need.specification.source}: this version of airflow-deferrable-ops does not read "
                f"{_CALLED[kind]} yet; wait for a ChannelEvent, or upgrade"
            )
        run = UPSTREAMS[kind]
        if run is not None:
            running.append(run(need))
    return _together(running) if running else _NOTHING


@asynccontextmanager
async def _together(managers: Iterable[AbstractAsyncContextManager[Any]]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for manager in managers:
            await stack.enter_async_context(manager)
        yield
