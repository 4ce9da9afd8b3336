"""What must run while a wait needs a source, so that the source's events come into the inbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Final

from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, Specification, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.triggers.events.kafka_source import KafkaUse
from deferrable_ops.triggers.events.source_request import Need
from deferrable_ops.triggers.events.sqs_source import SqsUse

RunUpstream = Callable[[Need], AbstractAsyncContextManager[Any]]

UPSTREAMS: Final[dict[type[Specification], RunUpstream | None]] = {
    ChannelEvent: None,  # its events come by the endpoint
    KafkaEvent: KafkaUse,
    SqsEvent: SqsUse,
}
_NOTHING: Final = nullcontext()  # one for all: there are thousands of waits for channels


def upstreams_of(needs: Iterable[Need]) -> AbstractAsyncContextManager[Any]:
    """Run what the sources need, as long as the block lasts. An upstream itself shares what its waits have in common.

    :raises InputError: this version cannot read one of the sources.
    """
    running = []
    for need in needs:
        kind = type(need.specification)
        if kind not in UPSTREAMS:
            raise InputError(
                f"{need.specification.source}: this version of airflow-deferrable-ops does not read such a source yet; "
                "wait for a ChannelEvent or a KafkaEvent, or upgrade"
            )
        run = UPSTREAMS[kind]
        if run is not None:
            running.append(run(need))
    if len(running) > 1:
        return _together(running)
    return running[0] if running else _NOTHING


@asynccontextmanager
async def _together(managers: Iterable[AbstractAsyncContextManager[Any]]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for manager in managers:
            await stack.enter_async_context(manager)
        yield
